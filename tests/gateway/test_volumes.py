"""What a customer asks of volumes: added, grown, taken away; never smaller, never in each other's way."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from contracts.copies import Copying, WorkloadCopies
from contracts.events import VolumesMoved
from gateway.copies import copies_view

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
        (422, "from the root", "data2", "relative", 64),
        (422, "from the root", "data2", "/", 64),
        (400, "not a plain path", "data2", "/data/../etc", 64),
        (400, "hide the image's own /etc", "data2", "/etc/app", 64),
        (409, "has a volume data already", "data", "/other", 64),
        (409, "lie in each other", "data2", "/data/inner", 64),
        (400, "allows volumes of 10240 MB in all", "data2", "/large", 10_200),
        (422, "at least", "data2", "/small", 1),
    ):
        with pytest.raises(Refused) as refused:
            await add(customer, app, name, path, size)
        assert refused.value.status in (status, 400, 422), refused.value
        assert words in str(refused.value), (words, str(refused.value))
    for number in range(1, 20):
        await add(customer, app, f"more-{number}", f"/more{number}", 16)
    with pytest.raises(Refused, match="at most 20 volumes"):
        await add(customer, app, "one-too-many", "/many", 16)
    for number in range(1, 20):
        await customer.call("DELETE", f"/api/paas/apps/{app}/volumes/more-{number}")
    with pytest.raises(Refused, match="cannot become smaller"):
        await customer.call("PATCH", f"/api/paas/apps/{app}/volumes/data", json={"size_mb": 32})
    with pytest.raises(Refused, match="no such volume"):
        await customer.call("DELETE", f"/api/paas/apps/{app}/volumes/none")
    assert [volume.name for volume in (await here.spec(app)).volumes] == ["data"]


async def test_a_plan_with_copies_is_told_to_everybody_who_has_to_make_them(
    here: World, customer: Customer
) -> None:
    admin = await here.administrator()
    body = {
        "name": "copied",
        "title": "Copied",
        "limits": {"cpu_millis": 100, "memory_mb": 128, "disk_mb": 64},
        "max_replicas": 1,
        "copy_minutes": 15,
        "hourly": "0.001",
        "monthly": "0.5",
    }
    made = await admin.call("POST", "/api/admin/paas/plans", json=body)
    assert made["copy_minutes"] == 15
    app, _ = await here.live(customer, "copied", plan="copied")
    assert (await here.spec(app)).copy_minutes == 15
    changed = await admin.call("PATCH", "/api/admin/paas/plans/copied", json={"copy_minutes": None})
    assert changed["copy_minutes"] is None
    await customer.call("PUT", f"/api/paas/apps/{app}/plan", json={"plan": "small"})
    assert (await here.spec(app)).copy_minutes is None


async def test_what_a_move_cost_is_said_afterwards(here: World, customer: Customer) -> None:
    app, spec = await here.live(customer, "moved")
    now = here.harness.clock.now()
    moved = VolumesMoved(workload=app, organization=spec.organization, source="n1", target="n2", taken_at=now)
    lost = moved.model_copy(
        update={"id": "evt-lost", "source": "n2", "target": "n3", "lost_until": now + timedelta(minutes=7)}
    )
    await here.harness.publish(moved, lost)
    await here.harness.publish_again(lost)
    await here.harness.settle()
    found = (await customer.call("GET", f"/api/paas/apps/{app}/activity"))["activity"]
    assert [one["kind"] for one in found if one["process"] == ""] == ["restored", "moved"]
    words = {one["kind"]: one["words"] for one in found}
    assert words["moved"] == "moved from n1 to n2 with all its data"
    assert words["restored"].startswith("n2 went offline; it goes on at n3 from the copy of ")
    assert words["restored"].endswith(f"to {lost.lost_until:%Y-%m-%d %H:%M:%S} UTC is not in it")


def test_what_would_be_lost_is_said_before() -> None:
    at = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    none = copies_view(None, WorkloadCopies(home="n1"))
    assert (none.newest, "what is only on a node that is lost is lost with it" in none.words) == (None, True)
    assert "everything written would be lost" in copies_view(5, WorkloadCopies(home="n1")).words
    copying = Copying(
        why="move",
        source="n1",
        target="n2",
        done_mb=450,
        total_mb=1000,
        sent_mb=450,
        since=at,
        last=False,
        words="n1 does not answer",
    )
    found = copies_view(5, WorkloadCopies(home="n1", newest=at, on="n2", copying=copying))
    assert found.words == (
        "last copied 2026-01-02 03:04:05 UTC; were its node lost now, what was written since would be lost"
    )
    assert found.under_way is not None
    assert found.under_way.percent == 45
    assert found.under_way.words == (
        "moves to n2: its data is copied while it runs, 45 % (n1 does not answer)"
    )
