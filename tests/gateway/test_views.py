"""What Postgres writes is what the contract says; what the contract says is what the documentation says."""

import json
from typing import Any

import pytest
from contracts import api
from contracts.events import AlertRaised
from fastapi import FastAPI
from fastapi.routing import APIRoute
from gateway.http import ROUTERS
from pydantic import BaseModel

from tests.customer import Customer
from tests.gateway.world import SOURCE, World, failed, finished


def exactly(model: type[BaseModel], content: bytes) -> Any:
    """Parsed, and with no key of which the model knows nothing."""
    parsed = model.model_validate_json(content)
    same_keys(parsed.model_dump(mode="json"), json.loads(content))
    return parsed


def same_keys(model: Any, wire: Any) -> None:
    if isinstance(model, dict) and isinstance(wire, dict):
        assert set(model) == set(wire)
        for key in model:
            same_keys(model[key], wire[key])
    elif isinstance(model, list):
        assert len(model) == len(wire)
        for one, other in zip(model, wire, strict=True):
            same_keys(one, other)


@pytest.mark.promise("U22")
async def test_every_view_is_its_model(here: World, customer: Customer) -> None:
    app, _ = await here.live(customer, "viewed", port=81, git=None)
    await customer.create("from-git", git={"url": "https://git.example.org/a/b", "ref": "main"})
    deployment = await customer.deploy(app)
    await here.say(finished(await here.requested(deployment), failed()))
    await here.say(
        *(AlertRaised(service="x", severity="warning", title=f"{i}", details={"a": "b"}) for i in range(55))
    )
    await here.balance(customer.organization, 3, sequence=1)
    admin = await here.administrator()

    async def get(who: Customer, path: str, model: type[BaseModel]) -> Any:
        response = await who.client.get(path, headers=who.headers)
        assert response.status_code == 200
        assert response.headers["content-type"] == "application/json"
        return exactly(model, response.content)

    listed = await get(customer, "/api/paas/apps", api.AppList)
    assert [view.name for view in listed.apps] == ["from-git", "viewed"]
    assert listed.apps[1].status == "running"
    for view in listed.apps:
        detail = await get(customer, f"/api/paas/apps/{view.id}", api.AppDetail)
        assert api.AppView.model_validate(detail.model_dump()) == view
    deployments = await get(customer, f"/api/paas/apps/{app}/deployments", api.DeploymentList)
    assert [d.status for d in deployments.deployments] == ["failed", "running"]
    for one in deployments.deployments:
        assert await get(customer, f"/api/paas/deployments/{one.id}", api.DeploymentView) == one
    await get(admin, "/api/admin/paas/apps", api.OwnedAppList)
    found = await get(admin, "/api/admin/organizations", api.AccountedOrganizationList)
    assert {o.balance.micros if o.balance else None for o in found.organizations} >= {3}
    alerts = await get(admin, "/api/admin/alerts", api.AlertList)
    assert [alert.title for alert in alerts.alerts] == [str(i) for i in range(54, 4, -1)]
    rest = await get(admin, f"/api/admin/alerts?after={alerts.next}", api.AlertList)
    assert [alert.title for alert in rest.alerts] == ["4", "3", "2", "1", "0"]
    assert rest.next is None


def every_route() -> list[APIRoute]:
    return [route for router in ROUTERS for route in router.routes if isinstance(route, APIRoute)]


async def test_the_documentation_is_complete(here: World) -> None:
    application = here.host.service.http
    assert isinstance(application, FastAPI)
    visitor = await here.visitor()
    assert (await visitor.client.get("/docs")).status_code == 200
    described = (await visitor.client.get("/openapi.json")).json()
    paths = described["paths"]
    assert {(path, m.upper()) for path in paths for m in paths[path]} == {
        (route.path, method)
        for route in every_route()
        if route.include_in_schema
        for method in route.methods or ()
    }
    for path, methods in paths.items():
        for method, operation in methods.items():
            where = f"{method} {path}"
            good = [answer for code, answer in operation["responses"].items() if code.startswith("2")]
            assert len(good) == 1, where
            # A stream of something else than JSON has no schema.
            if "204" not in operation["responses"] and "content" in good[0]:
                [content] = good[0]["content"].values()
                assert content["schema"], where
            failure = operation["responses"]["4XX"]["content"]["application/json"]["schema"]
            assert failure["$ref"].endswith("/Failure"), where
            assert "422" not in operation["responses"], where
            public = path in ("/api/auth/register", "/api/auth/login", "/api/nodes/join")
            assert bool(operation.get("security")) != public, where
            if path.split("/")[-1] in ("scale", "source", "deploy", "login", "credits"):
                assert operation["requestBody"], where
    list_apps = paths["/api/paas/apps"]["get"]
    assert list_apps["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].endswith("/AppList")
    assert [p["name"] for p in list_apps["parameters"]] == ["after", "X-Organization"]


async def test_the_nine_routes_of_the_guide_that_are_here_answer(here: World, customer: Customer) -> None:
    app = (await customer.call("POST", "/api/paas/apps", json={"name": "guided", "plan": "small"}))["id"]
    assert [a["id"] for a in (await customer.call("GET", "/api/paas/apps"))["apps"]] == [app]
    await customer.upload(app, SOURCE)
    answer = await customer.call("POST", f"/api/paas/apps/{app}/deploy")
    history = await customer.call("GET", f"/api/paas/apps/{app}/deployments")
    assert history["deployments"] == [answer]
    await customer.call("POST", f"/api/paas/apps/{app}/scale", json={"replicas": 2})
    assert (await customer.call("GET", "/api/paas/usage"))["lines"] == []
