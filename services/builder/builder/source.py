"""What a build is made of, whatever it comes from: a repository with its submodules, an upload, a Dockerfile.

Credentials are asked from the gateway when they are needed, told to the one server they are for, and kept
nowhere; each submodule is checked, fetched and confined as its repository is. Called by `build.py`.
"""

import asyncio
import contextlib
import io
import tarfile
import tempfile
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import BinaryIO, TypeVar

import structlog
from contracts import credentials, image_reference
from contracts.archive import ArchiveLimits, entries
from contracts.credentials import DeployKey, GitToken, RegistryLogin
from contracts.errors import InvalidInput, TooLarge, Unavailable
from contracts.events import DeploymentRequested
from contracts.git_address import beside
from contracts.model import Model
from contracts.queries import CredentialsOf
from contracts.question import Query
from contracts.workload import Commit, DockerfileSource, GitSource, ImageSource, UploadSource
from runtime.runtime import Runtime
from runtime.seal import Seal

from builder import repository
from builder.bases import opens
from builder.build_log import LogWriter
from builder.image_builder import BuiltImage, Fetched, ImageBuilder, Order, StepFailed, Submodule
from builder.registry import OWN
from builder.settings import BuilderSettings
from builder.upload import download

log = structlog.get_logger("builder.source")

A = TypeVar("A", bound=Model)

_MOST_SUBMODULES = 50
_PATIENCE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Sources:
    runtime: Runtime
    settings: BuilderSettings
    images: ImageBuilder

    async def take(
        self, request: DeploymentRequested, order: Order, archive: BinaryIO, writer: LogWriter
    ) -> Commit:
        """Writes the source as an archive; the commit it is, where it has one."""
        match request.source:
            case GitSource() as source:
                return await self._git(source, order, archive, writer)
            case UploadSource() as source:
                await writer.write("source", "platform", f"Taking the upload {source.source}.")
                await download(self._ask, source, archive)
            case DockerfileSource(text=text):
                await writer.write("source", "platform", "Taking the Dockerfile of the request.")
                _write(archive, request.build.dockerfile, text)
        return Commit()

    async def pull(
        self, request: DeploymentRequested, source: ImageSource, order: Order, writer: LogWriter
    ) -> BuiltImage:
        try:
            reference = image_reference.parse(source.reference)
        except InvalidInput as error:
            raise StepFailed("source", error.message) from error
        login = await self._login(request.workload, writer)
        return await self.images.pull(order, reference, login, writer.of("source"))

    async def login_for(
        self, workload: str, bases: Collection[str], writer: LogWriter
    ) -> RegistryLogin | None:
        """The app's, if one of these images may need it."""
        if all(base.startswith(OWN) for base in bases):
            return None
        login = await self._login(workload, writer)
        return login if login is not None and any(opens(login, base) for base in bases) else None

    async def _ask(self, query: Query[A]) -> A:
        """While the gateway or its database is away the build waits, for as long as a build may take: an
        attempt more would only find the same."""
        while True:
            try:
                return await self.runtime.bus.ask(query)
            except Unavailable as error:
                log.warning("a build waits for an answer", query=query.subject(), error=str(error))
            await self.runtime.clock.sleep(_PATIENCE_SECONDS)

    # --- credentials -----------------------------------------------------------------------------------

    async def _git_credential(self, workload: str, writer: LogWriter) -> GitToken | DeployKey | None:
        sealed = (await self._ask(CredentialsOf(workload=workload))).git
        if sealed is None:
            return None
        found = credentials.read_git(self._seal().open(sealed, credentials.context(workload, "git")))
        if isinstance(found, GitToken):
            writer.hide_also(found.token)
        return found

    async def _login(self, workload: str, writer: LogWriter) -> RegistryLogin | None:
        sealed = (await self._ask(CredentialsOf(workload=workload))).registry
        if sealed is None:
            return None
        context = credentials.context(workload, "registry")
        found = credentials.read_registry(self._seal().open(sealed, context))
        writer.hide_also(found.password)
        return found

    def _seal(self) -> Seal:
        return Seal(self.runtime.settings.seal_key_of("credentials"))

    # --- repositories ----------------------------------------------------------------------------------

    async def _git(self, source: GitSource, order: Order, archive: BinaryIO, writer: LogWriter) -> Commit:
        credential = await self._git_credential(order.workload, writer)
        await writer.write("source", "platform", f"Fetching {source.url} ({source.ref or 'default branch'}).")
        try:
            async with asyncio.timeout(self.settings.git_seconds) as limit:
                fetched = await self._repository(source, credential, order, archive, writer)
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise StepFailed(
                "source", f"the source was not fetched within {self.settings.git_seconds:g} seconds"
            ) from error
        subject = fetched.message.partition("\n")[0]
        await writer.write(
            "source", "platform", f"Commit {fetched.commit} by {fetched.author}: {subject[:200]}"
        )
        return Commit(commit=fetched.commit, commit_author=fetched.author, commit_message=fetched.message)

    async def _repository(
        self,
        source: GitSource,
        credential: GitToken | DeployKey | None,
        order: Order,
        archive: BinaryIO,
        writer: LogWriter,
    ) -> Fetched:
        async def fetch(url: str, ref: str | None, into: BinaryIO) -> Fetched:
            checked = await repository.check(
                url, ref, allow_private=self.settings.allow_private_git, credential=credential
            )
            return await self.images.fetch(order, checked, into, writer.of("source"))

        fetched = await fetch(source.url, source.ref, archive)
        if not fetched.submodules:
            return fetched
        if not source.submodules:
            await writer.write("source", "platform", "Its submodules are left out: none were asked for.")
            return fetched
        with contextlib.ExitStack() as files:
            trees = {"": files.enter_context(tempfile.TemporaryFile())}
            archive.seek(0)
            await asyncio.to_thread(_copy, archive, trees[""])
            limits = self.settings.source_limits(links=True)
            size = trees[""].tell()
            waiting = deque((source.url, "", module) for module in fetched.submodules)
            while waiting:
                parent, above, module = waiting.popleft()
                if len(trees) > _MOST_SUBMODULES:
                    raise StepFailed("source", f"the repository has more than {_MOST_SUBMODULES} submodules")
                path, url = f"{above}{module.path}", beside(parent, _url(module))
                await writer.write("source", "platform", f"Fetching the submodule {path}: {url}")
                trees[path] = files.enter_context(tempfile.TemporaryFile())
                try:
                    inner = await fetch(url, module.commit, trees[path])
                except StepFailed as error:
                    words = f"the submodule {path}: {error.message}"
                    raise StepFailed("source", words, exit_code=error.exit_code, hint=error.hint) from error
                waiting.extend((url, f"{path}/", below) for below in inner.submodules)
                size += trees[path].tell()
                if size > 2 * limits.bytes:
                    raise StepFailed("source", "the repository and its submodules are too large together")
            try:
                await asyncio.to_thread(_join, trees, limits, archive)
            except (InvalidInput, TooLarge) as error:
                raise StepFailed("source", error.message) from error
        return fetched


def _url(module: Submodule) -> str:
    if not module.url:
        raise StepFailed("source", f"the submodule {module.path} has no url in .gitmodules")
    return module.url


def _copy(from_: BinaryIO, into: BinaryIO) -> None:
    while chunk := from_.read(1024 * 1024):
        into.write(chunk)


def _join(trees: Mapping[str, BinaryIO], limits: ArchiveLimits, into: BinaryIO) -> None:
    """One tree of many, each below its path; the whole is looked at again by who reads it."""
    into.seek(0)
    into.truncate()
    with tarfile.open(fileobj=into, mode="w") as joined:
        for path, tree in trees.items():
            for entry in entries(tree, limits):
                # What it was called before would come first.
                entry.info.pax_headers = {}
                entry.info.name = f"{path}/{entry.name}" if path else entry.name
                joined.addfile(entry.info, entry.data)


def _write(archive: BinaryIO, name: str, text: str) -> None:
    body = f"{text.rstrip()}\n".encode()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(body), 0o644
        tar.addfile(info, io.BytesIO(body))
