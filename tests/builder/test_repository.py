import ipaddress
import socket
from typing import Any

import pytest
from builder.image_builder import StepFailed
from builder.repository import check
from contracts.credentials import DeployKey, GitToken
from contracts.errors import Unavailable
from contracts.git_address import beside, is_public

NAMES = {
    "public.example": ["93.184.216.34"],
    "private.example": ["10.1.2.3"],
    "both.example": ["93.184.216.34", "127.0.0.1"],
    "six.example": ["2606:2800:220:1::1"],
}


@pytest.fixture(autouse=True)
def names(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name service of our own: what names stand for decides, and tests look nothing up outside."""

    def lookup(host: str, port: int, *_: Any, **__: Any) -> list[Any]:
        if host == "flaky.example":
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        found = NAMES.get(host) or ([host] if host[0].isdigit() or ":" in host else None)
        if found is None:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]

    monkeypatch.setattr(socket, "getaddrinfo", lookup)


async def test_a_public_repository_is_pinned_to_its_address() -> None:
    found = await check("https://public.example/a/b.git", "feature/x", allow_private=False)
    assert (found.git.host, found.address, found.ref) == ("public.example", "93.184.216.34", "feature/x")


REFUSED = [
    "file:///etc/passwd",
    "ext::sh -c touch% /x",
    "ssh://git@public.example/x",
    "git@public.example:x/y",
    "ssh://git@private.example/x",
    "ssh://git:secret@public.example/x",
    "ssh://-oProxyCommand=id/x",
    "ssh://git@-oProxyCommand=id/x",
    "ssh://-l@public.example/x",
    "git@-oProxyCommand=id:x",
    "git@public.example:-x",
    "git@public.example:x'y",
    "ssh://git@public.example/x\n",
    "git://public.example/x",
    "http://public.example/x",
    "https://me:secret@public.example/x",
    "https://public.example",
    "https://public.example/x#y",
    "https://public.example/x y",
    "https://public.example/\\x",
    "https://public.example/x\nhost",
    "https://-oProxyCommand=x/y",
    "https://public.example:x/y",
    "https://nobody.example/x",
    "https://private.example/x",
    "https://both.example/x",
    "https://127.0.0.1/x",
    "https://169.254.169.254/latest",
    "https://[::1]/x",
    "https://[::ffff:10.0.0.1]/x",
    "https://" + "x" * 2000,
]


@pytest.mark.parametrize("url", REFUSED)
async def test_refuses(url: str) -> None:
    with pytest.raises(StepFailed) as failed:
        await check(url, None, allow_private=False)
    assert failed.value.step == "source"


@pytest.mark.parametrize("ref", ["--upload-pack=x", "-x", "a b", "a;b", "", "x" * 300])
async def test_refuses_a_ref_that_is_none(ref: str) -> None:
    with pytest.raises(StepFailed, match="characters"):
        await check("https://public.example/x", ref, allow_private=False)


async def test_private_ones_where_the_operator_lets() -> None:
    assert (await check("http://private.example/x", None, allow_private=True)).address == "10.1.2.3"
    with pytest.raises(StepFailed, match="https"):
        await check("http://public.example/x", None, allow_private=True)
    with pytest.raises(StepFailed):
        await check("file:///x", None, allow_private=True)


async def test_a_name_service_that_is_away_is_nobodys_fault() -> None:
    with pytest.raises(Unavailable):
        await check("https://flaky.example/x", None, allow_private=False)


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("1.1.1.1", True),
        ("10.0.0.1", False),
        ("100.64.0.1", False),
        ("172.31.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("2606:4700::1111", True),
        ("::1", False),
        ("fe80::1", False),
        ("fd00::1", False),
        ("::ffff:192.168.0.1", False),
        ("64:ff9b::a9fe:a9fe", False),
        ("2002:7f00:1::", False),
    ],
)
def test_is_public(address: str, public: bool) -> None:
    assert is_public(ipaddress.ip_address(address)) == public


KEY = DeployKey(private_key="-----BEGIN")
TOKEN = GitToken(host="public.example", user="oauth2", token="secret")


async def test_a_key_is_for_ssh_and_a_token_for_its_host() -> None:
    for url in ("ssh://git@public.example/x", "git@public.example:x/y.git", "ssh://public.example:2222/x"):
        found = await check(url, None, allow_private=False, credential=KEY)
        assert (found.credential, found.address) == (KEY, "93.184.216.34")
        with pytest.raises(StepFailed, match="no deploy key"):
            await check(url, None, allow_private=False, credential=TOKEN)
        with pytest.raises(StepFailed, match="private address"):
            await check(url.replace("public", "private"), None, allow_private=False, credential=KEY)
    assert (
        await check("https://public.example/x", None, allow_private=False, credential=KEY)
    ).credential is None

    async def told(url: str, **more: Any) -> object:
        return (await check(url, None, allow_private=True, credential=TOKEN, **more)).credential

    assert await told("https://public.example/x") == TOKEN
    assert await told("https://PUBLIC.example/x") == TOKEN
    # Another host, another port, and in the clear: it is not told.
    assert await told("https://six.example/x") is None
    assert await told("https://public.example:8443/x") is None
    assert await told("http://private.example/x") is None


@pytest.mark.parametrize(
    ("base", "url", "found"),
    [
        ("https://h/a/b.git", "https://other/x", "https://other/x"),
        ("https://h/a/b.git", "../c.git", "https://h/a/c.git"),
        ("https://h/a/b/", "./c", "https://h/a/b/c"),
        ("https://h/a/b", "../../x/y", "https://h/x/y"),
        ("git@h:a/b.git", "../c.git", "git@h:a/c.git"),
        ("git@h:b.git", "../c.git", "git@h:c.git"),
        ("ssh://git@h:2222/a/b", "../c", "ssh://git@h:2222/a/c"),
    ],
)
def test_what_lies_beside_a_repository(base: str, url: str, found: str) -> None:
    assert beside(base, url) == found


@pytest.mark.parametrize("url", ["../../../../x", "../../../../../../etc/passwd"])
async def test_what_climbs_out_of_its_server_is_no_repository(url: str) -> None:
    with pytest.raises(StepFailed):
        await check(beside("https://public.example/a", url), None, allow_private=False)
