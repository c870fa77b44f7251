"""Whether apps may be made of images that the platform has not built: the administrator's decision."""

from contracts.errors import Forbidden
from contracts.sources_api import CustomImages
from fastapi import APIRouter
from runtime.store import PLATFORM, Tx
from sqlalchemy.dialects.postgresql import insert

from gateway.permissions import Administrator
from gateway.tables import SwitchRow

router = APIRouter(prefix="/api/admin", tags=["builds"])

_CUSTOM = "custom_images"


@router.get("/paas/custom-images")
async def show_custom_images(caller: Administrator) -> CustomImages:
    async with caller.desk.store.transaction(PLATFORM) as tx:
        return CustomImages(enabled=await _allowed(tx))


@router.put("/paas/custom-images")
async def switch_custom_images(chosen: CustomImages, caller: Administrator) -> CustomImages:
    """Off: no app is deployed from an image any more. Those that run go on, and so do Dockerfiles."""
    async with caller.desk.store.transaction(PLATFORM) as tx:
        await tx.execute(
            insert(SwitchRow)
            .values(name=_CUSTOM, active=chosen.enabled)
            .on_conflict_do_update(index_elements=[SwitchRow.name], set_={"active": chosen.enabled})
        )
    return chosen


async def require_custom(tx: Tx) -> None:
    if not await _allowed(tx):
        raise Forbidden(
            "images from elsewhere are switched off on this platform; deploy a source, or ask its operator"
        )


async def _allowed(tx: Tx) -> bool:
    switch = await tx.get(SwitchRow, _CUSTOM)
    return switch is None or switch.active
