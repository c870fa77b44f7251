"""Private repositories on real servers, over HTTPS and SSH: who is let in, who is not, and what is said."""

import io
import tarfile
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from builder.git_sandbox import GitSandbox
from builder.image_builder import Fetched, Repository, StepFailed, Submodule
from contracts.credentials import DeployKey, GitToken
from contracts.errors import ProviderFailed
from contracts.git_address import parse

from tests.ports.git_server import GitServer, git_server
from tests.ports.image_builders import FILES, DockerHands, Said, docker_hands, new_order
from tests.ports.ssh_server import SshServer, new_key, ssh_server

TOKEN = "a-token-nobody-may-see"
PRIVATE, PUBLIC = new_key()


@pytest.fixture(scope="module")
async def docker(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[DockerHands]:
    async with docker_hands(tmp_path_factory.mktemp("git"), prefix="bldpriv") as hands:
        yield hands


@pytest.fixture(scope="module")
def https(docker: DockerHands, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GitServer]:
    address = docker.repository.git.host
    login = f"oauth2:{TOKEN}"
    with git_server(tmp_path_factory.mktemp("https"), address, secure=True, login=login) as server:
        server.repository("app", FILES)
        yield server


@pytest.fixture(scope="module")
def ssh(docker: DockerHands, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshServer]:
    with ssh_server(tmp_path_factory.mktemp("ssh"), docker.repository.git.host) as server:
        server.repository("app", FILES)
        server.serve("app")
        server.admit(PUBLIC)
        yield server


class Fetching:
    def __init__(self, docker: DockerHands, https: GitServer) -> None:
        # The same sandbox, that trusts the server's certificate.
        self._git = GitSandbox(
            docker.api,
            network=docker.builder.network,
            image="berth/git:bookworm",
            seconds=30,
            pids=200,
            largest=20 * 1024 * 1024,
            ca_bundle=https.certificate,
        )
        self.said = Said()
        self.tree = io.BytesIO()

    async def of(self, url: str, credential: Any = None, ref: str | None = "main") -> Fetched:
        git = parse(url)
        self.tree = io.BytesIO()
        return await self._git.fetch(
            {"berth.build": new_order().build},
            Repository(git, git.host, ref, credential),
            self.tree,
            self.said,
        )

    def files(self) -> set[str]:
        self.tree.seek(0)
        with tarfile.open(fileobj=self.tree) as tar:
            return {member.name for member in tar if member.isfile()}


@pytest.fixture
async def fetching(docker: DockerHands, https: GitServer) -> Fetching:
    return Fetching(docker, https)


# --- HTTPS --------------------------------------------------------------------------------------------


async def test_a_token_opens_a_private_repository(fetching: Fetching, https: GitServer) -> None:
    url = f"{https.url}/app.git"
    token = GitToken(host=parse(url).place, user="oauth2", token=TOKEN)
    fetched = await fetching.of(url, token)
    assert fetching.files() == set(FILES)
    assert (fetched.author, fetched.message) == ("Tests", "first")
    assert TOKEN not in repr(fetching.said.lines)


async def test_without_a_token_and_with_a_wrong_one(fetching: Fetching, https: GitServer) -> None:
    url = f"{https.url}/app.git"
    with pytest.raises(StepFailed, match="not there, or is private") as failed:
        await fetching.of(url)
    assert "credentials/git" in (failed.value.hint or "")
    wrong = GitToken(host=parse(url).place, user="oauth2", token="another-one")
    with pytest.raises(StepFailed, match="does not accept the app's token"):
        await fetching.of(url, wrong)
    assert "another-one" not in repr(fetching.said.lines)


async def test_a_token_follows_no_redirect(fetching: Fetching, https: GitServer, docker: DockerHands) -> None:
    """Not to a private address, and not to another server: the token stays where it belongs."""
    docker.server.asked.clear()
    https.moved = f"{docker.server.url}/app.git"
    token = GitToken(host=parse(https.url + "/x").place, user="oauth2", token=TOKEN)
    with pytest.raises(StepFailed, match="has moved"):
        await fetching.of(f"{https.url}/moved/app.git", token)
    assert docker.server.asked == []


async def test_a_server_nobody_vouches_for(docker: DockerHands, https: GitServer) -> None:
    git = parse(f"{https.url}/app.git")
    https.asked.clear()
    token = GitToken(host=git.place, user="oauth2", token=TOKEN)
    with pytest.raises(StepFailed, match="certificate"):
        await docker.builder.fetch(new_order(), Repository(git, git.host, None, token), io.BytesIO(), Said())
    assert https.asked == []


# --- SSH ----------------------------------------------------------------------------------------------


async def test_a_deploy_key_opens_a_private_repository(fetching: Fetching, ssh: SshServer) -> None:
    key = DeployKey(private_key=PRIVATE, host_keys=(ssh.known,))
    fetched = await fetching.of(ssh.url("app"), key, None)
    assert fetching.files() == set(FILES)
    assert (await fetching.of(ssh.url("app"), key, fetched.commit)).commit == fetched.commit
    assert "PRIVATE KEY" not in repr(fetching.said.lines)


async def test_a_key_the_server_does_not_know(fetching: Fetching, ssh: SshServer) -> None:
    key = DeployKey(private_key=new_key()[0], host_keys=(ssh.known,))
    with pytest.raises(StepFailed, match="does not accept the app's deploy key") as failed:
        await fetching.of(ssh.url("app"), key)
    assert "public key" in (failed.value.hint or "")


async def test_a_host_that_is_not_known_is_shown_and_not_trusted(fetching: Fetching, ssh: SshServer) -> None:
    before = ssh.said()
    with pytest.raises(StepFailed, match="host key is not known") as failed:
        await fetching.of(ssh.url("app"), DeployKey(private_key=PRIVATE))
    # What is shown is what is to be sent back, once somebody has looked at it.
    assert f'"host_keys": ["{ssh.host_key}"]' in (failed.value.hint or "")
    assert "Accepted publickey" not in ssh.said().removeprefix(before)
    known = DeployKey(private_key=PRIVATE, host_keys=(f"[{ssh.address}]:{ssh.port} {ssh.host_key}",))
    await fetching.of(ssh.url("app"), known)


async def test_a_host_key_that_has_changed_stops_everything(fetching: Fetching, ssh: SshServer) -> None:
    key = DeployKey(private_key=PRIVATE, host_keys=(ssh.known,))
    ssh.start()
    with pytest.raises(StepFailed, match="not the one it is known by"):
        await fetching.of(ssh.url("app"), key)
    assert "Accepted publickey" not in ssh.said()
    await fetching.of(ssh.url("app"), DeployKey(private_key=PRIVATE, host_keys=(ssh.known,)))


async def test_a_server_that_is_away_is_nobodys_fault(fetching: Fetching, ssh: SshServer) -> None:
    key = DeployKey(private_key=PRIVATE, host_keys=(f"[{ssh.address}]:1 {ssh.host_key}",))
    with pytest.raises(ProviderFailed, match="could not be reached"):
        await fetching.of(f"ssh://git@{ssh.address}:1/srv/app.git", key)


async def test_a_key_opens_nothing_but_git(fetching: Fetching, ssh: SshServer) -> None:
    key = DeployKey(private_key=PRIVATE, host_keys=(ssh.known,))
    with pytest.raises(StepFailed):
        await fetching.of(f"ssh://git@{ssh.address}:{ssh.port}/etc/passwd", key)
    with pytest.raises(StepFailed):
        await fetching.of(ssh.url("no-such"), key)


# --- submodules ---------------------------------------------------------------------------------------


async def test_submodules_are_told_and_not_fetched(fetching: Fetching, ssh: SshServer) -> None:
    commit = "1" * 40
    ssh.repository(
        "parent", {"a": "1"}, submodules={"lib/one": ("../app.git", commit), "two": ("ext::sh -c id", commit)}
    )
    ssh.serve("parent")
    fetched = await fetching.of(ssh.url("parent"), DeployKey(private_key=PRIVATE, host_keys=(ssh.known,)))
    assert fetched.submodules == (
        Submodule("lib/one", commit, "../app.git"),
        Submodule("two", commit, "ext::sh -c id"),
    )
    assert fetching.files() == {"a", ".gitmodules"}
