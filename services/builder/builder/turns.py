"""Whose turn it is: the next build is of the organization with the fewest running, then of the one that was
served longest ago; within an organization production comes first, then who has waited longest. PURE.

The queue takes the first of this order, and tells a customer his place in it.
"""

import heapq
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Waiting:
    build: str
    organization: str
    preview: bool
    queued_at: datetime


def order(
    waiting: Iterable[Waiting], running: Mapping[str, int], served: Mapping[str, datetime]
) -> Iterator[Waiting]:
    """As if nothing that runs ended meanwhile: each one taken counts as running for those after it."""
    lines: defaultdict[str, list[Waiting]] = defaultdict(list)
    for one in waiting:
        lines[one.organization].append(one)
    heap: list[tuple[int, float, datetime, str]] = []
    now = 0.0
    for organization, line in lines.items():
        line.sort(key=lambda one: (one.preview, one.queued_at, one.build), reverse=True)
        last = served[organization].timestamp() if organization in served else 0.0
        now = max(now, last)
        heapq.heappush(heap, (running.get(organization, 0), last, line[-1].queued_at, organization))
    while heap:
        count, _, _, organization = heapq.heappop(heap)
        line = lines[organization]
        yield line.pop()
        if line:
            now += 1
            heapq.heappush(heap, (count + 1, now, line[-1].queued_at, organization))
