"""Runtimes: the administrator offers, changes and disables them; a customer chooses among those left."""

import pytest
from contracts.runtimes_api import OfferedRuntime, OfferedRuntimeList

from tests.customer import Customer, Refused
from tests.gateway.world import SOURCE, World

PATH = "/api/admin/paas/runtimes"
NODE = {
    "type": "node",
    "version": "22",
    "image": "node:22-slim",
    "build_image": "node:22",
    "install_command": "npm ci --legacy-peer-deps",
    "build_command": "npm run compile",
    "start_command": "node dist/main.js",
}


async def offered(customer: Customer) -> list[str]:
    found = await customer.call("GET", "/api/paas/runtimes")
    return [runtime["name"] for runtime in found["runtimes"]]


@pytest.mark.promise("R2.1", "R2.2", "R2.3")
async def test_a_runtime_is_added_and_reaches_builds(here: World, customer: Customer) -> None:
    admin = await here.administrator()
    here.parts.images |= {"node:22-slim": True, "node:22": True}
    made = OfferedRuntime.model_validate(await admin.call("POST", PATH, json=NODE))
    assert made.model_dump() == {**NODE, "name": "node-22", "active": True, "warnings": ()}
    listed = OfferedRuntimeList.model_validate(await admin.call("GET", PATH)).runtimes
    assert {(r.name, r.type, r.version) for r in listed} >= {
        ("node-22", "node", "22"),
        ("node-24", "node", "24"),
        ("python-3.11", "python", "3.11"),
    }
    assert "node-22" in await offered(customer)
    app = await customer.create("on-node-22", build={"runtime": "node-22"})
    request = await here.requested(await customer.deploy(app, SOURCE))
    [preset] = [preset for preset in request.runtimes if preset.name == "node-22"]
    assert preset.model_dump() == {**NODE, "name": "node-22"}

    with pytest.raises(Refused, match="already") as refused:
        await admin.call("POST", PATH, json=NODE)
    assert refused.value.status == 409
    again = await admin.call("POST", PATH, json={**NODE, "name": "node-22-strict"})
    assert again["name"] == "node-22-strict"


@pytest.mark.promise("R2.2")
@pytest.mark.parametrize("field", ["type", "version", "image"])
async def test_what_a_runtime_needs(here: World, field: str) -> None:
    admin = await here.administrator()
    with pytest.raises(Refused) as refused:
        await admin.call("POST", PATH, json={key: value for key, value in NODE.items() if key != field})
    assert refused.value.status == 422
    assert field in refused.value.error["details"]["fields"]


@pytest.mark.promise("R2.5")
async def test_an_image_is_checked_before_it_is_saved(here: World) -> None:
    admin = await here.administrator()
    before = await admin.call("GET", PATH)
    for image in (
        "Node:22",
        "node:22 --privileged",
        "-x",
        "https://example.org/node",
        "node:a/b",
        "a@sha256:1",
    ):
        with pytest.raises(Refused) as refused:
            await admin.call("POST", PATH, json={**NODE, "name": "bad", "image": image})
        assert refused.value.status == 422
    here.parts.images["node:99"] = False
    with pytest.raises(Refused, match="there is no image node:99") as refused:
        await admin.call("POST", PATH, json={**NODE, "name": "bad", "build_image": "node:99"})
    assert refused.value.status == 422
    with pytest.raises(Refused, match="there is no image node:99"):
        await admin.call("PATCH", f"{PATH}/python-3.11", json={"image": "node:99"})
    assert await admin.call("GET", PATH) == before

    # Where nobody answers, it is taken, and said.
    new = {"type": "go", "version": "1.99", "image": "registry.example.org/go:1.99"}
    made = await admin.call("POST", PATH, json=new)
    assert "registry.example.org/go:1.99" in made["warnings"][0]
    here.parts.away = True
    try:
        changed = await admin.call("PATCH", f"{PATH}/go-1.99", json={"image": "golang:1.99"})
    finally:
        here.parts.away = False
    assert (changed["image"], len(changed["warnings"])) == ("golang:1.99", 1)


@pytest.mark.promise("R2.3", "R2.5")
async def test_a_runtime_is_changed_and_disabled(here: World, customer: Customer) -> None:
    admin = await here.administrator()
    app = await customer.create("on-ruby", build={"runtime": "ruby-3.1"})
    ruby = f"{PATH}/ruby-3.1"
    commands = {"build_command": "rake build", "start_command": "rake serve"}
    changed = await admin.call("PATCH", ruby, json=commands)
    assert (changed["build_command"], changed["start_command"]) == ("rake build", "rake serve")
    assert changed["image"] == "berth/ruby:3.1"
    changed = await admin.call("PATCH", ruby, json={"start_command": None})
    assert (changed["build_command"], changed["start_command"]) == ("rake build", None)
    with pytest.raises(Refused, match="instead of null") as refused:
        await admin.call("PATCH", ruby, json={"image": None})
    assert refused.value.status == 422
    with pytest.raises(Refused) as refused:
        await admin.call("PATCH", f"{PATH}/cobol-1", json={"active": False})
    assert refused.value.status == 404

    try:
        assert (await admin.call("PATCH", ruby, json={"active": False}))["active"] is False
        assert "ruby-3.1" not in await offered(customer)
        with pytest.raises(Refused, match=r"has no runtime ruby-3\.1"):
            await customer.create("on-ruby-too", build={"runtime": "ruby-3.1"})
        with pytest.raises(Refused, match=r"has no runtime ruby-3\.1"):
            await customer.deploy(app, SOURCE)
        # Another one, and the next deployment goes on.
        build = {"runtime": "python-3.11", "start_command": "python -m shop", "folder": "shop"}
        view = await customer.call("PUT", f"/api/paas/apps/{app}/build", json=build)
        assert {key: view["build"][key] for key in build} == build
        request = await here.requested(await customer.deploy(app))
        assert (request.build.runtime, request.build.folder) == ("python-3.11", "shop")
        assert "ruby-3.1" not in [preset.name for preset in request.runtimes]
    finally:
        await admin.call("PATCH", ruby, json={"active": True, "build_command": None})


async def test_a_plan_has_its_runtimes(here: World, customer: Customer) -> None:
    admin = await here.administrator()
    plan = {
        "name": "files-only",
        "title": "Files",
        "limits": {"cpu_millis": 100, "memory_mb": 64, "disk_mb": 100},
        "max_replicas": 1,
        "hourly": "0.001",
        "monthly": "1",
        "runtimes": ["static"],
    }
    await admin.call("POST", "/api/admin/paas/plans", json=plan)
    found = await customer.call("GET", "/api/paas/runtimes?plan=files-only")
    assert found == {"runtimes": [{"name": "static", "type": "static", "version": "1"}]}
    with pytest.raises(Refused, match="there is no plan"):
        await customer.call("GET", "/api/paas/runtimes?plan=nothing")
