"""Routes by which machines become nodes: tokens for an administrator, script and bundle for anybody who has
one, and the one call a machine makes to join. Nothing here trusts a machine before the scheduler does.
"""

import re

from contracts.errors import Forbidden, Unavailable
from contracts.ids import NodeName
from contracts.nodes_api import JoinAsNode, JoinTokenView, MakeJoinToken, NodeSetup
from contracts.queries import (
    JoinTokenInfo,
    JoinTokenMade,
    JoinTokenPage,
    JoinTokenRevoked,
    JoinTokens,
    NodeJoined,
)
from fastapi import APIRouter, Request, Response
from pydantic import TypeAdapter, ValidationError

from gateway import accounts
from gateway.bundle import bundle
from gateway.desk import Desk
from gateway.permissions import Administrator, Visitor

router = APIRouter(tags=["joining"])

_NAME: TypeAdapter[str] = TypeAdapter(NodeName)


@router.post("/api/admin/paas/join-tokens", status_code=201)
async def make_join_token(new: MakeJoinToken, request: Request, caller: Administrator) -> JoinTokenView:
    require_bus(caller.desk)
    made = await caller.desk.bus.ask(
        JoinTokenMade(
            region=new.region,
            node=new.node,
            labels=new.labels,
            created_by=caller.user,
            seconds=new.minutes * 60,
        )
    )
    url = public_url(caller.desk, request)
    # The script asks for the token: so it is in no history and in no list of processes.
    command = f"curl -fsSLo node.sh {url}/install/node.sh && bash node.sh"
    return JoinTokenView(token=made.token, command=command, info=made.info)


@router.get("/api/admin/paas/join-tokens")
async def list_join_tokens(caller: Administrator, after: str | None = None) -> JoinTokenPage:
    return await caller.desk.bus.ask(JoinTokens(after=after))


@router.delete("/api/admin/paas/join-tokens/{token}")
async def revoke_join_token(token: str, caller: Administrator) -> JoinTokenInfo:
    """No machine joins with it any more; one that has stays a node."""
    return await caller.desk.bus.ask(JoinTokenRevoked(token=token))


@router.post("/api/nodes/join")
async def join(machine: JoinAsNode, request: Request, desk: Visitor) -> NodeSetup:
    require_bus(desk)
    address = request.client.host if request.client else "unknown"
    await accounts.count_attempt(desk, "join", address, "attempts to join")
    joined = await desk.bus.ask(
        NodeJoined(
            token=machine.token.get_secret_value(),
            key=machine.key.get_secret_value(),
            node=_node_name(machine.name),
            address=address,
            machine=machine.machine,
        )
    )
    await accounts.forgive_attempts(desk, "join", address)
    settings = desk.settings
    return NodeSetup(
        node=joined.node,
        region=joined.region,
        nats_url=settings.node_nats_url,
        nats_ca=settings.node_nats_ca.read_text() if settings.node_nats_ca else None,
        seal_key=joined.seal_key,
        settings=settings.node_settings,
    )


@router.get("/install/node.sh", include_in_schema=False)
async def node_script(request: Request, desk: Visitor) -> Response:
    text = bundle().script_for(public_url(desk, request))
    return Response(text, media_type="text/x-shellscript; charset=utf-8")


@router.get("/install/node.tar.gz", include_in_schema=False)
async def node_bundle(desk: Visitor) -> Response:
    return Response(bundle().content, media_type="application/gzip")


def require_bus(desk: Desk) -> None:
    if not desk.settings.node_nats_url:
        raise Unavailable(
            "machines cannot join: NATS is not reachable for them. Set BERTH_PUBLIC_HOST (`berth up`) or "
            "GATEWAY_NODE_NATS_URL to its tls:// address"
        )


def public_url(desk: Desk, request: Request) -> str:
    url = desk.settings.public_url or str(request.base_url).rstrip("/")
    # It becomes part of a script.
    if not re.fullmatch(r"https?://[A-Za-z0-9.:\[\]-]+", url):
        raise Forbidden("this address cannot stand in a script: set GATEWAY_PUBLIC_URL")
    return url


def _node_name(wished: str | None) -> str | None:
    """A host name that can be no node's is not worth a refusal."""
    try:
        return _NAME.validate_python(wished) if wished else None
    except ValidationError:
        return None
