"""Which hostnames lead to which workload, as domains said it last: kept on disk (I6).

A route leaves only by its own deletion, never because a bucket came back empty.
"""

import re
from collections import defaultdict
from pathlib import Path

import structlog
from contracts.workload import Route
from pydantic import ValidationError

from node_agent.routes_file import is_hostname
from node_agent.shelf import Shelf

log = structlog.get_logger("node-agent.routes")

_KEY = re.compile(r"[A-Za-z0-9_=-][A-Za-z0-9_=.-]{0,250}")


class Routes:
    def __init__(self, folder: Path) -> None:
        self._shelf = Shelf(folder / "routes", Route)
        # Workload -> the keys of its routes: a node serves all there are.
        self._keys: defaultdict[str, set[str]] = defaultdict(set)

    def open(self) -> None:
        self._shelf.open()
        self._keys.clear()
        for key, route in self._shelf:
            self._keys[route.workload].add(key)

    def hostnames(self, workload: str, organization: str) -> tuple[str, ...]:
        """Of a workload, if its organization is the route's."""
        routes = [self._shelf.get(key) for key in self._keys.get(workload, ())]
        return tuple(sorted(r.hostname for r in routes if r is not None and r.organization == organization))

    def at(self, hostname: str) -> Route | None:
        route = self._shelf.get(hostname)
        return route if route is not None and route.hostname == hostname else None

    async def accept(self, key: str, value: bytes | None) -> list[str]:
        """A value of the bucket; the workloads whose hostnames it changes, the one that gains first."""
        if not _KEY.fullmatch(key):
            log.error("a route has an unusable key", key=key)
            return []
        old = self._shelf.get(key)
        if value is None:
            self._forget(key, old)
            await self._shelf.remove(key)
            return [] if old is None else [old.workload]
        try:
            route = Route.model_validate_json(value)
        except ValidationError as error:
            log.error("a route cannot be read; the last one stays", key=key, error=str(error))
            return []
        if not is_hostname(route.hostname):
            log.error("a route has no proper hostname", key=key, hostname=route.hostname)
            return []
        if old is not None and (route.revision < old.revision or route == old):
            return []
        self._forget(key, old)
        self._keys[route.workload].add(key)
        await self._shelf.put(key, route)
        return list(dict.fromkeys([route.workload, *([] if old is None else [old.workload])]))

    def _forget(self, key: str, old: Route | None) -> None:
        if old is not None:
            self._keys[old.workload].discard(key)
            if not self._keys[old.workload]:
                del self._keys[old.workload]
