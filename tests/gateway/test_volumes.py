"""What a customer asks of volumes: added, grown, taken away; never smaller, never in each other's way."""

from typing import Any

import pytest

from tests.customer import Customer, Refused
from tests.gateway.world import World


async def add(customer: Customer, app: str, name: str, path: str, size_mb: int = 64, **more: Any) -> Any:
    body = {"name": name, "path": path, "size_mb": size_mb, **more}
    return await customer.call("POST", f"/api/paas/apps/{app}/volumes", json=body)


async def test_volumes_are_part_of_the_specification(here: World, customer: Customer) -> None:
    app, before = await here.live(customer, "with-volumes")
    await add(customer, app, "data", "/data")
    found = await add(customer, app, "files", "/srv/files", 128, encrypted=True)
    assert [(v["name"], v["path"], v["size_mb"], v["encrypted"]) for v in found["volumes"]] == [
        ("data", "/data", 64, False),
        ("files", "/srv/files", 128, True),
    ]
    spec = await here.spec(app)
    assert [volume.path for volume in spec.volumes] == ["/data", "/srv/files"]
    assert (spec.generation, spec.fingerprint() != before.fingerprint()) == (before.generation + 2, True)
    await customer.call("PATCH", f"/api/paas/apps/{app}/volumes/data", json={"size_mb": 256})
    await customer.call("DELETE", f"/api/paas/apps/{app}/volumes/files")
    assert [(v.name, v.size_mb) for v in (await here.spec(app)).volumes] == [("data", 256)]
    listed = await customer.call("GET", f"/api/paas/apps/{app}/volumes")
    assert [(volume["name"], volume["used_mb"]) for volume in listed["volumes"]] == [("data", None)]


async def test_what_is_no_volume_is_refused_and_changes_nothing(here: World, customer: Customer) -> None:
    app = await customer.create("volumes-refused")
    await add(customer, app, "data", "/data")
    for status, words, name, path, size in (
        (422, "pattern", "data2", "relative", 64),
        (422, "pattern", "data2", "/", 64),
        (400, "not a plain path", "data2", "/data/../etc", 64),
        (400, "hide the image's own /etc", "data2", "/etc/app", 64),
        (409, "has a volume data already", "data", "/other", 64),
        (409, "lie in each other", "data2", "/data/inner", 64),
        (400, "allows volumes of 10240 MB in all", "data2", "/large", 10_200),
        (422, "greater than", "data2", "/small", 1),
    ):
        with pytest.raises(Refused) as refused:
            await add(customer, app, name, path, size)
        assert refused.value.status in (status, 400, 422), refused.value
        assert words in str(refused.value), (words, str(refused.value))
    with pytest.raises(Refused, match="cannot become smaller"):
        await customer.call("PATCH", f"/api/paas/apps/{app}/volumes/data", json={"size_mb": 32})
    with pytest.raises(Refused, match="no such volume"):
        await customer.call("DELETE", f"/api/paas/apps/{app}/volumes/none")
    assert [volume.name for volume in (await here.spec(app)).volumes] == ["data"]
