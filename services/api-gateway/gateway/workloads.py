"""The workload: a customer's intent, its generation, and the specification everybody else follows.

Invariant: a generation rises by `change`, or by `tell` where nothing may refuse it, and the specification
leaves in the same transaction.
A function that changes a workload holds its row's lock, and calls `settle` at its end.
"""

from collections.abc import Mapping

from contracts.api import DeploymentStatus
from contracts.errors import Conflict, NotFound
from contracts.events import AppChanged, AppDeleted, DeploymentCancelled
from contracts.money import Rate
from contracts.workload import HealthCheck, Limits, Process, WorkloadSpec
from runtime.store import Tx
from sqlalchemy import case, func, select, true, update
from sqlalchemy import delete as remove

from gateway import funds, jobs, outages, sizes, status
from gateway.status import Blockage, Facts, Placement, Rollout, Verdict
from gateway.tables import CredentialRow, DeploymentRow, PlanRow, ReleaseRow, SourceRow, WorkloadRow

DEFAULT_PORT = 8080


def spec_of(row: WorkloadRow) -> WorkloadSpec:
    return WorkloadSpec.model_validate(
        {
            "id": row.id,
            "name": row.name,
            "environment": row.environment,
            "organization": row.organization,
            "project": row.project,
            "generation": row.generation,
            "state": row.state,
            "region": row.region,
            "plan": row.plan,
            "limits": Limits.model_validate(row.limits),
            "needs": row.needs,
            "rate": Rate(micros_per_hour=row.micros_per_hour, currency=row.currency),
            "uid": row.uid,
            "processes": row.processes,
            "port": row.port,
            "health": HealthCheck.model_validate(row.health),
            "image": row.image,
            "release": row.release,
            "deployment": row.deployment,
            "restarts": row.restarts,
            "variables": row.runtime_variables,
            "variables_digest": row.variables_digest,
            "volumes": row.volumes,
            "sleep_seconds": None if row.sleep_minutes is None else row.sleep_minutes * 60,
            "copy_minutes": row.copy_minutes,
        }
    )


async def find(tx: Tx, workload: str) -> WorkloadRow | None:
    """Locked for a change; one of another organization is not found, like one that was deleted."""
    row = await tx.get(WorkloadRow, workload, lock=True)
    return None if row is None or row.state == "deleted" else row


async def known(tx: Tx, workload: str) -> WorkloadRow:
    row = await tx.get(WorkloadRow, workload)
    if row is None or row.state == "deleted":
        raise no_such_app(workload)
    return row


async def locked(tx: Tx, workload: str) -> WorkloadRow:
    row = await find(tx, workload)
    if row is None:
        raise no_such_app(workload)
    return row


def no_such_app(workload: str) -> NotFound:
    return NotFound("there is no such app; GET /api/paas/apps lists yours", app=workload)


def change(tx: Tx, row: WorkloadRow) -> None:
    sizes.require_sendable(spec_of(row))
    tell(tx, row)


def tell(tx: Tx, row: WorkloadRow) -> None:
    """A change to less than before, or one that has been measured."""
    _raise_generation(row)
    tx.publish(AppChanged(spec=spec_of(row).model_copy(update={"trace": tx.trace})))


def _raise_generation(row: WorkloadRow) -> None:
    row.generation += 1
    # What was heard about the old generation says nothing about the new one.
    row.placement = row.blockage = None
    row.rollouts = {}
    row.trouble = row.trouble_until = None


def set_processes(row: WorkloadRow, processes: Mapping[str, Process]) -> None:
    row.processes = {name: process.model_dump() for name, process in processes.items()}
    row.replicas = sum(process.replicas for process in processes.values())
    chosen = {**row.chosen, **{name: process.replicas for name, process in processes.items()}}
    # A name that was given no instance is not worth keeping: every release may bring others.
    row.chosen = {name: count for name, count in chosen.items() if count or name == "web"}


async def use_release(tx: Tx, row: WorkloadRow, release: ReleaseRow | None) -> None:
    """The release's image and commands; how many of each process there are stays the customer's choice."""
    if release is None:
        row.image = row.release = row.deployment = None
        return
    set_processes(row, await processes_of(tx, row, release))
    row.image, row.release, row.deployment = release.image, release.id, release.deployment
    row.port = row.chosen_port or release.port or DEFAULT_PORT


async def processes_of(tx: Tx, row: WorkloadRow, release: ReleaseRow) -> dict[str, Process]:
    """What runs stays as it is, also where the plan has come to allow less; what a release brings back gets
    the room that is left: it was chosen when others did not run beside it."""
    # The release phase has run by now, and is no process of instances.
    commands = {name: c for name, c in release.processes.items() if name != "release"} or {"web": None}
    chosen = {name: row.chosen.get(name, int(name == "web")) for name in commands}
    plan = await tx.get(PlanRow, row.plan)
    if plan is not None:
        room = plan.max_replicas - sum(chosen[name] for name in chosen.keys() & row.processes.keys())
        for name in sorted(chosen.keys() - row.processes.keys(), key=lambda name: (name != "web", name)):
            chosen[name] = min(chosen[name], max(room, int(name == "web")))
            room -= chosen[name]
    return {name: Process(command=command, replicas=chosen[name]) for name, command in commands.items()}


async def start(tx: Tx, row: WorkloadRow) -> None:
    """Brings a stopped or suspended app back to its replicas; a running one is left as it is."""
    if row.image is None:
        raise Conflict("the app has no release yet; deploy it first", app=row.id)
    if row.state != "running":
        row.state, row.suspended = "running", False
        change(tx, row)
    await settle(tx, row)


async def restart(tx: Tx, row: WorkloadRow) -> None:
    if row.state != "running" or row.image is None:
        await start(tx, row)
        return
    row.restarts += 1
    change(tx, row)
    await settle(tx, row)


async def stop(tx: Tx, row: WorkloadRow) -> None:
    """What is under way for the app ends too: the last word counts."""
    await end_deployments(tx, row, "superseded", "the app was stopped")
    await jobs.cancel_all(tx, row.id, "release")
    row.suspended = False
    if row.state == "running":
        row.state, row.live = "stopped", False
        tell(tx, row)
    await settle(tx, row)


async def suspend(tx: Tx, row: WorkloadRow) -> None:
    await end_deployments(tx, row, "failed", "the wallet is empty; add credit, then deploy again")
    await jobs.cancel_all(tx, row.id, "release", "run", "cron")
    if row.state == "running" and row.image is not None:
        row.state, row.live, row.suspended = "stopped", False, True
        tell(tx, row)
    await settle(tx, row)


async def delete(tx: Tx, row: WorkloadRow) -> None:
    """Gone for the customer at once, its name free; the row stays as the word to everybody who missed it."""
    await end_deployments(tx, row, "superseded", "the app was deleted")
    await jobs.cancel_all(tx, row.id, "release", "run", "cron")
    row.state, row.live = "deleted", False
    outages.mark(tx, row, down=False)
    row.variables = row.runtime_variables = row.variables_digest = None
    _raise_generation(row)
    await tx.execute(remove(SourceRow).where(SourceRow.workload == row.id))
    await tx.execute(remove(CredentialRow).where(CredentialRow.workload == row.id))
    tx.publish(AppDeleted(spec=spec_of(row)))


async def end_deployments(
    tx: Tx,
    row: WorkloadRow,
    final: DeploymentStatus,
    reason: str,
    *,
    among: tuple[DeploymentStatus, ...] = status.PENDING,
    before: int | None = None,
    only: str | None = None,
) -> None:
    """Those of the app that are `among` the statuses, or of them the ones `before` a number. What is not yet
    built need not be built any more."""
    ended = await tx.execute(
        update(DeploymentRow)
        .where(
            DeploymentRow.workload == row.id,
            DeploymentRow.status.in_(among),
            DeploymentRow.number < before if before is not None else true(),
            DeploymentRow.id == only if only is not None else true(),
        )
        .values(status=final, reason=reason, status_at=func.now(), finished_at=func.now())
        .returning(DeploymentRow.id, DeploymentRow.seconds)
    )
    for found in ended.all():
        if found.seconds is None:
            tx.publish(
                DeploymentCancelled(
                    deployment=found.id, workload=row.id, organization=row.organization, reason=reason
                )
            )


def heard(row: WorkloadRow) -> Verdict:
    return status.verdict(
        Placement.model_validate(row.placement) if row.placement else None,
        Blockage.model_validate(row.blockage) if row.blockage else None,
        {node: Rollout.model_validate(rollout) for node, rollout in row.rollouts.items()},
    )


def asleep(row: WorkloadRow) -> bool:
    """Every node it is on has said so."""
    nodes = Placement.model_validate(row.placement).nodes if row.placement else ()
    return bool(nodes) and all(row.naps.get(node, {}).get("asleep") for node in nodes)


async def settle(tx: Tx, row: WorkloadRow) -> None:
    """Writes down what the app is doing now, for everybody who only reads."""
    await tx.flush()
    under_way = case((DeploymentRow.status.in_(status.PENDING), 1), else_=0)
    newest = (
        await tx.execute(
            select(DeploymentRow.status, DeploymentRow.number, DeploymentRow.reason)
            .where(DeploymentRow.workload == row.id)
            .order_by(under_way.desc(), DeploymentRow.number.desc())
            .limit(1)
        )
    ).one_or_none()
    standing = status.decide(
        Facts(
            state=row.state,
            suspended=row.suspended,
            funded=row.suspended and await funds.of(tx, row.organization) > 0,
            released=row.image is not None,
            live=row.live,
            rollout=heard(row),
            asleep=asleep(row),
            deployment=newest.status if newest else None,
            number=newest.number if newest else None,
            reason=newest.reason if newest else None,
        )
    )
    row.status, row.reason = standing.status, standing.reason
    should_answer = row.state == "running" and row.image is not None and not asleep(row)
    outages.mark(tx, row, down=should_answer and (row.silent or not row.live))
