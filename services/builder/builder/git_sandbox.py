"""A repository's newest tree, fetched in a container that is thrown away.

Git talks to a server and unpacks what it is sent: both hostile. So it runs as nobody, without a capability,
with one host it can name and one protocol, and hands back a plain tar. Nothing is ever checked out. What lets
it in is a file of that container alone, and goes with it.
"""

import asyncio
import base64
import io
import shutil
import tarfile
import tempfile
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO

import structlog
from contracts.credentials import DeployKey, GitToken
from contracts.errors import ProviderFailed, Unavailable

from builder import git_script
from builder.engine_api import EngineApi, Refused, tar_of
from builder.git_script import CA, CONFIG, KEY, KNOWN_HOSTS, TREE
from builder.image_builder import Fetched, Repository, Say, StepFailed, Stream
from builder.known_hosts import known_hosts

log = structlog.get_logger("builder.git")

MIB = 1024 * 1024
_NOBODY = 65534
_MEMORY_MB = 1024
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
_SSH = " ".join(
    (
        f"ssh -F /dev/null -i {KEY}",
        *(
            f"-o {option}"
            for option in (
                "BatchMode=yes",
                "IdentitiesOnly=yes",
                "PreferredAuthentications=publickey",
                "StrictHostKeyChecking=yes",
                f"UserKnownHostsFile={KNOWN_HOSTS}",
                "GlobalKnownHostsFile=/dev/null",
                "UpdateHostKeys=no",
                "CheckHostIP=no",
                "ForwardAgent=no",
                "ConnectTimeout=20",
                "ServerAliveInterval=15",
                "User=git",
            )
        ),
    )
)
_TOO_LARGE = 128 + 25  # SIGXFSZ
_LONGEST_LINE = 128 * 1024
_UNREACHABLE = (
    "Failed to connect",
    "Connection timed out",
    "Connection refused",
    "Connection reset",
    "Connection closed by",
    "Network is unreachable",
    "No route to host",
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

    async def fetch(
        self, labels: Mapping[str, str], repository: Repository, into: BinaryIO, say: Say
    ) -> Fetched:
        container = await self._create(labels, repository)
        try:
            async with asyncio.timeout(self.seconds) as limit:
                return await self._fetch(container, repository, into, say)
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise StepFailed(
                "source", f"the repository was not fetched within {self.seconds:g} seconds"
            ) from error
        finally:
            await asyncio.shield(self._remove(container))

    async def _create(self, labels: Mapping[str, str], repository: Repository) -> str:
        git = repository.git
        environment = {
            "HOME": "/tmp",  # noqa: S108
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": CONFIG if isinstance(repository.credential, GitToken) else "/dev/null",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_ALLOW_PROTOCOL": git.scheme,
            "GIT_CONFIG_COUNT": str(len(_OPTIONS)),
        }
        if git.scheme == "ssh":
            environment |= {"GIT_SSH_COMMAND": _SSH, "GIT_SSH_VARIANT": "ssh"}
            environment |= {"HOST": git.host, "PORT": str(git.port), "PLACE": git.place}
        for number, (key, value) in enumerate(_OPTIONS.items()):
            environment |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
        if self.ca_bundle is not None:
            environment["GIT_SSL_CAINFO"] = CA
        memory = _MEMORY_MB * MIB
        pinned = [] if git.host == repository.address else [f"{git.host}:{repository.address}"]
        wanted = {
            "Image": self.image,
            "User": f"{_NOBODY}:{_NOBODY}",
            "Entrypoint": ["/bin/sh", "-c", git_script.SCRIPT, "fetch"],
            "Cmd": [git.url, repository.ref or "HEAD"],
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

    async def _fetch(self, container: str, repository: Repository, into: BinaryIO, say: Say) -> Fetched:
        if files := self._files(repository):
            await self._put(container, files)
        await self.api.call("POST", f"/containers/{container}/start")
        answer: list[str] = []
        words: list[str] = []
        query = {"follow": True, "stdout": True, "stderr": True}
        async with self.api.stream("GET", f"/containers/{container}/logs", query) as chunks:
            async for stream, line in _lines(chunks):
                if stream == "stdout":
                    answer = [*answer[-10:], line]
                else:
                    words = [*words[-20:], line]
                    await say(stream, line)
        code = int((await self.api.call("POST", f"/containers/{container}/wait"))["StatusCode"])
        fetched = git_script.read(answer)
        if code != 0 or fetched is None:
            raise self._failed(code, words, login=repository.credential is not None)
        await self._take(container, into)
        return fetched

    def _files(self, repository: Repository) -> dict[str, bytes]:
        files: dict[str, bytes] = {}
        if self.ca_bundle is not None:
            files[CA] = self.ca_bundle
        match repository.credential:
            case GitToken(user=user, token=token):
                basic = base64.b64encode(f"{user}:{token}".encode()).decode()
                # Not by a redirect, which is not followed, nor in an address, which is told in errors.
                place = f"https://{repository.git.place}/"
                config = f'[http "{place}"]\n\textraHeader = "Authorization: Basic {basic}"\n'
                files[CONFIG] = config.encode()
            case DeployKey(private_key=key, host_keys=given):
                files |= {KEY: key.encode(), KNOWN_HOSTS: known_hosts(given).encode()}
        return files

    def _failed(self, code: int, words: list[str], *, login: bool) -> Exception:
        said = next((line for line in reversed(words) if line.startswith(("fatal:", "error:"))), "")
        if code == _TOO_LARGE or "File too large" in said:
            return StepFailed(
                "source", f"the repository is larger than {self.largest // MIB} MiB", exit_code=code
            )
        if (known := git_script.why(code, words, login=login)) is not None:
            return known
        cause = next((line for line in words for sign in _UNREACHABLE if sign in line), None)
        if code == git_script.UNKNOWN_HOST or cause is not None:
            return ProviderFailed(
                f"the repository's server could not be reached: {cause or 'it shows no host key'}"
            )
        said = said.partition(":")[2].strip() or "Git gave no reason"
        return StepFailed("source", f"the repository could not be fetched: {said}", exit_code=code)

    async def _put(self, container: str, files: Mapping[str, bytes]) -> None:
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as tar:
            for path, data in files.items():
                info = tarfile.TarInfo(path.lstrip("/"))
                info.size, info.mode = len(data), 0o400
                info.uid = info.gid = _NOBODY
                tar.addfile(info, io.BytesIO(data))
        async with self.api.stream(
            "PUT", f"/containers/{container}/archive", {"path": "/"}, tar_of(packed)
        ) as chunks:
            async for _ in chunks:
                continue

    async def _take(self, container: str, into: BinaryIO) -> None:
        """The engine hands out a file wrapped in a tar of its own."""
        with tempfile.TemporaryFile() as wrapped:
            async with self.api.stream("GET", f"/containers/{container}/archive", {"path": TREE}) as chunks:
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
            *lines, rest[stream] = (rest[stream] + data[8 : 8 + size])[:_LONGEST_LINE].split(b"\n")
            data = data[8 + size :]
            for line in lines:
                yield stream, line.decode(errors="replace")
