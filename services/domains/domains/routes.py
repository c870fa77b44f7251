"""PURE. Which hostname a workload gets, under which URL, and which routes are not what they should be.

Invariant: the candidates of a workload are always the same, in the same order, and the last one no other
workload has. Used by `hostnames` and `projection`.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from contracts.workload import Route, WorkloadSpec

LONGEST_LABEL = 63
PRODUCTION = "production"
# Characters of the id that tell namesakes apart; all of them in the end.
_SUFFIXES = (4, 8, 26)


def candidates(spec: WorkloadSpec, base_domain: str, reserved: Collection[str]) -> Iterator[str]:
    """`shop.<base>`, `shop-staging.<base>` off production; and when that is taken, with a part of its id."""
    label = label_of(spec.name, spec.environment)
    if label not in reserved and len(label) <= LONGEST_LABEL:
        yield f"{label}.{base_domain}"
    id = spec.id.rpartition("_")[2]
    for length in _SUFFIXES:
        start = label[: LONGEST_LABEL - 1 - length].rstrip("-")
        yield f"{start}-{id[-length:]}.{base_domain}"


def stays_with(spec: WorkloadSpec, held: Collection[str], base_domain: str) -> str | None:
    """The hostname it keeps of those it has; a name that was reserved only later stays its own."""
    if spec.state == "deleted":
        return None
    return next((own for own in candidates(spec, base_domain, ()) if own in held), None)


def label_of(name: str, environment: str) -> str:
    text = name if environment == PRODUCTION else f"{name}-{environment}"
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "app"


def url_of(hostname: str, port: int) -> str:
    return f"http://{hostname}" if port == 80 else f"http://{hostname}:{port}"


@dataclass(frozen=True, slots=True)
class Difference:
    # Hostnames whose route in the bucket is missing, another, or should not be there.
    wrong: tuple[str, ...]
    # Routes of hostnames nobody knows here: no order to remove them has ever been given.
    unknown: tuple[str, ...]


def compare(wanted: Mapping[str, Route | None], found: Mapping[str, Route | None]) -> Difference:
    """`wanted`: None for a hostname that was released. `found`: None for a value that is no route."""
    wrong = (
        hostname
        for hostname, route in wanted.items()
        if (hostname in found if route is None else found.get(hostname) != route)
    )
    return Difference(tuple(sorted(wrong)), tuple(sorted(found.keys() - wanted.keys())))
