"""Routes about machines: the regions a customer picks from; the administrator's list of nodes, and what he
decides about them.
"""

from typing import Annotated

from contracts.api import RegionList, RegionView
from contracts.errors import InvalidInput
from contracts.ids import NodeName
from contracts.nodes_api import ChangeNode
from contracts.queries import AllNodes, NodeChanged, NodeDetail, NodeInfo, NodeOf, NodeRemoved, Nodes
from fastapi import APIRouter, Query, Response
from pydantic import TypeAdapter, ValidationError

from gateway import apps
from gateway.permissions import Administrator, User

router = APIRouter(prefix="/api", tags=["nodes"])

_NAME: TypeAdapter[str] = TypeAdapter(NodeName)


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
async def list_nodes(caller: Administrator, after: str | None = None) -> Nodes:
    return await caller.desk.bus.ask(AllNodes(after=None if after is None else named(after)))


@router.get("/admin/paas/nodes/{node}")
async def show_node(
    node: str, caller: Administrator, hours: Annotated[int, Query(ge=1, le=720)] = 24
) -> NodeDetail:
    """What runs there, and how the node fared in the last `hours`."""
    return await caller.desk.bus.ask(NodeOf(node=named(node), hours=hours))


@router.patch("/admin/paas/nodes/{node}")
async def change_node(node: str, change: ChangeNode, caller: Administrator) -> NodeInfo:
    """Limits hold for what is promised from now on; nothing that runs is taken away."""
    order = NodeChanged(node=named(node), **change.model_dump(exclude_none=True))
    return await caller.desk.bus.ask(order)


@router.post("/admin/paas/nodes/{node}/disable")
async def disable_node(node: str, caller: Administrator) -> NodeInfo:
    """It gets no new work; what runs there stays."""
    return await caller.desk.bus.ask(NodeChanged(node=named(node), disabled=True))


@router.post("/admin/paas/nodes/{node}/drain")
async def drain_node(node: str, caller: Administrator) -> NodeInfo:
    """Its work goes elsewhere, as far as there is room; `placements` of `drain_total` are left."""
    return await caller.desk.bus.ask(NodeChanged(node=named(node), draining=True))


@router.post("/admin/paas/nodes/{node}/enable")
async def enable_node(node: str, caller: Administrator) -> NodeInfo:
    """Ends a drain, too."""
    return await caller.desk.bus.ask(NodeChanged(node=named(node), disabled=False, draining=False))


@router.delete("/admin/paas/nodes/{node}", status_code=204, response_class=Response)
async def remove_node(node: str, caller: Administrator, force: bool = False) -> None:
    """Cuts the machine off. What it runs stays on it until `berth-node remove` is called there."""
    await caller.desk.bus.ask(NodeRemoved(node=named(node), force=force))


def named(node: str) -> str:
    try:
        return _NAME.validate_python(node)
    except ValidationError:
        raise InvalidInput(f"{node!r} is no node's name: lower-case letters, digits and dashes") from None
