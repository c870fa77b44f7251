"""Routes about machines: the regions a customer picks from, the administrator's list of nodes."""

from contracts.api import RegionList, RegionView
from contracts.queries import AllNodes, Nodes
from fastapi import APIRouter

from gateway import apps
from gateway.permissions import Administrator, User

router = APIRouter(prefix="/api", tags=["nodes"])


@router.get("/paas/locations")
async def list_locations(caller: User) -> RegionList:
    return RegionList(
        regions=tuple(
            RegionView(name=region.name, base_domain=region.base_domain)
            for region in await apps.regions(caller.desk)
            if region.has_room
        )
    )


@router.get("/admin/paas/nodes")
async def list_nodes(caller: Administrator) -> Nodes:
    return await caller.desk.bus.ask(AllNodes())
