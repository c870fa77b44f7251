"""A repository's newest tree, fetched in a container that is thrown away.

Git talks to a server and unpacks what it is sent: both hostile. So it runs as nobody, without a capability,
with one host it can name and one protocol, and hands back a plain tar. Nothing is ever checked out.
"""

import asyncio
import io
import shutil
import tarfile
import tempfile
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO

import structlog
from contracts.errors import ProviderFailed, Unavailable

from builder.engine_api import EngineApi, Refused, tar_of
from builder.image_builder import Repository, Say, StepFailed, Stream

log = structlog.get_logger("builder.git")

MIB = 1024 * 1024
_NOBODY = "65534:65534"
_MEMORY_MB = 1024
_CA = "/tmp/ca.pem"  # noqa: S108
_TREE = "/tmp/source.tar"  # noqa: S108

# Runs inside the container, where a shell is as confined as Git is; $1 is the address, $2 the ref.
# GitLab answers an address without `.git` with a redirect, which is not followed: it is tried with one.
_SCRIPT = """\
set -eu
git init --quiet --bare /tmp/repository
cd /tmp/repository
printf '* -export-ignore -export-subst\\n' > info/attributes
fetch() { git fetch --quiet --depth=1 --no-tags --no-recurse-submodules -- "$1" "$2"; }
fetch "$1" "$2" || { case "$1" in *.git) exit 128;; esac; fetch "$1.git" "$2"; }
git rev-parse --verify --quiet 'FETCH_HEAD^{commit}'
git archive --format=tar --output=/tmp/source.tar FETCH_HEAD
"""
_OPTIONS = {
    "core.hooksPath": "/dev/null",
    "core.fsmonitor": "false",
    "credential.helper": "",
    "http.followRedirects": "false",
    "fetch.unpackLimit": "1",
    "transfer.bundleURI": "false",
    "gc.auto": "0",
    "init.defaultBranch": "main",
}
_TOO_LARGE = 128 + 25  # SIGXFSZ
_UNREACHABLE = (
    "Failed to connect",
    "Connection timed out",
    "Connection refused",
    "Connection reset",
    "Could not resolve",
    "early EOF",
    "The requested URL returned error: 5",
)


@dataclass(frozen=True, slots=True)
class GitSandbox:
    api: EngineApi
    network: str
    image: str
    seconds: float
    pids: int
    largest: int
    ca_bundle: bytes | None

    async def fetch(self, labels: Mapping[str, str], repository: Repository, into: BinaryIO, say: Say) -> str:
        container = await self._create(labels, repository)
        try:
            async with asyncio.timeout(self.seconds) as limit:
                return await self._fetch(container, into, say)
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise StepFailed(
                "source", f"the repository was not fetched within {self.seconds:g} seconds"
            ) from error
        finally:
            await asyncio.shield(self._remove(container))

    async def _create(self, labels: Mapping[str, str], repository: Repository) -> str:
        secure = repository.url.startswith("https://")
        environment = {
            "HOME": "/tmp",  # noqa: S108
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": "/dev/null",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_ALLOW_PROTOCOL": "https" if secure else "http",
            "GIT_CONFIG_COUNT": str(len(_OPTIONS)),
        }
        for number, (key, value) in enumerate(_OPTIONS.items()):
            environment |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
        if self.ca_bundle is not None:
            environment["GIT_SSL_CAINFO"] = _CA
        memory = _MEMORY_MB * MIB
        pinned = [] if repository.host == repository.address else [f"{repository.host}:{repository.address}"]
        wanted = {
            "Image": self.image,
            "User": _NOBODY,
            "Entrypoint": ["/bin/sh", "-c", _SCRIPT, "fetch"],
            "Cmd": [repository.url, repository.ref or "HEAD"],
            "Env": [f"{name}={value}" for name, value in environment.items()],
            "Labels": dict(labels),
            "HostConfig": {
                "NetworkMode": self.network,
                # It can look up no name: the one it needs is given, with the address that was checked.
                "Dns": ["127.0.0.1"],
                "ExtraHosts": pinned,
                "CapDrop": ["ALL"],
                "SecurityOpt": ["no-new-privileges"],
                "Memory": memory,
                "MemorySwap": memory,
                "NanoCpus": 1_000_000_000,
                "PidsLimit": self.pids,
                # Also the disk's limit: nothing is written but one pack and one tar.
                "Ulimits": [{"Name": "fsize", "Soft": self.largest, "Hard": self.largest}],
                "LogConfig": {"Type": "json-file", "Config": {"max-size": "1m", "max-file": "1"}},
            },
        }
        try:
            created = await self.api.call("POST", "/containers/create", body=wanted)
        except Refused as error:
            if error.status == 404:
                raise ProviderFailed(
                    f"the image {self.image} is missing on the engine; make it, or set BUILDER_GIT_IMAGE"
                ) from error
            raise
        return str(created["Id"])

    async def _fetch(self, container: str, into: BinaryIO, say: Say) -> str:
        if self.ca_bundle is not None:
            await self._put(container, _CA, self.ca_bundle)
        await self.api.call("POST", f"/containers/{container}/start")
        commit = ""
        words: list[str] = []
        query = {"follow": True, "stdout": True, "stderr": True}
        async with self.api.stream("GET", f"/containers/{container}/logs", query) as chunks:
            async for stream, line in _lines(chunks):
                if stream == "stdout":
                    commit = line
                else:
                    words = [*words[-20:], line]
                    await say(stream, line)
        code = int((await self.api.call("POST", f"/containers/{container}/wait"))["StatusCode"])
        if code != 0 or not commit:
            raise self._failed(code, words)
        await self._take(container, into)
        return commit

    def _failed(self, code: int, words: list[str]) -> Exception:
        said = next((line for line in reversed(words) if line.startswith(("fatal:", "error:"))), "")
        if code == _TOO_LARGE or "File too large" in said:
            return StepFailed(
                "source", f"the repository is larger than {self.largest // MIB} MiB", exit_code=code
            )
        if any(sign in said for sign in _UNREACHABLE):
            return ProviderFailed(f"the repository's server could not be reached: {said}")
        said = said.partition(":")[2].strip() or "Git gave no reason"
        return StepFailed("source", f"the repository could not be fetched: {said}", exit_code=code)

    async def _put(self, container: str, path: str, data: bytes) -> None:
        folder, _, name = path.rpartition("/")
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as tar:
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o444
            tar.addfile(info, io.BytesIO(data))
        async with self.api.stream(
            "PUT", f"/containers/{container}/archive", {"path": folder}, tar_of(packed)
        ) as chunks:
            async for _ in chunks:
                continue

    async def _take(self, container: str, into: BinaryIO) -> None:
        """The engine hands out a file wrapped in a tar of its own."""
        with tempfile.TemporaryFile() as wrapped:
            async with self.api.stream("GET", f"/containers/{container}/archive", {"path": _TREE}) as chunks:
                async for chunk in chunks:
                    await asyncio.to_thread(wrapped.write, chunk)
            await asyncio.to_thread(_unwrap, wrapped, into)

    async def _remove(self, container: str) -> None:
        try:
            await self.api.call("DELETE", f"/containers/{container}", {"force": True, "v": True})
        except (Refused, Unavailable) as error:
            log.warning("a fetch's container stays for the janitor", container=container, error=str(error))


def _unwrap(wrapped: BinaryIO, into: BinaryIO) -> None:
    wrapped.seek(0)
    with tarfile.open(fileobj=wrapped, mode="r:") as tar:
        member = tar.next()
        tree = tar.extractfile(member) if member is not None else None
        if tree is None:
            raise ProviderFailed("the engine handed out no tree")
        shutil.copyfileobj(tree, into, MIB)


async def _lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[tuple[Stream, str]]:
    """The engine's multiplexed output: frames of one stream each, with a header of eight bytes."""
    data = b""
    rest: dict[Stream, bytes] = {"stdout": b"", "stderr": b""}
    async for chunk in chunks:
        data += chunk
        while len(data) >= 8 and len(data) >= 8 + (size := int.from_bytes(data[4:8], "big")):
            stream: Stream = "stderr" if data[0] == 2 else "stdout"
            *lines, rest[stream] = (rest[stream] + data[8 : 8 + size]).split(b"\n")
            data = data[8 + size :]
            for line in lines:
                yield stream, line.decode(errors="replace")
