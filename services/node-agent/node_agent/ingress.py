"""The ingress of this machine: a port, and Traefik behind it, told everything through a folder of files.

A change is done when it is seen through the proxy itself. Nothing here removes a route because something
else is missing: only `withdraw` does, and only for the workload it names.
"""

import asyncio
import contextlib
import secrets
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import structlog
from contracts.errors import BerthError, InvalidInput, Unavailable
from runtime.clock import Clock

from node_agent.certificate import certificate
from node_agent.mesh_file import Mesh
from node_agent.routes_file import (
    HEADER,
    METRICS_PATH,
    Served,
    check,
    confirm_path,
    digest,
    has_instances,
    hostnames_in,
    peers_in,
    render,
    render_common,
    shards_of,
)
from node_agent.shelf import put_aside, write_durably

log = structlog.get_logger("node-agent.ingress")

_COMMON = "common.yaml"
_FIRST_PAUSE = 0.01
_LONGEST_PAUSE = 0.1
_FADING = 10.0
# After that the proxy has missed the change: one file it could not read at that moment is enough.
_REMIND = 2.0


class Proxy(Protocol):
    async def open(self) -> None:
        """Takes over what is there; comes before everything else."""

    async def publish(self, served: Served) -> None:
        """Returns once the proxy serves exactly this; `Unavailable` when it does not come to it."""

    def published(self) -> set[str]:
        """The workloads it has routes of to instances of this node, also from before this agent."""
        ...

    async def withdraw(self, workload: str) -> None:
        """Returns once the proxy knows nothing of the workload."""

    async def metrics(self) -> bytes:
        """What it has counted, as Prometheus would read it; `Unavailable` when it does not say."""
        ...


class Neighbours(Protocol):
    """What the proxy has to know of other nodes."""

    def shares(self, workload: str) -> tuple[tuple[str, int], ...]: ...

    def mesh(self, nodes: set[str]) -> Mesh:
        """With where these are reached."""
        ...

    def took(self, seconds: float) -> None:
        """From a file that was written to the proxy that serves it."""


class TraefikProxy:
    def __init__(
        self,
        folder: Path,
        url: str,
        clock: Clock,
        patience: float = 10.0,
        neighbours: Neighbours | None = None,
    ) -> None:
        self._folder = folder
        # Beside the watched folder: a draft must not look like a change.
        self._drafts = folder.parent / "drafts"
        self._secret_file = folder.parent / "confirm"
        self._certificate_file = folder.parent / "certificate.pem"
        self._clock = clock
        self._patience = patience
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        self._secret = ""
        self._certificate = ""
        self._neighbours = neighbours
        self._shards: dict[str, set[str]] = {}
        # The nodes its file leads to, and whether it leads to instances here.
        self._peers: dict[str, set[str]] = {}
        self._at_home: set[str] = set()
        # Nodes no file leads to any more, and for how long they are kept.
        self._fading: dict[str, float] = {}
        # Each file as it was when it was written.
        self._stamps: dict[str, tuple[int, int] | None] = {}
        # What its keeper has published.
        self._here: dict[str, Served] = {}
        self._confirmed: dict[str, str] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._sharing = asyncio.Lock()

    async def open(self) -> None:
        await asyncio.to_thread(self._take_over)
        await self._share()

    def _take_over(self) -> None:
        """A file that would stop Traefik from loading all the others is put aside."""
        for folder in (self._folder, self._drafts):
            folder.mkdir(parents=True, exist_ok=True)
        self._secret = self._read_secret()
        self._certificate = certificate(self._certificate_file, self._drafts)
        for path in self._folder.iterdir():
            if path.name == _COMMON:
                continue
            try:
                text = path.read_text()
                shards, peers = shards_of(hostnames_in(text)), peers_in(text)
                if has_instances(text):
                    self._at_home.add(path.stem)
                self._shards[path.stem], self._peers[path.stem] = shards, peers
                self._stamps[path.stem] = _stamp(path)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                put_aside(path, str(error))

    def _read_secret(self) -> str:
        # A hostname nobody can guess, and that is nobody's: only we learn what the proxy serves.
        with contextlib.suppress(FileNotFoundError):
            if kept := self._secret_file.read_text().strip():
                return kept
        made = f"{secrets.token_hex(16)}.invalid"
        draft = self._secret_file.with_suffix(".new")
        draft.touch(mode=0o600)
        draft.write_text(made)
        draft.replace(self._secret_file)
        return made

    async def publish(self, served: Served) -> None:
        async with self._lock(served.workload):
            self._here[served.workload] = served
            served = self._with_others(served)
            text, wanted = self._render(served), digest(served, meshed=self._neighbours is not None)
            self._grow(served)
            await self._share()
            path = self._path(served.workload)
            if await asyncio.to_thread(_content, path) != text:
                await asyncio.to_thread(self._write, path, text)
            elif self._confirmed.get(served.workload) == wanted:
                return
            began = self._clock.monotonic()
            await self._confirm(served.workload, wanted)
            if self._neighbours is not None:
                self._neighbours.took(self._clock.monotonic() - began)
            self._confirmed[served.workload] = wanted
            self._settle(served)
            await self._share()

    async def spread(self, hostnames: Mapping[str, tuple[str, ...]]) -> set[str]:
        """Writes what other nodes have of these workloads, and does not wait for the proxy; returns those to
        look at again. `hostnames`: of what nobody here keeps; without any it is withdrawn."""
        for name, known in hostnames.items():
            # One that cannot be written is told of when it is to be.
            with contextlib.suppress(InvalidInput):
                if (served := self._to_spread(name, known)) is not None:
                    check(served)
                    self._grow(served)
        # Before all of them, what they refer to.
        await self._share()
        outcomes = await asyncio.gather(
            *(self._rewrite(name, known) for name, known in hostnames.items()), return_exceptions=True
        )
        again = set()
        for name, outcome in zip(hostnames, outcomes, strict=True):
            if isinstance(outcome, BerthError):
                log.error(
                    "a workload's routes to other nodes are left as they were",
                    workload=name,
                    error=str(outcome),
                )
            elif isinstance(outcome, OSError):
                log.warning("routes cannot be written", workload=name, error=str(outcome))
                again.add(name)
            elif isinstance(outcome, BaseException):
                raise outcome
            elif not outcome:
                again.add(name)
        return again

    async def _rewrite(self, workload: str, hostnames: tuple[str, ...]) -> bool:
        lock, path = self._lock(workload), self._path(workload)
        if lock.locked():
            # Its keeper waits for the proxy, and that can take its time.
            return False
        async with lock:
            served = self._to_spread(workload, hostnames)
            if served is None:
                path.unlink(missing_ok=True)
                self._drop(workload)
                return True
            text = self._render(served)
            if self._grow(served):
                await self._share()
            if await asyncio.to_thread(_content, path) != text:
                self._confirmed.pop(workload, None)
                await asyncio.to_thread(self._write, path, text)
            self._settle(served)
        return True

    def _to_spread(self, workload: str, hostnames: tuple[str, ...]) -> Served | None:
        kept = self._here.get(workload)
        if kept is None and not hostnames:
            return None
        return self._with_others(kept or Served(workload, hostnames, (), remote=True))

    def keeps(self, workload: str) -> bool:
        """Whether its keeper has published it."""
        return workload in self._here

    async def altered(self) -> set[str]:
        """The workloads whose file is not as it was written; what all refer to is put right at once."""
        await self._share()

        def look() -> set[str]:
            # A file of somebody else's is his.
            return {name for name, stamp in list(self._stamps.items()) if _stamp(self._path(name)) != stamp}

        return await asyncio.to_thread(look)

    def _write(self, path: Path, text: str) -> None:
        write_durably(path, text, self._drafts)
        self._stamps[path.stem] = _stamp(path)

    def _with_others(self, served: Served) -> Served:
        others = () if self._neighbours is None else self._neighbours.shares(served.workload)
        return replace(served, elsewhere=others)

    def _render(self, served: Served) -> str:
        return render(served, meshed=self._neighbours is not None)

    def _grow(self, served: Served) -> bool:
        """What its file is about to refer to is there before it, and what it refers to still stays."""
        name = served.workload
        shards, peers = self._shards.get(name, set()), self._peers.get(name, set())
        wider = shards_of(served.hostnames) | shards, {node for node, _ in served.elsewhere} | peers
        self._shards[name], self._peers[name] = wider
        return wider != (shards, peers)

    def _settle(self, served: Served) -> None:
        name = served.workload
        self._shards[name] = shards_of(served.hostnames)
        self._let_fade(name)
        self._peers[name] = {node for node, _ in served.elsewhere}
        (self._at_home.add if served.addresses else self._at_home.discard)(name)

    def _let_fade(self, workload: str) -> None:
        # The proxy may be reading the file of before this moment, and one without what it refers to is
        # broken.
        until = self._clock.monotonic() + _FADING
        self._fading |= dict.fromkeys(self._peers.get(workload, ()), until)

    def _drop(self, workload: str) -> None:
        self._let_fade(workload)
        for known in (self._here, self._shards, self._peers, self._confirmed, self._stamps):
            known.pop(workload, None)
        self._at_home.discard(workload)

    def published(self) -> set[str]:
        return set(self._at_home) if self._neighbours is not None else set(self._shards)

    async def withdraw(self, workload: str) -> None:
        async with self._lock(workload):
            if not self._path(workload).exists():
                self._drop(workload)
                return
            self._path(workload).unlink()
            await self._confirm(workload, None)
            self._drop(workload)
            await self._share()
        self._locks.pop(workload, None)

    async def _confirm(self, workload: str, wanted: str | None) -> None:
        end = self._clock.monotonic() + self._patience
        remind = self._clock.monotonic() + _REMIND
        pause = _FIRST_PAUSE
        while (seen := await self._seen(workload)) != (wanted or ""):
            now = self._clock.monotonic()
            if now > end:
                state = "does not answer" if seen is None else "still serves what it served before"
                raise Unavailable(f"the ingress {state}; its routes of {workload} are not live")
            if now > remind:
                async with self._sharing:
                    await asyncio.to_thread(self._remind, workload)
                remind = now + _REMIND
            await self._clock.sleep(pause)
            pause = min(pause * 1.5, _LONGEST_PAUSE)

    def _remind(self, workload: str) -> None:
        text = _content(self._path(workload))
        if text is not None:
            self._write(self._path(workload), text)
        common = self._folder / _COMMON
        write_durably(common, common.read_text(), self._drafts)

    async def _seen(self, workload: str) -> str | None:
        """The digest of what the proxy serves for the workload; "" for none; None when it does not answer."""
        path = confirm_path(workload)
        request = f"GET {path} HTTP/1.1\r\nHost: {self._secret}\r\nConnection: close\r\n\r\n"
        try:
            async with asyncio.timeout(3):
                reader, writer = await asyncio.open_connection(self._host, self._port)
                try:
                    writer.write(request.encode())
                    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                finally:
                    writer.close()
                    with contextlib.suppress(OSError):
                        await writer.wait_closed()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            return None
        for line in head.splitlines():
            name, _, value = line.partition(":")
            if name.lower() == HEADER.lower():
                return value.strip()
        return ""

    async def metrics(self) -> bytes:
        # HTTP/1.0: the answer ends with the connection, and comes in one piece.
        request = f"GET {METRICS_PATH} HTTP/1.0\r\nHost: {self._secret}\r\n\r\n"
        try:
            async with asyncio.timeout(10):
                reader, writer = await asyncio.open_connection(self._host, self._port)
                try:
                    writer.write(request.encode())
                    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
                finally:
                    writer.close()
        except (OSError, TimeoutError) as error:
            raise Unavailable("the ingress does not say what it has counted") from error
        if b" 200 " not in head.partition(b"\r\n")[0]:
            raise Unavailable("the ingress counts nothing; it was started without metrics")
        return body

    async def _share(self) -> None:
        """What all files refer to, as it is needed now."""
        async with self._sharing:
            await asyncio.to_thread(self._write_common, self._common())

    def _common(self) -> str:
        shards = sorted(set().union(*self._shards.values()))
        now = self._clock.monotonic()
        self._fading = {node: until for node, until in self._fading.items() if until > now}
        nodes = set(self._fading).union(*self._peers.values())
        mesh = None if self._neighbours is None else self._neighbours.mesh(nodes)
        return render_common(self._secret, shards, self._certificate, mesh)

    def _write_common(self, text: str) -> None:
        path = self._folder / _COMMON
        if _content(path) != text:
            write_durably(path, text, self._drafts)

    def _path(self, workload: str) -> Path:
        return self._folder / f"{workload}.yaml"

    def _lock(self, workload: str) -> asyncio.Lock:
        return self._locks.setdefault(workload, asyncio.Lock())


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_size


def _content(path: Path) -> str | None:
    try:
        return path.read_text()
    except FileNotFoundError:
        return None
