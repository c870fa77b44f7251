"""An instance's identity as labels, and back. PURE.

The labels are all the agent needs to know its instances again after it lost everything else. The engine gives
a container those of its image too, and to a step of a build nothing else: so each of ours is always set, and
believed only of a container that has the name of the instance it speaks of, which no build chooses.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from contracts.errors import InvalidInput
from contracts.money import Rate
from contracts.workload import HealthCheck, Slot
from pydantic import ValidationError

from node_agent.engine import Identity

PREFIX = "berth.prefix"
NODE = "berth.node"
WORKLOAD = "berth.workload"
INSTANCE = "berth.instance"
ORGANIZATION = "berth.organization"
ADDRESS = "berth.address"
DEPLOYMENT = "berth.deployment"
JOB = "berth.job"


def labels_of(identity: Identity) -> dict[str, str]:
    return {
        INSTANCE: identity.instance,
        WORKLOAD: identity.workload,
        ORGANIZATION: identity.organization,
        "berth.process": identity.slot.process,
        "berth.index": str(identity.slot.index),
        "berth.generation": str(identity.generation),
        "berth.fingerprint": identity.fingerprint,
        "berth.rate": identity.rate.model_dump_json(),
        "berth.started": identity.started_at.isoformat(),
        "berth.port": str(identity.port),
        "berth.health": identity.health.model_dump_json(),
        "berth.grace": str(identity.grace_seconds),
        DEPLOYMENT: identity.deployment or "",
        JOB: identity.job or "",
    }


def name_of(prefix: str, instance: str) -> str:
    return f"{prefix}-{instance}"


def ours(prefix: str, found: Mapping[str, Any]) -> bool:
    """Of a container as the engine lists it: we have made it."""
    instance = found["Labels"].get(INSTANCE)
    return f"/{name_of(prefix, instance)}" in (found["Names"] or ())


def identity_from(labels: Mapping[str, str]) -> Identity:
    try:
        return Identity(
            instance=labels[INSTANCE],
            workload=labels[WORKLOAD],
            organization=labels[ORGANIZATION],
            slot=Slot(process=labels["berth.process"], index=int(labels["berth.index"])),
            generation=int(labels["berth.generation"]),
            deployment=labels.get(DEPLOYMENT) or None,
            fingerprint=labels["berth.fingerprint"],
            rate=Rate.model_validate_json(labels["berth.rate"]),
            started_at=datetime.fromisoformat(labels["berth.started"]),
            port=int(labels["berth.port"]),
            health=HealthCheck.model_validate_json(labels["berth.health"]),
            grace_seconds=float(labels["berth.grace"]),
            job=labels.get(JOB) or None,
        )
    except (KeyError, ValueError, ValidationError) as error:
        raise InvalidInput(f"not the labels of an instance: {error}") from error
