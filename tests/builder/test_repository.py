import ipaddress
import socket
from typing import Any

import pytest
from builder.image_builder import StepFailed
from builder.repository import check, is_public
from contracts.errors import Unavailable
from contracts.workload import GitSource

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
    found = await check(GitSource(url="https://public.example/a/b.git", ref="feature/x"), allow_private=False)
    assert (found.host, found.address, found.ref) == ("public.example", "93.184.216.34", "feature/x")


REFUSED = [
    "file:///etc/passwd",
    "ext::sh -c touch% /x",
    "ssh://git@public.example/x",
    "git@public.example:x/y",
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
        await check(GitSource(url=url), allow_private=False)
    assert failed.value.step == "source"


@pytest.mark.parametrize("ref", ["--upload-pack=x", "-x", "a b", "a;b", "", "x" * 300])
async def test_refuses_a_ref_that_is_none(ref: str) -> None:
    with pytest.raises(StepFailed, match="characters"):
        await check(GitSource(url="https://public.example/x", ref=ref), allow_private=False)


async def test_private_ones_where_the_operator_lets() -> None:
    assert (await check(GitSource(url="http://private.example/x"), allow_private=True)).address == "10.1.2.3"
    with pytest.raises(StepFailed, match="https"):
        await check(GitSource(url="http://public.example/x"), allow_private=True)
    with pytest.raises(StepFailed):
        await check(GitSource(url="file:///x"), allow_private=True)


async def test_a_name_service_that_is_away_is_nobodys_fault() -> None:
    with pytest.raises(Unavailable):
        await check(GitSource(url="https://flaky.example/x"), allow_private=False)


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
