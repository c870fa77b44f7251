"""How many requests each workload gets: counted by the ingress of this machine, read and reported here.

The ingress counts by the service a request was routed to, which no request can choose; an app can neither
raise nor lower what another one got. Its counters go on while the agent is away, and begin anew only with the
ingress, whose start is the `boot` they are reported with. It keeps some for every status and method; an app
that answers with hundreds of them, which no honest one does, is not counted any more.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import structlog
from contracts.errors import Unavailable
from contracts.reports import NodeTraffic, TrafficCount
from runtime.clock import Clock

from node_agent.ingress import Proxy

log = structlog.get_logger("node-agent.traffic")

# A report that is lost is made up for by the next one: said again for a while after the last request.
_SAID_FOR = 600.0
_PAGE = 4000
# It is read for a small part of the time only, where there are very many apps less often.
_REST = 30
_SLOW = b"1"
# Of status, method and protocol: each takes eight kilobytes of the ingress.
_MOST_SERIES = 300
_SERIES = re.compile(
    rb"^traefik_service_(?:(requests_total)|request_duration_seconds_(sum|count|bucket))"
    rb'\{code="(\d+)",method="[^"]*",protocol="([^"]*)",service="(app_[a-z0-9]+)@file"'
    rb'(?:,le="([^"]*)")?\} (\S+)$',
    re.MULTILINE,
)
_START = re.compile(rb"^process_start_time_seconds (\S+)$", re.MULTILINE)
_TABLE = Path("/proc/net/tcp")
_SOCKETS = Path("/proc/self/fd")
_ESTABLISHED = "01"


@dataclass(frozen=True, slots=True)
class Count:
    requests: int = 0
    failed: int = 0
    slow: int = 0
    seconds: float = 0.0
    series: int = 0


def counts_in(text: bytes) -> tuple[str, dict[str, Count]]:
    """Since when the ingress counts, and what it has counted of each of its services."""
    start = _START.search(text)
    if start is None:
        raise Unavailable("the ingress does not say what it has counted")
    found: dict[str, Count] = {}
    for match in _SERIES.finditer(text):
        total, part, code, protocol, service, bound, value = match.groups()
        name, number = service.decode(), float(value)
        before = found.get(name, Count())
        if total:
            failed = before.failed + (int(number) if code >= b"500" else 0)
            found[name] = replace(
                before, requests=before.requests + int(number), failed=failed, series=before.series + 1
            )
        elif protocol == b"websocket":
            # It lasts for as long as it is open, and is not slow for that.
            continue
        elif part == b"sum":
            found[name] = replace(before, seconds=before.seconds + number)
        elif part == b"count":
            found[name] = replace(before, slow=before.slow + int(number))
        elif bound == _SLOW:
            found[name] = replace(before, slow=before.slow - int(number))
    return start.group(1).decode(), found


def connected(endpoints: Mapping[str, str], table: str, own: frozenset[str]) -> set[str]:
    """Of `ip:port` -> name, the names to which `/proc/net/tcp` shows an open connection of another process
    of this machine: those of this one, which asks after everybody's health, have the inodes `own`."""
    wanted = {}
    for endpoint, name in endpoints.items():
        address, _, port = endpoint.rpartition(":")
        octets = bytes(int(part) for part in address.split("."))
        wanted[f"{int.from_bytes(octets, 'little'):08X}:{int(port):04X}"] = name
    return {
        wanted[columns[2]]
        for columns in map(str.split, table.splitlines())
        if len(columns) > 9 and columns[2] in wanted and columns[3] == _ESTABLISHED and columns[9] not in own
    }


class Traffic:
    def __init__(self, node: str, proxy: Proxy, clock: Clock) -> None:
        self._node = node
        self._proxy = proxy
        self._clock = clock
        self._since = clock.monotonic()
        self._boot = ""
        self._counts: dict[str, Count] | None = None
        self._last: dict[str, float] = {}
        self._looking = asyncio.Lock()
        self._known = True
        self._rest_until = 0.0
        self._crowded: set[str] = set()
        self._on_crowded: Callable[[str], object] = str

    def on_crowded(self, call: Callable[[str], None]) -> None:
        """Its routes are to be published again, uncounted."""
        self._on_crowded = call

    def counted(self, workload: str) -> bool:
        return workload not in self._crowded

    def touch(self, workload: str) -> None:
        """It is in use just now."""
        self._last[workload] = self._clock.monotonic()

    def idle_seconds(self, workload: str) -> float:
        return self._clock.monotonic() - self._last.get(workload, self._since)

    async def look(self) -> bool:
        """Whether the ingress has said what it has counted."""
        async with self._looking:
            try:
                boot, counts = await self._read()
            except Unavailable as error:
                if self._known:
                    log.warning("requests are not counted", error=error.message)
                self._known = False
                return False
            self._known = True
            now = self._clock.monotonic()
            if self._counts is not None:
                for workload, count in counts.items():
                    if count.requests != self._counts.get(workload, Count()).requests:
                        self._last[workload] = now
            else:
                # What came before this start is reported like the rest.
                self._last = {**dict.fromkeys(counts, now), **self._last}
            self._boot, self._counts = boot, counts
            for workload, count in counts.items():
                if count.series > _MOST_SERIES and self.counted(workload):
                    log.warning("too many kinds of answers, not counted any more", workload=workload)
                    self._crowded.add(workload)
                    self._on_crowded(workload)
            return True

    async def _read(self) -> tuple[str, dict[str, Count]]:
        text = await self._proxy.metrics()
        # Megabytes of it where there are thousands of apps.
        return await asyncio.to_thread(counts_in, text)

    async def report(self, say: Callable[[NodeTraffic], Awaitable[None]]) -> None:
        begun = self._clock.monotonic()
        if begun < self._rest_until or not await self.look() or self._counts is None:
            return
        self._rest_until = begun + _REST * (self._clock.monotonic() - begun)
        lately = self._clock.monotonic() - _SAID_FOR
        counts = [
            TrafficCount(
                workload=workload,
                requests=count.requests,
                failed=count.failed,
                slow=count.slow,
                seconds=round(count.seconds, 3),
            )
            for workload, count in sorted(self._counts.items())
            if self._last.get(workload, lately) > lately
        ]
        at = self._clock.now()
        for first in range(0, len(counts), _PAGE):
            page = tuple(counts[first : first + _PAGE])
            await say(NodeTraffic(node=self._node, boot=self._boot, at=at, counts=page))

    async def open_connections(self, endpoints: Mapping[str, str]) -> set[str]:
        """Of `ip:port` -> workload, those to which somebody is connected."""
        return await asyncio.to_thread(self._open_connections, endpoints)

    @staticmethod
    def _open_connections(endpoints: Mapping[str, str]) -> set[str]:
        # Before and after: one that is made or ended in between is this process's own all the same.
        own = _own_sockets()
        table = _TABLE.read_text()
        return connected(endpoints, table, own | _own_sockets())


def _own_sockets() -> frozenset[str]:
    own = set()
    for link in _SOCKETS.iterdir():
        try:
            target = str(link.readlink())
        except FileNotFoundError:
            continue
        if target.startswith("socket:["):
            own.add(target[8:-1])
    return frozenset(own)
