"""Every way code comes in, through the public door: private Git, an image, a Dockerfile, a zip."""

import io
import zipfile
from collections.abc import AsyncIterator, Iterator
from typing import Any

import docker
import pytest

from tests.customer import Customer
from tests.harness import address_of, eventually
from tests.platform import ADMIN, Platform, platform
from tests.ports.registry import PASSWORD, USER, registry, saved
from tests.ports.ssh_server import SshServer, new_key, ssh_server

SERVER = """\
import http.server, os
class Hello(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f"{word} from user {os.getuid()}".encode())
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("", int(os.environ["PORT"])), Hello).serve_forever()
"""
DOCKERFILE = 'FROM berth/python:3.11\nCOPY app.py /app.py\nCMD ["python3", "/app.py"]\n'


def app(word: str) -> str:
    return f"word = {word!r}\n{SERVER}"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    client = docker.from_env()
    yield address_of(client.networks.get("bridge").attrs)
    client.close()


@pytest.fixture(scope="module")
def server(engine: None, address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshServer]:
    with ssh_server(tmp_path_factory.mktemp("ssh"), address) as found:
        yield found


@pytest.fixture(scope="module")
async def here(server: SshServer, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Platform]:
    async with platform(
        tmp_path_factory.mktemp("sources"),
        "sources",
        GATEWAY_ALLOW_PRIVATE_GIT="true",
        BUILDER_ALLOW_PRIVATE_GIT="true",
        BUILDER_ALLOW_PRIVATE_REGISTRY="true",
        NODE_AGENT_ALLOWED_HOST_PORTS=f"[{server.port}]",
        NODE_AGENT_CPU_MILLIS="8000",
    ) as opened:
        yield opened


@pytest.fixture(scope="module")
async def customer(here: Platform) -> AsyncIterator[Customer]:
    async with here.customer() as administrator, here.customer() as found:
        await administrator.log_in(*ADMIN)
        await found.register("sources@example.org")
        path = f"/api/admin/organizations/{found.organization}/credits"
        await administrator.call("POST", path, json={"amount": "100"})

        async def funded() -> bool:
            return bool((await found.call("GET", "/api/paas/wallet"))["balance"]["micros"])

        await eventually(funded, what="the credit")
        yield found


async def alive(customer: Customer, app: str, words: str) -> Any:
    """The app's newest deployment, which has come to life."""
    detail = await customer.call("GET", f"/api/paas/apps/{app}")
    ended = await customer.ended(detail["latest_deployment"])
    assert ended["status"] == "running", ended["reason"]
    await customer.answers(f"{detail['name']}.localhost", words)
    return ended


@pytest.mark.promise("U8", "U20")
async def test_a_private_repository_over_ssh(customer: Customer, server: SshServer) -> None:
    library = server.repository("library", {"words.py": "word = 'a submodule'\n"})
    server.repository(
        "shop",
        {
            "README.md": "two apps\n",
            "web/Dockerfile": DOCKERFILE.replace("COPY", "COPY lib/words.py /words.py\nCOPY"),
            "web/app.py": f"from words import word\n{SERVER}",
            "other/Dockerfile": "FROM scratch\n",
        },
        submodules={"web/lib": ("../library.git", library)},
    )
    for name in ("library", "shop"):
        server.serve(name)

    # Without a key of one's own the platform makes one; nothing is built before it can be known there.
    git = {"url": server.url("shop"), "ref": "main", "submodules": True}
    app = await customer.create("shop", git=git, build={"folder": "web"})
    detail = await customer.call("GET", f"/api/paas/apps/{app}")
    assert detail["status"] == "created"
    server.admit(detail["deploy_key"])

    # The server is a stranger: it is shown, and trusted when its key has been sent back.
    failed = await customer.ended(await customer.deploy(app))
    assert failed["status"] == "failed"
    assert failed["failed_step"] == "source"
    assert server.host_key in failed["reason"]
    key = {"kind": "key", "host_keys": [server.host_key]}
    await customer.call("PUT", f"/api/paas/apps/{app}/credentials/git", json=key)
    await customer.deploy(app)
    ended = await alive(customer, app, "a submodule from user 1")
    assert ended["commit_author"] == "Tests"
    assert ended["commit_message"] == "first"
    assert len(ended["commit"]) == 40

    # With a key that is brought, it is built at once, and its progress streams.
    private, public = new_key()
    server.admit(public)
    app = await customer.create(
        "shop-too",
        git=git,
        build={"folder": "web"},
        git_credential={"kind": "key", "private_key": private, "host_keys": [server.host_key]},
    )
    deployment = (await customer.call("GET", f"/api/paas/apps/{app}"))["latest_deployment"]
    lines = [data["text"] async for kind, data in customer.log(deployment) if "text" in data]
    assert any(line.startswith("Fetching the submodule web/lib") for line in lines)
    assert any(line.startswith("Commit ") for line in lines)
    assert not any("PRIVATE KEY" in line for line in lines)
    await alive(customer, app, "a submodule from user 1")


async def test_an_image_from_a_private_registry(customer: Customer) -> None:
    """Of root's, and started as nobody's."""
    client = docker.from_env()
    try:
        name = "berth-test/elsewhere:1"
        made = io.BytesIO()
        script = app("an image").replace("\n", "\\n").replace('"', '\\"')
        text = f'FROM berth/python:3.11\nUSER root\nCMD ["python3", "-c", "{script}"]\n'
        client.images.build(fileobj=io.BytesIO(text.encode()), tag=name, rm=True)
        for chunk in client.images.get(name).save(named=True):
            made.write(chunk)
        client.images.remove(name)
    finally:
        client.close()
    with registry(saved(made.getvalue())) as reference:
        created = await customer.create(
            "imported",
            image={"reference": reference},
            registry_login={"user": USER, "password": PASSWORD},
        )
        ended = await alive(customer, created, "an image from user 1")
    assert ended["recipe"] == "image"
    assert ended["source"] == {"kind": "image", "reference": reference}
    assert ended["size_bytes"] > 1_000_000


@pytest.mark.promise("R8.4")
async def test_a_dockerfile_and_a_zip(customer: Customer) -> None:
    script = app("a text").replace("\n", "\\n").replace('"', '\\"')
    begin = "print('I begin', flush=True)\\n"
    text = f'FROM berth/python:3.11\nCMD ["python3", "-c", "{begin}{script}"]'
    created = await customer.create("texted", dockerfile={"text": text})
    ended = await alive(customer, created, "a text from user 1")
    assert (ended["recipe"], ended["log_tail"]) == ("dockerfile", ["I begin"])

    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("shop/Dockerfile", DOCKERFILE)
        archive.writestr("shop/app.py", app("a zip"))
    created = await customer.create("zipped")
    await customer.deploy(created, made.getvalue())
    await alive(customer, created, "a zip from user 1")
