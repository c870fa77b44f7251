"""The images every build starts from: one Debian base, and a pair of stack images per runtime.

A base that is there is never asked for again; a stack image carries the fingerprint of what it was made of,
so an unchanged one costs one look and a changed recipe is built anew. `embedded.up` calls it, and the tests.
"""

import io
import os
import re
import shutil
import socket
import subprocess
import tarfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from threading import Event

import docker
from contracts.errors import Unavailable
from docker.errors import APIError, ImageNotFound

from embedded.daemon import environment
from embedded.engine import install

BASE = "berth/base:bookworm"
HUB = ("registry-1.docker.io", 443)
HUB_IMAGE = ("debian", "bookworm-slim")
FINGERPRINT = "berth.recipe"
RECIPES = Path(__file__).resolve().parents[2] / "images"

# What Debian's slim images leave out, here as there also for every package installed later.
_UNWANTED = ("doc", "info", "lintian", "linda", "locale", "man")
_APT_CLEAN = """\
DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb /var/cache/apt/*.bin || true"; };
Acquire::Languages "none";
Apt::AutoRemove::SuggestsImportant "false";
"""


@dataclass(frozen=True)
class Stack:
    """A folder of `deploy/images`: `berth/<name>:<version>`, and `…-build` for what only a build needs."""

    name: str
    version: str
    stages: tuple[str, ...] = ("run", "build")

    def tags(self) -> dict[str, str]:
        """Stage of the Dockerfile -> tag."""
        tag = f"berth/{self.name}:{self.version}"
        return {stage: tag if stage == "run" else f"{tag}-{stage}" for stage in self.stages}


# Without these no build begins.
STACKS = (Stack("git", "bookworm", stages=("run",)), Stack("python", "3.11"))
# These are made while the platform runs already, the small ones first.
FURTHER = (
    Stack("static", "1", stages=("run",)),
    Stack("node", "24"),
    Stack("go", "1.23"),
    Stack("php", "8.2"),
    Stack("ruby", "3.1"),
    Stack("java", "17"),
    Stack("buildpack", "22"),
)
# A build that needs one of them waits while it has a name of this kind, too.
MAKING = "berth/making"
BUNDLES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem")
# A company's own certificates, where its proxy looks into TLS.
CA_BUNDLE = "ca-bundle.pem"


# An image of the platform that another one begins with.
_FROM = re.compile(r"^FROM (berth/\S+)", re.MULTILINE)


def fingerprint(files: Mapping[str, bytes], base_id: str) -> str:
    """PURE. Changes with the recipe and with what it is built on."""
    digest = sha256(base_id.encode())
    for name, content in sorted(files.items()):
        digest.update(f"\0{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:32]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below the folder, by its path in it."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and "__pycache__" not in path.parts)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


class Images:
    def __init__(
        self,
        host: str,
        folder: Path,
        say: Callable[[str], None] | None = None,
        recipes: Path = RECIPES,
        ca_bundle: bytes | None = None,
    ) -> None:
        self._client = docker.DockerClient(base_url=host, timeout=600)
        self._folder = folder.absolute()
        self._say = say or (lambda line: None)
        self._recipes = recipes
        self._ca_bundle = ca_bundle
        self._ending = Event()

    def end(self) -> None:
        """Of further images, no more than the one in the making is made."""
        self._ending.set()

    def close(self) -> None:
        self._client.close()

    def ensure(self) -> None:
        self.ensure_base()
        for stack in STACKS:
            self.ensure_stack(stack)

    def ensure_further(self, stacks: Sequence[Stack] = FURTHER) -> None:
        """Those of every other runtime; a failure of one is told and does not keep back the rest."""
        self.ensure()
        missing = self.missing(stacks)
        marks = {
            stack: [f"{stack.name}-{tag.partition(':')[2]}" for tag in stack.tags().values()]
            for stack in missing
        }
        failures: list[str] = []
        try:
            for mark in (mark for stack in missing for mark in marks[stack]):
                self._client.images.get(BASE).tag(MAKING, mark)
            for stack in missing:
                if self._ending.is_set():
                    break
                try:
                    self.ensure_stack(stack)
                except Unavailable as error:
                    failures.append(error.message)
                self._unmark(marks.pop(stack))
        finally:
            self._unmark(mark for rest in marks.values() for mark in rest)
        if failures:
            raise Unavailable("; ".join(failures))

    def missing(self, stacks: Sequence[Stack] = FURTHER) -> list[Stack]:
        """Those that are not there, or not as their recipe would have them."""
        return [
            stack
            for stack in stacks
            if any(self._fingerprint(tag) != self._wanted(stack.name) for tag in stack.tags().values())
        ]

    def _unmark(self, marks: Iterable[str]) -> None:
        for mark in marks:
            with suppress(ImageNotFound):
                self._client.images.remove(f"{MAKING}:{mark}", noprune=True)

    def ensure_base(self) -> str:
        """The id of the base image, pulled or made when it is not there."""
        known = self._id(BASE)
        if known is not None:
            return known
        if not (reachable(*HUB) and self._pull()):
            self._make_base()
        made = self._id(BASE)
        if made is None:
            raise Unavailable(f"the image {BASE} could not be made")
        return made

    def ensure_stack(self, stack: Stack) -> list[str]:
        files, made_on = self.recipe(stack.name), self._made_on(stack.name)
        return [self.ensure_image(tag, files, made_on, stage) for stage, tag in stack.tags().items()]

    def _made_on(self, name: str) -> str:
        """The ids of the images its Dockerfile begins with."""
        named = sorted(set(_FROM.findall(self.recipe(name)["Dockerfile"].decode())))
        return "".join(self._id(image) or "" for image in named)

    def _wanted(self, name: str) -> str:
        return fingerprint(self.recipe(name), self._made_on(name))

    def recipe(self, name: str) -> dict[str, bytes]:
        """What a folder of `deploy/images` says."""
        folder = self._recipes / name
        files = contents(folder)
        if "Dockerfile" not in files:
            raise Unavailable(f"{folder / 'Dockerfile'} is missing: start from a complete checkout")
        return files

    def ensure_image(self, tag: str, files: Mapping[str, bytes], made_on: str, stage: str = "run") -> str:
        """The id of the image, built when its files or what it was `made_on` changed."""
        wanted = fingerprint(files, made_on)
        if self._fingerprint(tag) != wanted:
            self._say(f"building {tag}")
            extra = {} if self._ca_bundle is None else {CA_BUNDLE: self._ca_bundle}
            self._build({**extra, **files}, stage, tag, wanted)
        return str(self._id(tag))

    def _id(self, tag: str) -> str | None:
        try:
            return str(self._client.images.get(tag).id)
        except ImageNotFound:
            return None

    def _fingerprint(self, tag: str) -> str | None:
        try:
            return self._client.images.get(tag).labels.get(FINGERPRINT)
        except ImageNotFound:
            return None

    def _pull(self) -> bool:
        repository, tag = HUB_IMAGE
        self._say(f"pulling {repository}:{tag}")
        try:
            return self._client.images.pull(repository, tag=tag).tag(*BASE.split(":"))
        except APIError:
            # The hub answers on its port and yet gives no image: a filter on the way, a limit.
            return False

    def _make_base(self) -> None:
        if os.geteuid() != 0:
            raise Unavailable(
                f"Docker Hub is out of reach: run `docker tag` to give a Debian 12 image the name {BASE}, "
                "or start once as root to have it made with debootstrap"
            )
        self._folder.mkdir(parents=True, exist_ok=True)
        log = self._folder / "base.log"
        if shutil.which("debootstrap") is None:
            install(("debootstrap", "debian-archive-keyring"), log)
        self._say("making the base image with debootstrap")
        root = self._folder / "base"
        shutil.rmtree(root, ignore_errors=True)
        try:
            with log.open("ab") as output:
                done = subprocess.run(
                    ["debootstrap", "--variant=minbase", "bookworm", str(root)],
                    env=environment(**_proxies()),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    check=False,
                )
            if done.returncode != 0:
                raise Unavailable(f"debootstrap failed with {done.returncode} (see {log})")
            _slim(root)
            self._import(root)
        finally:
            shutil.rmtree(root, ignore_errors=True)

    def _import(self, root: Path) -> None:
        repository, tag = BASE.split(":")
        argv = ["tar", "--create", "--numeric-owner", "--one-file-system", "--directory", str(root), "."]
        with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as tar:
            self._client.api.import_image_from_stream(
                tar.stdout, repository=repository, tag=tag, changes=['CMD ["bash"]']
            )

    def _build(self, files: Mapping[str, bytes], stage: str, tag: str, mark: str) -> None:
        context = io.BytesIO()
        with tarfile.open(fileobj=context, mode="w") as archive:
            for name, content in files.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
        context.seek(0)
        words: list[str] = []
        try:
            for message in self._client.api.build(
                fileobj=context,
                custom_context=True,
                target=stage,
                tag=tag,
                labels={FINGERPRINT: mark},
                # Known to the builder by name and never kept in the image.
                buildargs=_proxies(),
                rm=True,
                forcerm=True,
                decode=True,
            ):
                words = [*words[-40:], message.get("stream", "")]
                if "error" in message:
                    said = " ".join("".join(words).split())[-400:]
                    raise Unavailable(f"{tag} could not be built: {message['error']}: {said}")
        except APIError as error:
            raise Unavailable(f"{tag} could not be built: {error.explanation}") from error


def stacks_of(names: str) -> tuple[Stack, ...]:
    """The further ones of these names, with spaces between."""
    known = {stack.name: stack for stack in FURTHER}
    unknown = [name for name in names.split() if name not in known]
    if unknown:
        raise Unavailable(f"there is no image of {', '.join(unknown)}; there are: {', '.join(known)}")
    return tuple(stack for name, stack in known.items() if name in names.split())


def trusted() -> bytes | None:
    """The certificates this machine's own tools trust: what is behind a proxy is fetched through it."""
    named = (os.environ.get(name, "") for name in ("BUILDER_CA_BUNDLE", "SSL_CERT_FILE"))
    for path in map(Path, filter(None, (*named, *BUNDLES))):
        if path.is_file():
            return path.read_bytes()
    return None


def reachable(name: str, port: int, seconds: float = 2.0) -> bool:
    """A quick look, because an engine that pulls from nowhere takes most of a minute to say so."""
    try:
        with socket.create_connection((name, port), timeout=seconds):
            return True
    except OSError:
        return False


def _slim(root: Path) -> None:
    share = root / "usr/share"
    lines = [f"path-exclude /usr/share/{name}/*\n" for name in _UNWANTED]
    lines += ["path-include /usr/share/doc/*/copyright\n"]
    (root / "etc/dpkg/dpkg.cfg.d/slim").write_text("".join(lines))
    (root / "etc/apt/apt.conf.d/docker-clean").write_text(_APT_CLEAN)
    for name in _UNWANTED:
        for path in sorted((share / name).rglob("*"), reverse=True):
            if path.name == "copyright" and name == "doc":
                continue
            with suppress(OSError):
                path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    for name in ("var/cache/apt", "var/lib/apt/lists", "var/log"):
        shutil.rmtree(root / name, ignore_errors=True)
        (root / name).mkdir()


def _proxies() -> dict[str, str]:
    names = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")
    return {name: os.environ[name] for name in names if name in os.environ}
