"""Private repositories and registries: what is kept, what is shown, and what the builder alone is told."""

import base64
from typing import Any

import pytest
from contracts import credentials
from contracts.errors import InvalidInput
from contracts.events import DeploymentRequested
from contracts.queries import CredentialsOf
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from gateway import deploy_keys
from runtime.seal import Seal

from tests.customer import Customer, Refused
from tests.gateway.world import World

HTTPS = "https://git.example.org/shop/app.git"
SSH = "git@git.example.org:shop/app.git"
TOKEN = "ghp_a-token-nobody-may-see"
HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl"

# Made with a passphrase, which nobody knows any more.
LOCKED = """\
-----BEGIN OPENSSH PRIVATE KEY-----
b3BlbnNzaC1rZXktdjEAAAAACmFlczI1Ni1jdHIAAAAGYmNyeXB0AAAAGAAAABBVYox3Tc
9enuIPWNvw4mLnAAAAEAAAAAEAAAAzAAAAC3NzaC1lZDI1NTE5AAAAIL7+aTJ49SNVR5Bt
nR6uKqVOfl/hEaIf+trv4/miMuJyAAAAkCR5449nkxyklxg957rpsMr1veQ4A/4vL2QvLF
KyP8nOJ5weNeBcKbIYwz+vpEX2ckP6p5nHRr6nQaQVCdWQo1Vj2JASmOT4rFQYJKy4MHAf
DW4K6VIQGIdxyrKcTBckXVsgnplGDB16s6MG7GdfSRgdLG0ZK/Rwlo9l8GTWDJs22/2In9
hBH/gNnCHS7url6Q==
-----END OPENSSH PRIVATE KEY-----
"""


async def told(here: World, app: str) -> Any:
    """What the builder can open of the app's Git credential."""
    bus = await here.harness.everybody()
    await bus.start_broker()
    found = await bus.ask(CredentialsOf(workload=app))
    assert found.git is not None
    seal = Seal(here.host.runtime.settings.seal_key_of("credentials"))
    return credentials.read_git(seal.open(found.git, credentials.context(app, "git")))


async def everything(here: World, table: str) -> str:
    from runtime.store import scoped

    rows = await here.host.runtime.store.read(
        scoped(f"select json_agg(r::text)::text from {table} r where scope.organization is not null"), ("*",)
    )
    return str(rows[0][0])


def pem(key: Any, kind: serialization.PrivateFormat, password: bytes | None = None) -> str:
    hidden = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    text: bytes = key.private_bytes(serialization.Encoding.PEM, kind, hidden)
    return text.decode()


async def test_an_app_with_a_git_url_is_deployed_at_once(here: World, customer: Customer) -> None:
    app = await customer.create("at-once", git={"url": HTTPS, "ref": "main"})
    view = await customer.call("GET", f"/api/paas/apps/{app}")
    assert view["status"] == "building"
    request = await here.requested(view["latest_deployment"])
    assert (request.number, request.source.kind) == (1, "git")
    later = await customer.create("not-at-once", git={"url": HTTPS}, deploy=False)
    view = await customer.call("GET", f"/api/paas/apps/{later}")
    assert (view["status"], view["latest_deployment"]) == ("created", None)


async def test_without_credit_nothing_is_made(here: World) -> None:
    poor = await here.customer(credit=None)
    with pytest.raises(Refused) as refused:
        await poor.create("poor", git={"url": HTTPS})
    assert refused.value.status == 402
    assert (await poor.call("GET", "/api/paas/apps"))["apps"] == []


async def test_a_token_is_told_to_the_builder_alone(here: World, customer: Customer) -> None:
    app = await customer.create(
        "with-token", git={"url": HTTPS}, git_credential={"kind": "token", "token": TOKEN}
    )
    assert await told(here, app) == credentials.GitToken(host="git.example.org", user="oauth2", token=TOKEN)
    shown = await customer.call("GET", f"/api/paas/apps/{app}/credentials")
    [credential] = shown["credentials"]
    assert (credential["purpose"], credential["kind"]) == ("git", "token")
    assert (credential["host"], credential["user"]) == ("git.example.org", "oauth2")
    detail = await customer.call("GET", f"/api/paas/apps/{app}")
    events = [e.model_dump_json() for e in await here.harness.events(DeploymentRequested)]
    tables = [await everything(here, table) for table in ("credential", "workload", "deployment", "outbox")]
    assert TOKEN not in repr((shown, detail, events, tables))
    assert TOKEN not in repr(await told(here, app))


async def test_a_token_is_for_one_host(here: World, customer: Customer) -> None:
    app = await customer.create("one-host")
    path = f"/api/paas/apps/{app}/credentials/git"
    with pytest.raises(Refused, match="name the Git server's host"):
        await customer.call("PUT", path, json={"kind": "token", "token": TOKEN})
    for host, kept, user in (
        ("GitLab.com", "gitlab.com", "oauth2"),
        ("git.example.org:8443", "git.example.org:8443", "oauth2"),
        ("bitbucket.org", "bitbucket.org", "x-token-auth"),
    ):
        view = await customer.call("PUT", path, json={"kind": "token", "token": TOKEN, "host": host})
        assert (view["host"], view["user"]) == (kept, user)
    await customer.call(
        "PUT", path, json={"kind": "token", "token": "other", "host": "a.example", "user": "me"}
    )
    assert await told(here, app) == credentials.GitToken(host="a.example", user="me", token="other")
    for bad in (
        {"token": "a b"},
        {"token": ""},
        {"token": "x", "host": "a/b"},
        {"token": "x", "user": "a:b"},
    ):
        with pytest.raises(Refused) as refused:
            await customer.call("PUT", path, json={"kind": "token", "host": "a.example", **bad})
        assert refused.value.status == 422


async def test_a_key_the_platform_makes_waits_for_its_repository(here: World, customer: Customer) -> None:
    app = await customer.create("made-key", git={"url": SSH})
    detail = await customer.call("GET", f"/api/paas/apps/{app}")
    assert (detail["status"], detail["latest_deployment"]) == ("created", None)
    public = detail["deploy_key"]
    assert public.startswith("ssh-ed25519 ")
    assert public.endswith(" berth-made-key")
    key = await told(here, app)
    loaded = serialization.load_ssh_private_key(key.private_key.encode(), password=None)
    assert isinstance(loaded, Ed25519PrivateKey)
    # Host keys are added to the key there is; another one is made when it is taken away.
    path = f"/api/paas/apps/{app}/credentials/git"
    view = await customer.call("PUT", path, json={"kind": "key", "host_keys": [HOST_KEY]})
    assert view["public_key"] == public
    assert view["host_keys"] == [f"git.example.org {HOST_KEY}"]
    assert (await told(here, app)).private_key == key.private_key
    assert (await customer.call("PUT", path, json={"kind": "key"}))["host_keys"] == view["host_keys"]
    assert (await here.requested(await customer.deploy(app))).source.url == SSH  # type: ignore[union-attr]
    await customer.call("DELETE", path)
    with pytest.raises(Refused, match="needs a deploy key"):
        await customer.deploy(app)
    assert (await customer.call("PUT", path, json={"kind": "key"}))["public_key"] != public


def test_a_key_is_read_without_proving_its_numbers() -> None:
    """Whether they are prime takes a core for seconds; here they are not."""
    p, q, e = (1 << 2047) + 7, (1 << 2046) + (1 << 2045) + 1, 65537
    d = 12345
    public = rsa.RSAPublicNumbers(e, p * q)
    numbers = rsa.RSAPrivateNumbers(p, q, d, d % (p - 1), d % (q - 1), 3, public)
    key = numbers.private_key(unsafe_skip_rsa_key_validation=True)
    kept = deploy_keys.brought(pem(key, serialization.PrivateFormat.OpenSSH))
    assert deploy_keys.public_key(kept, "shop").startswith("ssh-rsa ")


def test_a_key_whose_numbers_do_not_fit_each_other_is_refused() -> None:
    # As ASN.1 has them: n, e, d, p, q, d mod p-1, d mod q-1, 1/q mod p; long enough to be taken for a key.
    for odd in ((1 << 1023) + 1, 1):
        numbers = (0, (1 << 2047) + 1, 65537, (1 << 2046) + 1, odd, (1 << 1022) + 1, 3, 3, 3)
        body = b"".join(asn1(2, n.to_bytes(n.bit_length() // 8 + 1, "big")) for n in numbers)
        text = base64.b64encode(asn1(0x30, body)).decode()
        key = f"-----BEGIN RSA PRIVATE KEY-----\n{text}\n-----END RSA PRIVATE KEY-----\n"
        with pytest.raises(InvalidInput, match="that is no private key for SSH"):
            deploy_keys.brought(key)


def asn1(tag: int, content: bytes) -> bytes:
    count = len(content)
    size = count.to_bytes((count.bit_length() + 7) // 8, "big")
    return bytes([tag, *([0x80 | len(size)] if count > 127 else []), *size]) + content


async def test_a_key_that_is_too_long_is_refused(here: World, customer: Customer) -> None:
    app = await customer.create("long-key")
    path = f"/api/paas/apps/{app}/credentials/git"
    with pytest.raises(Refused, match="4096") as refused:
        await customer.call("PUT", path, json={"kind": "key", "private_key": "x" * 4097})
    assert refused.value.status == 422


async def test_a_key_that_is_brought(here: World, customer: Customer) -> None:
    openssh = serialization.PrivateFormat.OpenSSH
    traditional = serialization.PrivateFormat.TraditionalOpenSSL
    own = Ed25519PrivateKey.generate()
    app = await customer.create(
        "own-key",
        git={"url": "ssh://git@git.example.org:2222/shop/app.git"},
        git_credential={
            "kind": "key",
            "private_key": pem(own, openssh).replace("\n", "\r\n"),
            "host_keys": [HOST_KEY, f"other.example {HOST_KEY} a comment"],
        },
    )
    detail = await customer.call("GET", f"/api/paas/apps/{app}")
    assert detail["status"] == "building"
    kept = await told(here, app)
    opened = serialization.load_ssh_private_key(kept.private_key.encode(), password=None)
    assert isinstance(opened, Ed25519PrivateKey)
    assert opened.private_bytes_raw() == own.private_bytes_raw()
    assert kept.host_keys == (f"[git.example.org]:2222 {HOST_KEY}", f"other.example {HOST_KEY}")
    path = f"/api/paas/apps/{app}/credentials/git"
    good = [
        pem(rsa.generate_private_key(65537, 2048), traditional),
        pem(ec.generate_private_key(ec.SECP256R1()), serialization.PrivateFormat.PKCS8),
    ]
    for text in good:
        await customer.call("PUT", path, json={"kind": "key", "private_key": text})
        assert "BEGIN OPENSSH PRIVATE KEY" in (await told(here, app)).private_key
    bad = {
        pem(own, serialization.PrivateFormat.PKCS8, b"secret"): "passphrase",
        LOCKED: "passphrase",
        pem(rsa.generate_private_key(65537, 1024), traditional): "2048",
        "-----BEGIN OPENSSH PRIVATE KEY-----\nnonsense\n-----END OPENSSH PRIVATE KEY-----": "no private key",
        "ssh-ed25519 AAAA": "no private key",
    }
    for text, words in bad.items():
        with pytest.raises(Refused, match=words) as refused:
            await customer.call("PUT", path, json={"kind": "key", "private_key": text})
        assert refused.value.status == 422
        assert text not in str(refused.value)
    for line in (
        "nonsense",
        "@cert-authority * " + HOST_KEY,
        HOST_KEY[:40],
        "ssh-ed25519 AAAA",
        "# " + HOST_KEY,
    ):
        with pytest.raises(Refused, match="no host key"):
            await customer.call("PUT", path, json={"kind": "key", "host_keys": [line]})


async def test_a_log_in_for_a_registry(here: World, customer: Customer) -> None:
    app = await customer.create(
        "from-image",
        image={"reference": "ghcr.io/shop/app:1"},
        registry_login={"user": "shop", "password": TOKEN},
    )
    request = await here.requested((await customer.call("GET", f"/api/paas/apps/{app}"))["latest_deployment"])
    assert request.source.model_dump() == {"kind": "image", "reference": "ghcr.io/shop/app:1"}
    bus = await here.harness.everybody()
    await bus.start_broker()
    found = await bus.ask(CredentialsOf(workload=app))
    assert found.registry is not None
    seal = Seal(here.host.runtime.settings.seal_key_of("credentials"))
    opened = credentials.read_registry(seal.open(found.registry, credentials.context(app, "registry")))
    assert opened == credentials.RegistryLogin(host="ghcr.io", user="shop", password=TOKEN)
    await customer.call("DELETE", f"/api/paas/apps/{app}")
    assert (await bus.ask(CredentialsOf(workload=app))).registry is None
    assert TOKEN not in await everything(here, "credential")


@pytest.mark.promise("R2.4")
async def test_images_from_elsewhere_can_be_switched_off(here: World, customer: Customer) -> None:
    admin = await here.administrator()
    path = "/api/admin/paas/custom-images"
    assert await admin.call("GET", path) == {"enabled": True}
    app = await customer.create("an-image", image={"reference": "nginx"})
    try:
        await admin.call("PUT", path, json={"enabled": False})
        assert await admin.call("GET", path) == {"enabled": False}
        with pytest.raises(Refused, match="switched off") as refused:
            await customer.deploy(app)
        assert refused.value.status == 403
        with pytest.raises(Refused, match="switched off"):
            await customer.create("another-image", image={"reference": "nginx"})
        await customer.create("a-dockerfile", dockerfile={"text": "FROM nginx"})
    finally:
        await admin.call("PUT", path, json={"enabled": True})
    await customer.deploy(app)


@pytest.mark.parametrize(
    "reference",
    ["", "Nginx", "a b", "nginx:", "nginx:-x", "http://x/y", "x@sha256:12", "$(id)", "-x", "../x", "x" * 300],
)
async def test_references_that_are_none(customer: Customer, reference: str) -> None:
    with pytest.raises(Refused) as refused:
        await customer.create("no-image", image={"reference": reference})
    assert refused.value.status == 422


async def test_a_dockerfile_in_the_request(here: World, customer: Customer) -> None:
    text = "FROM nginx:1.27\nRUN true"
    app = await customer.create("only-text", dockerfile={"text": text})
    detail = await customer.call("GET", f"/api/paas/apps/{app}")
    assert detail["source"] == {"kind": "dockerfile", "text": text}
    assert (await here.requested(detail["latest_deployment"])).source.text == text  # type: ignore[union-attr]
    with pytest.raises(Refused, match="not both"):
        await customer.create("too-much", dockerfile={"text": text}, image={"reference": "nginx"})
    with pytest.raises(Refused) as refused:
        await customer.create("too-long", dockerfile={"text": "x" * 20_000})
    assert refused.value.status == 422
