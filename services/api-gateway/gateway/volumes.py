"""Routes of an app's volumes: data that stays when instances and releases go.

A volume only grows: what has been written cannot be taken back in silence. A change replaces the instances,
which the file system has to be put under; for that moment the app is away.
"""

from pathlib import PurePosixPath

from contracts.errors import Conflict, InvalidInput, NotFound, QuotaExceeded, Unavailable
from contracts.ids import new_id
from contracts.queries import CopiesOf, UsageOf
from contracts.volumes_api import AddVolume, GrowVolume, UsedVolume, VolumeList, VolumeUseList
from contracts.workload import Volume
from fastapi import APIRouter
from runtime.store import Tx

from gateway import wallets, workloads
from gateway.copies import copies_view
from gateway.permissions import Member
from gateway.tables import PlanRow, WorkloadRow

router = APIRouter(prefix="/api", tags=["volumes"])

MOST = 20
# What the image and the engine keep there is not to be hidden.
_SYSTEM = ("bin", "boot", "dev", "etc", "lib", "lib64", "proc", "run", "sbin", "sys", "tmp", "usr")


@router.get("/paas/apps/{app}/volumes")
async def list_volumes(app: str, caller: Member) -> VolumeUseList:
    async with caller.desk.store.transaction(caller.organization) as tx:
        row = await workloads.locked(tx, app)
        there, minutes = volumes_of(row), row.copy_minutes
    try:
        found = (await caller.desk.bus.ask(UsageOf(workload=app))).volumes if there else ()
        copies = copies_view(minutes, await caller.desk.bus.ask(CopiesOf(workload=app))) if there else None
    except Unavailable:
        found, copies = (), None
    used = {one.volume: one.used_mb for one in found}
    return VolumeUseList(
        volumes=tuple(UsedVolume(**one.model_dump(), used_mb=used.get(one.id)) for one in there),
        copies=copies,
    )


@router.post("/paas/apps/{app}/volumes", status_code=201)
async def add_volume(app: str, new: AddVolume, caller: Member) -> VolumeList:
    made = Volume(id=new_id("vol"), **new.model_dump())
    async with caller.desk.store.transaction(caller.organization) as tx:
        row = await workloads.locked(tx, app)
        there = volumes_of(row)
        if len(there) >= MOST:
            raise QuotaExceeded(f"an app has at most {MOST} volumes; use folders of one", most=MOST)
        _require_place(made, there)
        return await _change(tx, row, (*there, made))


@router.patch("/paas/apps/{app}/volumes/{volume}")
async def grow_volume(app: str, volume: str, wanted: GrowVolume, caller: Member) -> VolumeList:
    async with caller.desk.store.transaction(caller.organization) as tx:
        row = await workloads.locked(tx, app)
        there = volumes_of(row)
        found = _named(there, volume)
        if wanted.size_mb < found.size_mb:
            raise InvalidInput(
                f"the volume {volume} has {found.size_mb} MB and cannot become smaller; "
                "make a smaller one and copy what you need",
                size_mb=found.size_mb,
            )
        grown = found.model_copy(update={"size_mb": wanted.size_mb})
        return await _change(tx, row, tuple(grown if one is found else one for one in there))


@router.delete("/paas/apps/{app}/volumes/{volume}")
async def remove_volume(app: str, volume: str, caller: Member) -> VolumeList:
    """With everything on it. Its node keeps it aside for some days, should the operator be asked for it."""
    async with caller.desk.store.transaction(caller.organization) as tx:
        row = await workloads.locked(tx, app)
        there = volumes_of(row)
        found = _named(there, volume)
        return await _change(tx, row, tuple(one for one in there if one is not found))


def volumes_of(row: WorkloadRow) -> tuple[Volume, ...]:
    return tuple(Volume.model_validate(volume) for volume in row.volumes)


async def _change(tx: Tx, row: WorkloadRow, volumes: tuple[Volume, ...]) -> VolumeList:
    before = volumes_of(row)
    if volumes == before:
        return VolumeList(volumes=before)
    if sum(one.size_mb for one in volumes) > sum(one.size_mb for one in before):
        await _require_room(tx, row, volumes)
        await wallets.require_funds(tx, row.organization)
    row.volumes = [volume.model_dump() for volume in volumes]
    workloads.change(tx, row)
    await workloads.settle(tx, row)
    return VolumeList(volumes=volumes)


async def _require_room(tx: Tx, row: WorkloadRow, volumes: tuple[Volume, ...]) -> None:
    plan = await tx.get(PlanRow, row.plan)
    wanted = sum(volume.size_mb for volume in volumes)
    if plan is not None and wanted > plan.volume_mb:
        raise InvalidInput(
            f"the plan {plan.name} allows volumes of {plan.volume_mb} MB in all, not of {wanted} MB; "
            "choose less or a larger plan",
            plan=plan.name,
            volume_mb=plan.volume_mb,
            wanted_mb=wanted,
        )


def _require_place(new: Volume, there: tuple[Volume, ...]) -> None:
    path = PurePosixPath(new.path)
    if any(part in (".", "..") for part in new.path.split("/")):
        raise InvalidInput(f"{new.path} is not a plain path", path=new.path)
    if path.parts[1] in _SYSTEM:
        raise InvalidInput(
            f"a volume at {new.path} would hide the image's own /{path.parts[1]}; choose one such as /data",
            path=new.path,
        )
    for one in there:
        other = PurePosixPath(one.path)
        if one.name == new.name:
            raise Conflict(f"the app has a volume {new.name} already; choose another name", name=new.name)
        if path.is_relative_to(other) or other.is_relative_to(path):
            raise Conflict(f"{new.path} and the volume {one.name} at {one.path} would lie in each other")


def _named(volumes: tuple[Volume, ...], name: str) -> Volume:
    found = next((volume for volume in volumes if volume.name == name), None)
    if found is None:
        raise NotFound("the app has no such volume; GET …/volumes lists them", volume=name)
    return found
