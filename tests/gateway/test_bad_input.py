"""Bad input: a 4xx in the one shape that says what to do, and nothing stored, nothing said to anybody."""

import gzip
import io
import tarfile
from collections.abc import AsyncIterator
from typing import Any

import pytest
from contracts.api import Failure
from contracts.shapes import WORDS
from runtime.store import scoped

from tests.customer import Customer, archive
from tests.gateway.test_plans import EVERY
from tests.gateway.world import SOURCE, World, world
from tests.harness import Servers

GOOD = {"name": "fine-name", "plan": "small"}
GIT = "https://git.example.org/shop/app.git"


async def refused(
    here: World, customer: Customer, status: int, method: str, path: str, **request: Any
) -> dict[str, Any]:
    before = await trace(here, customer)
    headers = customer.headers | request.pop("headers", {})
    response = await customer.client.request(method, path, headers=headers, **request)
    assert response.status_code == status, response.text
    failure = Failure.model_validate_json(response.content).error
    assert failure.message
    assert set(response.json()) == {"error"}
    assert set(response.json()["error"]) == {"code", "message", "details"}
    assert await trace(here, customer) == before
    return response.json()["error"]  # type: ignore[no-any-return]


async def trace(here: World, customer: Customer) -> Any:
    """What a request can leave behind."""
    await here.harness.settle()
    store = here.host.runtime.store
    kept = await store.read(
        scoped(
            "select (select count(*) from workload), (select count(*) from deployment), "
            "(select count(*) from source), (select count(*) from source_part), "
            "(select json_agg(w::text)::text from workload w where w.state <> 'deleted') "
            "where scope.organization is not null"
        ),
        (customer.organization,),
    )
    info = await here.harness.client.jetstream().stream_info("EVENTS")
    return kept, info.state.last_seq


@pytest.fixture(scope="module")
async def here(running: Servers, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    limits = {"upload_bytes": 2_000_000, "unpacked_bytes": 8_000_000, "upload_files": 200}
    async with world(running, tmp_path_factory.mktemp("gateway"), **limits) as opened:
        yield opened


@pytest.fixture(scope="module")
async def customer(here: World) -> Customer:
    return await here.customer()


@pytest.fixture(scope="module")
async def app(here: World, customer: Customer) -> str:
    return await customer.create("bystander")


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"name": name}, id=f"name {name[:20]!r}")
        for name in (
            "",
            "a",
            "-ab",
            "ab-",
            "Ab",
            "a_b",
            "a.b",
            "a b",
            "ä-b",
            "a" * 41,
            "ab\ncd",
            "../ab",
            "a;rm",
            "ab\u0000",
        )
    ]
    + [
        pytest.param({"name": 7}, id="a number for a name"),
        pytest.param({"name": None}, id="null for a name"),
        pytest.param({"name": ["ab"]}, id="a list for a name"),
        pytest.param({"plan": "huge"}, id="an unknown plan"),
        pytest.param({"plan": {}}, id="an object for a plan"),
        pytest.param({"region": "moon"}, id="an unknown region"),
        pytest.param({"replicas": 0}, id="no replica"),
        pytest.param({"replicas": 5}, id="more replicas than the plan has"),
        pytest.param({"replicas": 10**9}, id="a flood of replicas"),
        pytest.param({"replicas": "many"}, id="a word for replicas"),
        pytest.param({"replicas": 1.5}, id="a part of a replica"),
        pytest.param({"port": 0}, id="port 0"),
        pytest.param({"port": 65536}, id="port 65536"),
        pytest.param({"health": {"kind": "exec"}}, id="an unknown health check"),
        pytest.param({"health": {"path": "health"}}, id="a health path without a slash"),
        pytest.param({"health": {"retries": 0}}, id="no retry"),
        pytest.param({"health": {"kind": "command", "command": ["x" * 999] * 5}}, id="a long health command"),
        pytest.param({"health": {"kind": "command", "command": ["a\x01"]}}, id="a health command of no text"),
        pytest.param({"health": {"interval_seconds": "NaN"}}, id="a time that is none"),
        pytest.param({"health": {"kind": "command", "command": ["a", "\0"]}}, id="NUL in a list"),
        pytest.param({"build": {"arguments": {"A": "\0"}}}, id="NUL in a map"),
        pytest.param({"build": {"dockerfile": "../Dockerfile"}}, id="a Dockerfile outside"),
        pytest.param({"build": {"dockerfile": "/etc/passwd"}}, id="an absolute Dockerfile"),
        pytest.param({"build": {"runtime": "cobol"}}, id="an unknown runtime"),
        pytest.param({"build": {"start_command": "a\u0000b"}}, id="text that Postgres cannot hold"),
        pytest.param({"image": "evil:latest"}, id="an unknown field"),
        pytest.param({"health": {"command": "id"}}, id="an unknown field inside"),
        pytest.param({"organization": "org_00000000000000000000000000"}, id="an organization in the body"),
        pytest.param({"git": {"url": GIT, "ref": "--upload-pack=id"}}, id="a ref that is an option"),
        pytest.param({"git": {"url": GIT, "ref": "main; id"}}, id="a ref with a command"),
    ],
)
async def test_an_app_that_cannot_be(here: World, customer: Customer, change: dict[str, Any]) -> None:
    await refused(here, customer, 422, "POST", "/api/paas/apps", json={**GOOD, **change})


@pytest.mark.parametrize(
    "url",
    [
        "",
        "file:///etc/passwd",
        "ext::sh -c id",
        "ext::https://git.example.org/a/b",
        "http://git.example.org/a/b",
        "ssh://git:secret@git.example.org/a/b",
        "ssh://-oProxyCommand=id/a/b",
        "ssh://git@-oProxyCommand=id/a/b",
        "ssh://-l@git.example.org/a/b",
        "ssh://git@git.example.org",
        "ssh://git@git.example.org/`id`",
        "ssh://git@git.example.org/a'b",
        "ssh://git@10.0.0.1/a/b",
        "git@10.0.0.1:a/b.git",
        "git@inside.example.org:a/b.git",
        "git@git.example.org:-a/b.git",
        "git@-oProxyCommand=id:a/b.git",
        "git.example.org:a/b.git",
        "git://git.example.org/a/b",
        "ftp://git.example.org/a/b",
        "/srv/repository",
        "../repository",
        "https://user:secret@git.example.org/a/b",
        "https://token@git.example.org/a/b",
        "https://git.example.org/a b",
        "https://git.example.org/a/b --upload-pack=id",
        "https://git.example.org/a\n/b",
        "https://git.example.org/a/b?x=1",
        "https://git.example.org/a/b#x",
        "https://git.example.org/`id`",
        'https://git.example.org/"a',
        "https://git.example.org\\@10.0.0.1/a/b",
        "https://git.example.org:99999/a/b",
        "https://git.example.org",
        "https://git.example.org/",
        "https:///a/b",
        "https://",
        "--upload-pack=id",
        "https://127.0.0.1/a/b",
        "https://localhost/a/b",
        "https://127.1/a/b",
        "https://2130706433/a/b",
        "https://0x7f000001/a/b",
        "https://0/a/b",
        "https://0.0.0.0/a/b",
        "https://10.0.0.1/a/b",
        "https://172.16.0.1/a/b",
        "https://192.168.0.1/a/b",
        "https://100.64.0.1/a/b",
        "https://169.254.169.254/latest/meta-data",
        "https://224.0.0.1/a/b",
        "https://255.255.255.255/a/b",
        "https://[::1]/a/b",
        "https://[::]/a/b",
        "https://[fe80::1]/a/b",
        "https://[fd00::1]/a/b",
        "https://[::ffff:10.0.0.1]/a/b",
        "https://[::ffff:169.254.169.254]/a/b",
        "https://[64:ff9b::7f00:1]/a/b",
        "https://[2002:7f00:1::]/a/b",
        "https://inside.example.org/a/b",
        "https://both.example.org/a/b",
        "https://nowhere.example.org/a/b",
        "https://xn--\u00fc.example.org/a/b",
        f"https://git.example.org/{'a' * 2000}",
    ],
)
async def test_a_git_url_that_is_not_fetched(here: World, customer: Customer, app: str, url: str) -> None:
    await refused(here, customer, 422, "POST", "/api/paas/apps", json={**GOOD, "git": {"url": url}})
    await refused(here, customer, 422, "POST", f"/api/paas/apps/{app}/deploy", json={"git": {"url": url}})


async def test_a_git_url_that_is(here: World, customer: Customer) -> None:
    for number, url in enumerate((GIT, "https://93.184.216.34/a/b.git", "https://git.example.org:8443/~a/b")):
        app = await customer.create(f"from-git-{number}", git={"url": url, "ref": "feature/x.y"})
        view = await customer.call("GET", f"/api/paas/apps/{app}")
        assert view["git"] == {"kind": "git", "url": url, "ref": "feature/x.y", "submodules": False}


async def test_a_name_service_that_is_away_is_no_fault_of_the_customer(
    here: World, customer: Customer
) -> None:
    body = {**GOOD, "git": {"url": "https://slow.example.org/a/b"}}
    error = await refused(here, customer, 503, "POST", "/api/paas/apps", json=body)
    assert error["code"] == "unavailable"


async def test_a_taken_name_is_told_from_a_bad_one(here: World, customer: Customer, app: str) -> None:
    for other in (customer, await here.customer()):
        error = await refused(
            here, other, 409, "POST", "/api/paas/apps", json={"name": "bystander", "plan": "small"}
        )
        assert error["details"] == {"name": "bystander", "reason": "name_taken"}
        assert "choose another" in error["message"]


async def test_what_there_is_to_choose_is_said(here: World, customer: Customer) -> None:
    for change, available in (
        ({"plan": "huge"}, ["nano", "small", "medium"]),
        ({"region": "moon"}, ["local"]),
        ({"build": {"runtime": "cobol"}}, list(EVERY)),
    ):
        error = await refused(here, customer, 422, "POST", "/api/paas/apps", json={**GOOD, **change})
        assert error["details"]["available"] == available
        for name in available:
            assert name in error["message"]
    error = await refused(here, customer, 422, "POST", "/api/paas/apps", json={**GOOD, "image": "x"})
    assert "image" in error["details"]["fields"]
    error = await refused(here, customer, 422, "POST", "/api/paas/apps", json={**GOOD, "replicas": 5})
    assert error["details"] == {"plan": "small", "max_replicas": 4}


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "application/json"),
        (b"{", "application/json"),
        (b"[]", "application/json"),
        (b"null", "application/json"),
        (b'"text"', "application/json"),
        (b"\xff\xfe", "application/json"),
        (b'{"name": "fine-name", "plan": "small"}', "text/plain"),
        (b'{"name": "fine-name", "plan": "small\\ud800"}', "application/json"),
    ],
    ids=lambda value: repr(value[:20]),
)
async def test_a_body_that_is_none(here: World, customer: Customer, content: bytes, kind: str) -> None:
    headers = {"Content-Type": kind}
    await refused(here, customer, 422, "POST", "/api/paas/apps", content=content, headers=headers)


async def test_words_for_those_who_have_not_read_the_program(
    here: World, customer: Customer, app: str
) -> None:
    """A pattern says nothing to a customer, nor does how a list is kept."""
    asked: list[tuple[str, Any, dict[str, str]]] = [
        (
            "volumes",
            {"name": "data", "path": "data", "size_mb": 64},
            {"path": "should be a path from the root"},
        ),
        ("exec", {"command": "id"}, {"command": "should be a list"}),
        ("scale", {"replicas": 2, "count": 3}, {"count": "there is no such field"}),
        ("cron", {"name": "tidy", "schedule": "* * * *", "command": "date"}, {}),
    ]
    for path, body, words in asked:
        error = await refused(here, customer, 422, "POST", f"/api/paas/apps/{app}/{path}", json=body)
        for field, said in words.items():
            assert error["details"]["fields"][field].startswith(said), error
            assert f"{field}: {said}" in error["message"]
    assert "five fields" in error["message"]
    broken = b'{"replicas": }'
    for headers, said in (
        ({"content-type": "application/json"}, "is no JSON: Expecting value at character 13"),
        ({}, "should be a JSON object, sent as content-type: application/json"),
    ):
        error = await refused(
            here, customer, 422, "POST", f"/api/paas/apps/{app}/scale", content=broken, headers=headers
        )
        assert error["details"]["fields"] == {"body": said}


@pytest.mark.parametrize(
    ("method", "path", "body", "fields"),
    [
        ("PATCH", "variables", {"X": 5}, {"X": "should be text in quotes or a JSON object"}),
        ("PATCH", "variables", {"X": {"value": 5}}, {"X.value": "should be text in quotes"}),
        ("PATCH", "variables", {"X": {"zzz": 1}}, {"X.zzz": "there is no such field"}),
        ("PUT", "credentials/git", {"kind": "token"}, {"token": "is required"}),
        ("PUT", "credentials/git", {"kind": None}, {"kind": "should be 'token' or 'key'"}),
        ("PUT", "credentials/git", {}, {"kind": "is required"}),
        ("POST", "exec", {"command": []}, {"command": "should not be empty"}),
        ("POST", "exec", {"command": [""]}, {"command.0": "should not be empty"}),
        (
            "PUT",
            "build",
            {"buildpacks": ["heroku/go"] * 99},
            {"buildpacks": "should have at most 10 entries"},
        ),
        (
            "PUT",
            "credentials/registry",
            {"user": "me", "password": "x" * 9999},
            {"password": "should have at most 4096 characters"},
        ),
        ("POST", "scale", {}, {"replicas": "is required"}),
        ("POST", "scale", {"replicas": 1.5}, {"replicas": "should be a whole number"}),
        ("POST", "scale", {"replicas": "two"}, {"replicas": "should be a whole number"}),
        ("POST", "scale", {"replicas": -1}, {"replicas": "should be at least 0"}),
        ("PUT", "build", {"arguments": []}, {"arguments": "should be a JSON object"}),
        ("POST", "run", {"command": "x", "attached": "perhaps"}, {"attached": "should be true or false"}),
        ("GET", "logs?since=yesterday", None, {"since": "should be a moment such as 2026-01-02T03:04:05Z"}),
    ],
)
async def test_a_field_is_named_as_it_was_sent_and_told_of_in_words(
    here: World,
    customer: Customer,
    app: str,
    method: str,
    path: str,
    body: Any,
    fields: dict[str, str],
) -> None:
    """Not by the names of the program's types and of their branches."""
    error = await refused(here, customer, 422, method, f"/api/paas/apps/{app}/{path}", json=body)
    assert error["details"]["fields"] == fields


async def test_a_route_that_is_not_there_is_told_of(here: World, customer: Customer) -> None:
    for method, path, status in (("GET", "/api/nothing", 404), ("PUT", "/api/paas/apps", 405)):
        error = await refused(here, customer, status, method, path)
        assert error["message"] == f"there is no {method} {path}; /docs lists every route"


async def test_of_many_wrong_fields_some_are_named(here: World, customer: Customer) -> None:
    """Who sends thousands of them keeps nobody else waiting."""
    body = {f"f{number}": 1 for number in range(18_000)}
    error = await refused(here, customer, 422, "POST", "/api/auth/login", json=body)
    assert len(error["details"]["fields"]) == 50


async def test_every_shape_has_words(here: World, customer: Customer) -> None:
    described = (await customer.client.get("/openapi.json")).json()

    def patterns(part: Any) -> set[str]:
        if isinstance(part, dict):
            own = {part["pattern"]} if isinstance(part.get("pattern"), str) else set()
            return own.union(*map(patterns, part.values()))
        return set().union(*map(patterns, part)) if isinstance(part, list) else set()

    found = patterns(described)
    assert len(found) > 20
    assert found - set(WORDS) == set()


async def test_a_body_too_deep(here: World, customer: Customer) -> None:
    await refused(
        here,
        customer,
        400,
        "POST",
        "/api/paas/apps",
        content=b"[" * 100_000,
        headers={"Content-Type": "application/json"},
    )


async def test_a_body_too_large(here: World, customer: Customer) -> None:
    headers = {"Content-Type": "application/json"}
    body = b'{"name": "' + b"a" * 300_000 + b'"}'

    async def in_chunks() -> Any:
        for start in range(0, len(body), 50_000):
            yield body[start : start + 50_000]

    for content in (body, in_chunks()):
        error = await refused(here, customer, 413, "POST", "/api/paas/apps", content=content, headers=headers)
        assert error["code"] == "too_large"
    visitor = await here.visitor()
    response = await visitor.client.post("/api/auth/login", content=body, headers=headers)
    assert response.status_code == 413
    # A source may be larger, and that only where one is received.
    for method, path in (
        ("PATCH", "/api/paas/apps/x/cron/source"),
        ("POST", "/api/paas/apps/x/cron/source"),
        ("PUT", "/api/paas/apps/x/source"),
        ("POST", "/api/auth/login/source"),
    ):
        response = await visitor.client.request(method, path, content=body, headers=headers)
        assert response.status_code == 413, (method, path)
    # The connection, and the platform behind it, go on.
    assert (await customer.call("GET", "/api/paas/apps"))["apps"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/api/paas/apps/nonsense", 404),
        ("GET", "/api/paas/apps/app_00000000000000000000000000", 404),
        ("GET", "/api/paas/apps/%00", 422),
        ("GET", "/api/paas/apps/..%2f..%2fetc", 404),
        ("GET", "/api/paas/deployments/' or 1=1", 404),
        ("GET", "/api/nowhere", 404),
        ("PUT", "/api/paas/apps", 405),
        ("GET", "/api/paas/apps?after=%00", 422),
        ("GET", "/api/paas/apps/{app}/deployments?after=x", 422),
        ("GET", "/api/paas/apps/{app}/deployments?after=-1", 422),
        ("GET", "/api/paas/apps/{app}/deployments?after=99999999999999999999", 422),
    ],
)
async def test_paths_that_lead_nowhere(
    here: World, customer: Customer, app: str, method: str, path: str, status: int
) -> None:
    await refused(here, customer, status, method, path.replace("{app}", app))


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 422),
        ({"replicas": -1}, 422),
        ({"replicas": 0}, 422),
        ({"replicas": 5}, 422),
        ({"replicas": 1, "process": "worker"}, 422),
        ({"replicas": 1, "plan": "medium"}, 422),
    ],
    ids=str,
)
async def test_a_scale_that_cannot_be(
    here: World, customer: Customer, app: str, body: dict[str, Any], status: int
) -> None:
    await refused(here, customer, status, "POST", f"/api/paas/apps/{app}/scale", json=body)


@pytest.mark.parametrize(
    "change",
    [
        {"email": "no address"},
        {"email": "a@b"},
        {"email": "a@b.c\nBcc: x@y.z"},
        {"email": "a" * 300 + "@example.org"},
        {"password": "short"},
        {"password": "x" * 201},
        {"organization": ""},
        {"organization": "   "},
        {"organization": "x" * 81},
        {"administrator": True},
    ],
    ids=str,
)
async def test_an_account_that_cannot_be(here: World, customer: Customer, change: dict[str, Any]) -> None:
    body = {"email": "new@example.org", "password": "long enough 1", "organization": "New", **change}
    error = await refused(here, customer, 422, "POST", "/api/auth/register", json=body)
    assert "long enough" not in str(error)


# --- archives --------------------------------------------------------------------------------------------


def packed(*entries: tuple[str, dict[str, Any]]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for name, more in entries:
            info = tarfile.TarInfo(name)
            data = b"x"
            info.size = len(data)
            for key, value in more.items():
                setattr(info, key, value)
            tar.addfile(info, io.BytesIO(data) if info.isreg() else None)
    return file.getvalue()


@pytest.mark.parametrize(
    "source",
    [
        pytest.param(packed(("../evil", {})), id="climbs"),
        pytest.param(packed(("a/../../evil", {})), id="climbs inside"),
        pytest.param(packed(("/etc/passwd", {})), id="absolute"),
        pytest.param(packed(("tty", {"type": tarfile.CHRTYPE})), id="character device"),
        pytest.param(packed(("disk", {"type": tarfile.BLKTYPE})), id="block device"),
        pytest.param(packed(("pipe", {"type": tarfile.FIFOTYPE})), id="pipe"),
        pytest.param(packed(("link", {"type": tarfile.SYMTYPE, "linkname": "/etc"})), id="symlink out"),
        pytest.param(packed(("link", {"type": tarfile.SYMTYPE, "linkname": "../x"})), id="symlink up"),
        pytest.param(packed(("link", {"type": tarfile.LNKTYPE, "linkname": "/etc/shadow"})), id="hard link"),
        pytest.param(packed(), id="nothing in it"),
        pytest.param(b"", id="empty"),
        pytest.param(b"not an archive", id="text"),
        pytest.param(gzip.compress(b"not a tar"), id="gzip of text"),
        pytest.param(SOURCE[:-20], id="cut off"),
        pytest.param(SOURCE[:60] + b"\0" * 40 + SOURCE[100:], id="damaged"),
        pytest.param(b"PK\x03\x04" + b"\0" * 100, id="zip"),
    ],
)
async def test_an_archive_that_is_refused(here: World, customer: Customer, app: str, source: bytes) -> None:
    path = f"/api/paas/apps/{app}/source"
    headers = {"Content-Type": "application/gzip"}
    error = await refused(here, customer, 422, "POST", path, content=source, headers=headers)
    assert error["code"] == "invalid_input"


async def test_an_archive_too_large(here: World, customer: Customer, app: str) -> None:
    path = f"/api/paas/apps/{app}/source"

    async def endless() -> Any:
        for _ in range(3 * 1024):
            yield b"\x1f" * 1024

    large = archive({"app.py": "x" * 9_000_000})
    assert len(large) < 100_000
    for content in (b"x" * 2_000_001, endless(), large):
        error = await refused(here, customer, 413, "POST", path, content=content)
        assert error["code"] == "too_large"
        assert "leave out" in error["message"]
    many = archive({f"{number}": "" for number in range(201)})
    await refused(here, customer, 413, "POST", path, content=many)


# --- the administrator's ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "amount",
    ["0", "0.000000", "-5", "1e9", "1.0000001", "9999999999", "", " ", "NaN", 5, None, "1,5"],
    ids=repr,
)
async def test_a_credit_that_cannot_be(here: World, customer: Customer, amount: Any) -> None:
    admin = await here.administrator()
    path = f"/api/admin/organizations/{customer.organization}/credits"
    await refused(here, admin, 422, "POST", path, json={"amount": amount})
    nobody = "/api/admin/organizations/org_00000000000000000000000000/credits"
    await refused(here, admin, 404, "POST", nobody, json={"amount": "1.00"})
