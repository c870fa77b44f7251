"""Runtimes: what apps are built with, as the administrator offers it and a plan allows it.

Every reference is looked up where the builder can: an image that is known not to exist is refused, one that
nobody can answer for is taken with a warning. One that is disabled is for no new deployment; what runs, runs.
"""

import asyncio
from collections.abc import Iterable

from contracts.api import RuntimeList, RuntimeView
from contracts.build_queries import ImageLookup
from contracts.errors import Conflict, InvalidInput, NotFound, Unavailable
from contracts.runtimes_api import ChangeRuntime, CreateRuntime, OfferedRuntime, OfferedRuntimeList
from contracts.workload import RuntimePreset
from fastapi import APIRouter
from runtime.store import PLATFORM, Tx
from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert

from gateway.desk import Desk
from gateway.permissions import Administrator, User
from gateway.tables import PlanRow, RuntimeRow

router = APIRouter(prefix="/api", tags=["plans"])

# A scope that shows no organization's rows: plans and runtimes belong to none.
NOBODY = ""
_REQUIRED = ("version", "image", "active")


@router.get("/paas/runtimes")
async def list_runtimes(caller: User, plan: str | None = None) -> RuntimeList:
    """Those that can be chosen now; with `plan`, those an app on it may use."""
    async with caller.desk.store.transaction(NOBODY) as tx:
        chosen = None if plan is None else await tx.get(PlanRow, plan)
        if plan is not None and (chosen is None or not chosen.active):
            raise InvalidInput(f"there is no plan {plan}; GET /api/paas/plans lists them", plan=plan)
        found = await allowed(tx, chosen)
    return RuntimeList(
        runtimes=tuple(RuntimeView(name=r.name, type=r.type, version=r.version) for r in found)
    )


@router.get("/admin/paas/runtimes")
async def list_all_runtimes(caller: Administrator) -> OfferedRuntimeList:
    async with caller.desk.store.transaction(PLATFORM) as tx:
        found = await tx.scalars(select(RuntimeRow).order_by(RuntimeRow.name))
    return OfferedRuntimeList(runtimes=tuple(_offered(row) for row in found))


@router.post("/admin/paas/runtimes", status_code=201)
async def create_runtime(new: CreateRuntime, caller: Administrator) -> OfferedRuntime:
    warnings = await _looked_up(caller.desk, (new.image, new.build_image))
    name = new.name or f"{new.type}-{new.version.lower()}"
    async with caller.desk.store.transaction(PLATFORM) as tx:
        written = await tx.execute(
            insert(RuntimeRow)
            .values({**new.model_dump(), "name": name})
            .on_conflict_do_nothing()
            .returning(RuntimeRow)
        )
        row = written.scalar_one_or_none()
        if row is None:
            raise Conflict(
                "there is a runtime of this name already; change it with PATCH, or choose another name",
                name=name,
            )
        return _offered(row, warnings)


@router.patch("/admin/paas/runtimes/{name}")
async def change_runtime(name: str, change: ChangeRuntime, caller: Administrator) -> OfferedRuntime:
    given = change.model_fields_set
    missing = [field for field in _REQUIRED if field in given and getattr(change, field) is None]
    if missing:
        raise InvalidInput(f"leave out what shall stay, instead of null: {', '.join(missing)}")
    warnings = await _looked_up(caller.desk, (change.image, change.build_image))
    async with caller.desk.store.transaction(PLATFORM) as tx:
        row = await tx.get(RuntimeRow, name, lock=True)
        if row is None:
            raise NotFound("there is no such runtime; GET /api/admin/paas/runtimes lists them", runtime=name)
        for field in given:
            setattr(row, field, getattr(change, field))
        return _offered(row, warnings)


async def enabled(tx: Tx) -> list[RuntimeRow]:
    return await tx.scalars(select(RuntimeRow).where(RuntimeRow.active).order_by(RuntimeRow.name))


async def allowed(tx: Tx, plan: PlanRow | None) -> list[RuntimeRow]:
    """The enabled ones an app on the plan may use; without a plan, every one."""
    return [
        row for row in await enabled(tx) if plan is None or plan.runtimes is None or row.name in plan.runtimes
    ]


async def presets_for(tx: Tx, plan: PlanRow | None) -> tuple[RuntimePreset, ...]:
    return tuple(RuntimePreset.model_validate(row, from_attributes=True) for row in await allowed(tx, plan))


async def require(tx: Tx, plan: PlanRow | None, chosen: str | None) -> None:
    """Also at a deployment: what an app has chosen may have been disabled since."""
    if chosen is None:
        return
    available = [row.name for row in await allowed(tx, plan)]
    if chosen not in available:
        where = f"the plan {plan.name}" if plan is not None else "the platform"
        raise InvalidInput(
            f"{where} has no runtime {chosen}; choose one of: {', '.join(available) or 'none'}",
            runtime=chosen,
            available=available,
        )


async def _looked_up(desk: Desk, images: Iterable[str | None]) -> tuple[str, ...]:
    """Warnings about those nobody can answer for."""
    named = sorted({image for image in images if image is not None})
    known = await asyncio.gather(*(_known(desk, image) for image in named))
    for image, exists in zip(named, known, strict=True):
        if exists is False:
            raise InvalidInput(
                f"there is no image {image}; check its name and tag, or push it first", image=image
            )
    return tuple(
        f"nobody could say whether the image {image} exists; a build will show it"
        for image, exists in zip(named, known, strict=True)
        if exists is None
    )


async def _known(desk: Desk, image: str) -> bool | None:
    try:
        return (await desk.bus.ask(ImageLookup(reference=image), timeout=10)).exists
    except Unavailable:
        return None


def _offered(row: RuntimeRow, warnings: tuple[str, ...] = ()) -> OfferedRuntime:
    return OfferedRuntime(
        name=row.name,
        type=row.type,
        version=row.version,
        image=row.image,
        build_image=row.build_image,
        install_command=row.install_command,
        build_command=row.build_command,
        start_command=row.start_command,
        active=row.active,
        warnings=warnings,
    )
