"""The ingress of this machine: a port, and Traefik behind it, told everything through a folder of files.

A change is done when it is seen through the proxy itself. Nothing here removes a route because something else
is missing: only `withdraw` does, and only for the workload it names.
"""

import asyncio
import contextlib
import secrets
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import structlog
from contracts.errors import Unavailable
from runtime.clock import Clock

from node_agent.certificate import certificate
from node_agent.routes_file import (
    HEADER,
    Served,
    confirm_path,
    digest,
    hostnames_in,
    render,
    render_common,
    shards_of,
)
from node_agent.shelf import put_aside, write_durably

log = structlog.get_logger("node-agent.ingress")

_COMMON = "common.yaml"
_FIRST_PAUSE = 0.01
_LONGEST_PAUSE = 0.1
# After that the proxy has missed the change: one file it could not read at that moment is enough.
_REMIND = 2.0


class Proxy(Protocol):
    async def open(self) -> None:
        """Takes over what is there; comes before everything else."""

    async def publish(self, served: Served) -> None:
        """Returns once the proxy serves exactly this; `Unavailable` when it does not come to it."""

    def published(self) -> set[str]:
        """The workloads it has routes of, also from before this agent."""
        ...

    async def withdraw(self, workload: str) -> None:
        """Returns once the proxy knows nothing of the workload."""


class TraefikProxy:
    def __init__(self, folder: Path, url: str, clock: Clock, patience: float = 10.0) -> None:
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
        self._shards: dict[str, set[str]] = {}
        self._confirmed: dict[str, str] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._sharing = asyncio.Lock()

    async def open(self) -> None:
        await asyncio.to_thread(self._take_over)

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
                self._shards[path.stem] = shards_of(hostnames_in(path.read_text()))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                put_aside(path, str(error))
        self._write_common(self._common())

    def _read_secret(self) -> str:
        # A hostname nobody can guess, and that is nobody's: only we learn what the proxy serves.
        try:
            return self._secret_file.read_text().strip()
        except FileNotFoundError:
            self._secret_file.touch(mode=0o600)
            made = f"{secrets.token_hex(16)}.invalid"
            self._secret_file.write_text(made)
            return made

    async def publish(self, served: Served) -> None:
        text, wanted = render(served), digest(served)
        async with self._lock(served.workload):
            self._shards[served.workload] = shards_of(served.hostnames) | self._shards.get(
                served.workload, set()
            )
            await self._share()
            path = self._path(served.workload)
            if await asyncio.to_thread(_content, path) != text:
                await asyncio.to_thread(write_durably, path, text, self._drafts)
            elif self._confirmed.get(served.workload) == wanted:
                return
            await self._confirm(served.workload, wanted)
            self._confirmed[served.workload] = wanted
            self._shards[served.workload] = shards_of(served.hostnames)
            await self._share()

    def published(self) -> set[str]:
        return set(self._shards)

    async def withdraw(self, workload: str) -> None:
        async with self._lock(workload):
            if not self._path(workload).exists():
                return
            self._path(workload).unlink()
            await self._confirm(workload, None)
            self._confirmed.pop(workload, None)
            self._shards.pop(workload, None)
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
        for path in (self._path(workload), self._folder / _COMMON):
            text = _content(path)
            if text is not None:
                write_durably(path, text, self._drafts)

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

    async def _share(self) -> None:
        """What all files refer to, as it is needed now."""
        async with self._sharing:
            await asyncio.to_thread(self._write_common, self._common())

    def _common(self) -> str:
        shards = sorted(set().union(*self._shards.values()))
        return render_common(self._secret, shards, self._certificate)

    def _write_common(self, text: str) -> None:
        path = self._folder / _COMMON
        if _content(path) != text:
            write_durably(path, text, self._drafts)

    def _path(self, workload: str) -> Path:
        return self._folder / f"{workload}.yaml"

    def _lock(self, workload: str) -> asyncio.Lock:
        return self._locks.setdefault(workload, asyncio.Lock())


def _content(path: Path) -> str | None:
    try:
        return path.read_text()
    except FileNotFoundError:
        return None
