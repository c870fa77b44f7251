"""The port through which a build is carried out: fetch a repository, build a context, keep order afterwards.

Everything untrusted (a repository's server, a repository's content, a build's commands) happens behind it, in
containers that are thrown away. One real implementation, one fake, one suite for both in `tests/ports/`.
"""

from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, BinaryIO, Literal, Protocol

from contracts.credentials import DeployKey, GitToken, RegistryLogin
from contracts.git_address import GitAddress
from contracts.image_reference import ImageReference
from contracts.workload import Commit

Step = Literal["source", "recipe", "build", "image"]
Stream = Literal["stdout", "stderr", "platform"]
# One line of output. Waiting for it slows down who speaks too fast.
Say = Callable[[Stream, str], Awaitable[None]]


class StepFailed(Exception):
    """The customer's to mend, and so never tried again. Whatever else is raised is the platform's fault."""

    def __init__(self, step: Step, message: str, *, exit_code: int | None = None, hint: str | None = None):
        super().__init__(message)
        self.step = step
        # A database that keeps text has no room for this character.
        self.message = message.replace("\0", "")
        self.exit_code = exit_code
        self.hint = hint
        # What was being built, once that is known.
        self.commit = Commit()


@dataclass(frozen=True, slots=True)
class Order:
    """Whose build this is. `attempt` is new each time it is begun."""

    build: str
    attempt: str
    deployment: str
    workload: str
    organization: str
    memory_mb: int
    cpu_millis: int
    disk_mb: int = 8192
    # Names the cache the build may use and nobody else does. None: it begins from nothing.
    cache: str | None = None


@dataclass(frozen=True, slots=True)
class Repository:
    """Checked: `address` is what the host's name stood for when it was found to be no private one, and
    `credential` one that is meant for this host."""

    git: GitAddress
    address: str
    ref: str | None
    credential: GitToken | DeployKey | None = None


@dataclass(frozen=True, slots=True)
class Submodule:
    """`url` as the repository has it: not looked at, and perhaps only meant beside its own."""

    path: str
    commit: str
    url: str


@dataclass(frozen=True, slots=True)
class Fetched:
    commit: str
    author: str
    message: str
    submodules: tuple[Submodule, ...] = ()


@dataclass(frozen=True, slots=True)
class BuiltImage:
    id: str
    size_bytes: int
    ports: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PublishedImage:
    """`reference` is what a node starts."""

    reference: str
    digest: str


@dataclass(frozen=True, slots=True)
class KeptImage:
    """`tags`: its names as this deployment's image; the same image may be another deployment's, too."""

    id: str
    tags: tuple[str, ...]
    digests: tuple[str, ...]
    deployment: str
    workload: str
    made_at: datetime


@dataclass(frozen=True, slots=True)
class FoundImage:
    """One the engine has: `config` as it says it, and the digests of its layers' contents, lowest first."""

    id: str
    config: Mapping[str, Any]
    layers: tuple[str, ...]
    architecture: str
    os: str


@dataclass(frozen=True, slots=True)
class Setup:
    """A program of an image that makes an app, and how it runs; `user` is a user's and a group's number.

    `cache` is the kind of what is at `/cache`: there again in the next build that has the order's cache, and
    for no other. Without one, or without the order's, nothing is kept.
    """

    image: FoundImage
    command: tuple[str, ...]
    user: int
    group: int
    environment: Mapping[str, str]
    cache: str | None


class Workshop(Protocol):
    """A container of the build's sandbox that is set up, works once, and is thrown away."""

    async def put(self, files: BinaryIO) -> None:
        """A plain tar, unpacked at the root with the owners it names; before it works."""
        ...

    async def work(self, say: Say) -> int:
        """Its exit code."""
        ...

    async def take(self, path: str, into: BinaryIO, largest: int) -> bool:
        """A file or folder as a plain tar, after it has worked; False when there is none."""
        ...


class ImageBuilder(Protocol):
    async def fetch(self, order: Order, repository: Repository, into: BinaryIO, say: Say) -> Fetched:
        """Writes the tree as a plain tar, without what is in its submodules."""
        ...

    async def pull(
        self, order: Order, reference: ImageReference, login: RegistryLogin | None, say: Say
    ) -> BuiltImage:
        """An image of somebody else's, as the registry has it now for this log-in."""
        ...

    async def build(
        self,
        order: Order,
        context: BinaryIO,
        dockerfile: str,
        bases: Collection[str],
        say: Say,
        *,
        target: str | None = None,
        arguments: Mapping[str, str] | None = None,
        secrets: Mapping[str, str] | None = None,
        login: RegistryLogin | None = None,
    ) -> BuiltImage:
        """`context` is a plain tar, `bases` the images its Dockerfile names and the customer chose, `target`
        the stage that becomes the image, `arguments` what the ARGs are; `secrets` are for the steps that
        ask for them, and nothing of them stays; `login` is told to the one registry it is for, where bases
        are pulled from."""
        ...

    async def exists(self, reference: str) -> bool | None:
        """Whether the engine has an image, or a registry; None: nobody answers."""
        ...

    async def find(
        self,
        order: Order,
        reference: str,
        say: Say,
        *,
        trusted: bool = False,
        login: RegistryLogin | None = None,
    ) -> FoundImage:
        """An image a build may stand on, pulled if need be. `trusted`: the administrator names it. What the
        app's log-in opens is found by this build alone."""
        ...

    def workshop(self, order: Order, setup: Setup) -> AbstractAsyncContextManager[Workshop]: ...

    async def load(self, order: Order, archive: BinaryIO, image: str, ports: tuple[int, ...]) -> BuiltImage:
        """`archive` as `image_archive` writes it, `image` the id it has by that."""
        ...

    async def publish(self, order: Order, image: BuiltImage, say: Say) -> PublishedImage: ...

    async def discard(self, build: str, but: str | None = None) -> None:
        """Removes the containers of a build, those of the attempt `but` aside."""
        ...

    async def sweep(self, active: Collection[str]) -> None:
        """Removes what builds left that are not `active`: containers."""
        ...

    async def full(self) -> str | None:
        """Why nothing can be built now: there is no room."""
        ...

    async def images(self) -> tuple[KeptImage, ...]:
        """Every image this installation has built and not removed."""
        ...

    async def remove(self, image: KeptImage) -> bool:
        """False: a container uses it."""
        ...

    async def withdraw(self, reference: str) -> None:
        """Removes a published image from where it was published to."""
        ...

    def layers(self) -> frozenset[str]:
        """Of the build cache, what was made or used since this was asked last."""
        ...

    async def weigh(self, layers: Collection[str]) -> dict[str, int]:
        """What each takes of the disk, itself alone."""
        ...

    async def forget(self, layer: str) -> bool:
        """Removes one from the build cache. False: something is built on it."""
        ...

    async def engine(self) -> str:
        """Which engine images and layers are kept in."""
        ...

    async def close(self) -> None: ...
