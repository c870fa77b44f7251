"""Tenants are strangers (I5): every route there is, called by everybody who may not."""

import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import pytest
from contracts.ids import new_id
from contracts.lines import Line, packed
from fastapi import APIRouter
from fastapi.routing import APIRoute
from gateway import identity_tables, tables
from gateway.http import ROUTERS
from gateway.permissions import (
    Anyone,
    LoggedIn,
    OfOrganization,
    OfPlatform,
    permission_of,
    require_permissions,
)
from runtime.store import scoped

from tests.customer import Customer
from tests.gateway.world import SOURCE, World, world
from tests.harness import Servers

BODIES: dict[str, Any] = {
    "/api/paas/apps": {"name": "intruder", "plan": "small"},
    "/api/paas/apps/{app}/scale": {"replicas": 1},
    "/api/paas/apps/{app}/deploy": {},
    "/api/paas/apps/{app}/run": {"command": "true"},
    "/api/paas/apps/{app}/exec": {"command": ["true"]},
    "/api/paas/apps/{app}/cron": {"name": "theirs", "schedule": "* * * * *", "command": "true"},
    "/api/paas/apps/{app}/cron/{cron}": {"active": False},
    "/api/paas/apps/{app}/variables": {"INTRUDER": "was here"},
    "/api/paas/apps/{app}/plan": {"plan": "medium"},
    "/api/paas/apps/{app}/autoscaling": {"min": 1, "max": 2},
    "/api/paas/apps/{app}/sleep": {"after_minutes": 30},
    "/api/paas/apps/{app}/volumes": {"name": "intruder", "path": "/intruder", "size_mb": 16},
    "/api/paas/apps/{app}/volumes/{volume}": {"size_mb": 32},
    "/api/organizations": {"name": "Another"},
    "/api/auth/register": {"email": "x@example.org", "password": "long enough 1", "organization": "X"},
    "/api/auth/login": {"email": "x@example.org", "password": "wrong"},
    "/api/admin/organizations/{organization}/credits": {"amount": "1.00"},
    "/api/admin/paas/plans": {
        "name": "theirs",
        "title": "Theirs",
        "limits": {"cpu_millis": 1, "memory_mb": 16, "disk_mb": 1},
        "max_replicas": 1,
        "hourly": "0",
        "monthly": "0",
    },
    "/api/admin/paas/plans/{name}": {"title": "Theirs"},
    "/api/admin/paas/runtimes": {"type": "node", "version": "1", "image": "node:1"},
    "/api/admin/paas/runtimes/{name}": {"active": False},
    "/api/paas/apps/{app}/build": {"runtime": "static"},
    "/api/admin/builds/cache": {"enabled": False},
    "/api/admin/paas/custom-images": {"enabled": False},
    "/api/paas/apps/{app}/credentials/git": {"kind": "key"},
    "/api/paas/apps/{app}/credentials/registry": {"host": "ghcr.io", "user": "x", "password": "y"},
}


TENANTS = [t.name for t in identity_tables.Base.metadata.sorted_tables if "organization" in t.columns]


def routes() -> Iterator[tuple[str, APIRoute]]:
    for router in ROUTERS:
        for route in router.routes:
            assert isinstance(route, APIRoute)
            for method in sorted(route.methods or ()):
                yield method, route


def of(kind: type) -> list[Any]:
    return [
        pytest.param(method, route, id=f"{method} {route.path}")
        for method, route in routes()
        if type(permission_of(route)) is kind
    ]


@pytest.fixture(scope="module")
async def here(running: Servers, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with world(running, tmp_path_factory.mktemp("gateway")) as opened:
        yield opened


@pytest.fixture(scope="module")
async def victim(here: World) -> dict[str, str]:
    """Somebody with one of everything; its ids, by the names they have in paths."""
    customer = await here.customer()
    app, spec = await here.live(customer, "victims-app")
    body = {"name": "data", "path": "/data", "size_mb": 16}
    await customer.call("POST", f"/api/paas/apps/{app}/volumes", json=body)
    assert spec.deployment is not None
    assert customer.organization is not None
    await customer.call("PUT", f"/api/paas/apps/{app}/credentials/git", json={"kind": "key"})
    await here.log(spec.deployment, 1, 2, live=False)
    await here.balance(customer.organization, 5_000_000, sequence=1)
    nightly = {"name": "nightly", "schedule": "0 3 * * *", "command": "true"}
    await customer.call("POST", f"/api/paas/apps/{app}/cron", json=nightly)
    job = (await customer.call("POST", f"/api/paas/apps/{app}/run", json={"command": "true"}))["id"]
    async with here.host.runtime.store.transaction(customer.organization) as tx:
        row = tables.JobLineRow(job=job, sequence=1, stream="stdout", text="theirs")
        row.organization, row.at = customer.organization, here.harness.clock.now()
        tx.add(row)
        trouble = tables.ActivityRow(
            id="crash-of-theirs", organization=customer.organization, workload=app, kind="crashed"
        )
        trouble.process, trouble.words, trouble.at = "web.1", "it crashed", here.harness.clock.now()
        tx.add(trouble)
        ticket = tables.TicketRow(digest="d", organization=customer.organization, workload=app, verb="exec")
        at = here.harness.clock.now()
        theirs = {"subject": app, "organization": customer.organization}
        tx.add(tables.LineSourceRow(node="n1", instance="ins", kept=1, was=0, **theirs))
        tx.add(tables.LineHeadRow(last=1, bytes=1, **theirs))
        piece = tables.PieceRow(first=1, instance="ins", process="web.1", **theirs)
        piece.lines, piece.last_at = 1, at
        piece.body = packed([Line(1, "stdout", "theirs")])
        tx.add(piece)
        ticket.user_id, ticket.target, ticket.expires_at = "usr", {}, here.harness.clock.now()
        tx.add(ticket)
    return {
        "app": app,
        "job": job,
        "node": "n1",
        "cron": "nightly",
        "deployment": spec.deployment,
        "organization": customer.organization,
        "token": customer.token or "",
        "volume": "data",
        "purpose": "git",
        "name": "small",
    }


@pytest.fixture(scope="module")
async def intruder(here: World, victim: dict[str, str]) -> Customer:
    return await here.customer()


@pytest.fixture(scope="module")
async def stranger(here: World) -> Customer:
    return await here.visitor()


async def call(customer: Customer, method: str, route: APIRoute, ids: dict[str, str]) -> Any:
    path = re.sub(r"{(\w+)}", lambda match: ids[match[1]], route.path)
    body: dict[str, Any] = {}
    if route.path.endswith("/source"):
        body = {"content": SOURCE, "headers": {"Content-Type": "application/gzip"}}
    elif route.path in BODIES and method in ("POST", "PUT", "PATCH"):
        body = {"json": BODIES[route.path]}
    headers = customer.headers | body.pop("headers", {})
    return await customer.client.request(method, path, headers=headers, **body)


async def everything_of(here: World, organization: str) -> dict[str, Any]:
    """Every row of an organization, in every table that has some."""
    found = {}
    for table in TENANTS:
        rows = await here.host.runtime.store.read(
            scoped(
                f"select json_agg(r::text order by r::text)::text from {table} r "
                "where r.organization = %s and scope.organization is not null"
            ),
            ("*", organization),
        )
        found[table] = rows[0][0]
    return found


@pytest.mark.parametrize(("method", "route"), of(OfOrganization))
async def test_another_organizations_member_finds_nothing(
    here: World, victim: dict[str, str], intruder: Customer, method: str, route: APIRoute
) -> None:
    before = await everything_of(here, victim["organization"])
    response = await call(intruder, method, route, victim)
    if "{" in route.path:
        assert response.status_code == 404, response.text
        assert response.json()["error"]["code"] == "not_found"
        nobody = {**victim, "app": new_id("app"), "deployment": new_id("dep")}
        absent = await call(intruder, method, route, nobody)
        assert absent.status_code == 404
        assert without_ids(absent.text) == without_ids(response.text)
    else:
        assert response.status_code < 300
        for name in ("app", "deployment", "organization"):
            assert victim[name] not in response.text
    assert await everything_of(here, victim["organization"]) == before


def without_ids(text: str) -> str:
    return re.sub(r"[a-z]{3}_[0-9a-z]{26}", "…", text)


@pytest.mark.parametrize(("method", "route"), of(OfOrganization))
async def test_the_header_names_no_organization_one_is_not_in(
    victim: dict[str, str], intruder: Customer, method: str, route: APIRoute
) -> None:
    response = await call(replace(intruder, organization=victim["organization"]), method, route, victim)
    assert response.status_code == 404
    assert "organization" in response.json()["error"]["message"]


@pytest.mark.parametrize(("method", "route"), [*of(OfOrganization), *of(LoggedIn), *of(OfPlatform)])
async def test_without_a_token_there_is_nothing(
    stranger: Customer, victim: dict[str, str], method: str, route: APIRoute
) -> None:
    for header in ("", "Bearer", "Bearer nonsense", "Basic eDp5"):
        stranger.client.headers["Authorization"] = header
        response = await call(stranger, method, route, victim)
        assert response.status_code == 401, response.text
        assert response.json()["error"]["code"] == "unauthenticated"


@pytest.mark.parametrize(("method", "route"), of(OfPlatform))
async def test_the_administrators_routes_are_his(
    victim: dict[str, str], intruder: Customer, method: str, route: APIRoute
) -> None:
    response = await call(intruder, method, route, victim)
    assert response.status_code == 403, response.text
    assert response.json()["error"]["code"] == "forbidden"


def test_only_these_routes_are_open_to_anyone() -> None:
    assert {
        f"{method} {route.path}" for method, route in routes() if type(permission_of(route)) is Anyone
    } == {
        "POST /api/auth/register",
        "POST /api/auth/login",
        "POST /api/nodes/join",
        "GET /install/node.sh",
        "GET /install/node.tar.gz",
    }


def test_a_route_without_a_permission_stops_the_start() -> None:
    router = APIRouter()

    @router.get("/open")
    async def forgotten() -> None: ...

    with pytest.raises(RuntimeError, match=r"GET.* /open names no permissions"):
        require_permissions([router])


@pytest.mark.parametrize("table", TENANTS)
async def test_postgres_itself_shows_an_organization_only_its_rows(
    here: World, victim: dict[str, str], intruder: Customer, table: str
) -> None:
    """Even a statement that asks for everything."""
    store = here.host.runtime.store
    count = scoped(
        f"select count(*) from {table} t where scope.organization is not null and t.organization = %s"
    )
    [(all_of_it,)] = await store.read(count, ("*", victim["organization"]))
    for scope in (intruder.organization, "", "org_00000000000000000000000000"):
        [(seen,)] = await store.read(count, (scope, victim["organization"]))
        assert seen == 0
    # Without a scope, as after a forgotten one: nothing.
    [(seen,)] = await store.read(f"select count(*) from {table}")
    assert seen == 0
    assert all_of_it > 0


async def test_no_row_can_be_written_into_another_organization(here: World, victim: dict[str, str]) -> None:
    intruder = await here.customer(credit=None)
    assert intruder.organization is not None
    with pytest.raises(Exception, match="row-level security"):
        async with here.host.runtime.store.transaction(intruder.organization) as tx:
            tx.add(identity_tables.ProjectRow(id="prj_x", organization=victim["organization"], name="theirs"))
