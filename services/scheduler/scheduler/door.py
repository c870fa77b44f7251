"""The nodes' door to the bus: says who may come in, and puts out who has been removed.

Invariant: a machine is let in while the digest of its key is in `node_key` and it is not removed, with the
rights of its own node and no others. Whoever is connected already when his key goes is disconnected, and
looked for again a while after: he may have come in between. Runs as a loop of `app`.
"""

import asyncio
import contextlib
import hashlib
import hmac
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import nats
from contracts.errors import Poison, Unavailable
from contracts.ids import is_node_name
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from runtime.bus import encryption
from runtime.issuer import Issuer, Request, cutter_password
from runtime.permissions import CUTTER, REQUESTS, inbox_of, node_name, node_user
from runtime.runtime import Runtime
from runtime.store import PLATFORM

BATCH = 200
# So long after a removal somebody may still come in who was judged before it.
LINGER = timedelta(minutes=2)
# Every server of a cluster answers for itself; this long is waited for another one.
_SILENCE = 0.25
_PREFIX = node_name("")

_KEYS = "select node, digest from node_key where node = any(%s) and removed_at is null"
# Cut for the last time when nobody can come in any more who was judged before; until then a removed one is
# remembered, or it would be taken for one that never had to join.
_REMOVED = "select node from node_key where removed_at is not null"
_CUT = "update node_key set cut_at = %s where node = %s and removed_at is not null"
_FORGET = "delete from node_key where removed_at < cut_at - %s::interval"


def digest_of(key: str) -> str:
    """Keys and tokens are random and long: a fast digest cannot be searched for what it was made of."""
    return hashlib.sha256(key.encode()).hexdigest()


class Door:
    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        key = runtime.settings.nats_issuer_key
        self._issuer = Issuer(key)
        self._cutter_password = cutter_password(key)
        self._waiting: asyncio.Queue[Msg] = asyncio.Queue(maxsize=20_000)

    async def open(self) -> None:
        async def take(message: Msg) -> None:
            # One who waits for too long tries again by himself.
            if not self._waiting.full():
                self._waiting.put_nowait(message)

        client = self._runtime.bus.client
        await client.subscribe(REQUESTS, queue="scheduler", cb=take)
        await client.flush()

    # --- who comes in --------------------------------------------------------------------------------

    async def judge(self) -> None:
        while True:
            messages = [await self._waiting.get()]
            while len(messages) < BATCH and not self._waiting.empty():
                messages.append(self._waiting.get_nowait())
            requests = []
            for message in messages:
                try:
                    requests.append((message, Request.parse(message.data)))
                except Poison as error:
                    self._runtime.log.warning("not understood at the door", error=error.message)
            await self._judge(requests)

    async def _judge(self, requests: list[tuple[Msg, Request]]) -> None:
        try:
            answers = await self._answers([request for _, request in requests])
        except Unavailable:
            # Without an answer the server turns them away, and they come again.
            return
        except Exception:
            # Whoever says it is a stranger: his words must keep nobody else out.
            if len(requests) == 1:
                self._runtime.log.exception("not judged at the door", user=requests[0][1].user[:80])
                return
            for one in requests:
                await self._judge([one])
            return
        for (message, _), answer in zip(requests, answers, strict=True):
            with contextlib.suppress(NatsError):
                await message.respond(answer)

    async def _answers(self, requests: list[Request]) -> list[bytes]:
        named = [r.user.removeprefix(_PREFIX) for r in requests if r.user.startswith(_PREFIX)]
        names = [name for name in named if is_node_name(name)]
        rows = await self._runtime.store.read(_KEYS, (names,))
        digests: dict[str, str] = {node_name(node): digest for node, digest in rows}
        return [self._answer(request, digests.get(request.user)) for request in requests]

    def _answer(self, request: Request, digest: str | None) -> bytes:
        now = self._runtime.clock.now()
        if digest is None or not hmac.compare_digest(digest, digest_of(request.password)):
            self._runtime.log.info("turned away at the door", user=request.user[:80])
            return self._issuer.refuse(request, now)
        return self._issuer.allow(request, *node_user(request.user.removeprefix(_PREFIX)), now)

    # --- who is put out ------------------------------------------------------------------------------

    async def watch(self) -> None:
        for (node,) in await self._runtime.store.read(_REMOVED):
            try:
                await self.cut(node)
            except Unavailable as error:
                self._runtime.log.warning("a removed node is not cut off yet", node=node, error=error.message)
                continue
            async with self._runtime.store.transaction(PLATFORM) as tx:
                await (await tx.connection()).execute(_FORGET, (LINGER,))

    async def cut(self, node: str) -> int:
        """Ends every connection of the node, and notes that it has; how many there were."""
        now = self._runtime.clock.now()
        try:
            client = await self._system()
            try:
                cut = 0
                async for server, connections in _connections(client, node_name(node)):
                    for number in connections:
                        order = json.dumps({"cid": number}).encode()
                        await client.request(f"$SYS.REQ.SERVER.{server}.KICK", order, timeout=2)
                        cut += 1
            finally:
                await client.close()
        except (NatsError, OSError, TimeoutError) as error:
            raise Unavailable(f"connections of {node} cannot be ended: {error}") from error
        async with self._runtime.store.transaction(PLATFORM) as tx:
            await (await tx.connection()).execute(_CUT, (now, node))
        if cut:
            self._runtime.log.info("put out", node=node, connections=cut)
        return cut

    async def _system(self) -> Client:
        async def quietly(error: Exception) -> None:
            self._runtime.log.debug("nats error", user=CUTTER, error=str(error))

        settings = self._runtime.settings
        return await nats.connect(
            settings.nats_url,
            user=CUTTER,
            password=self._cutter_password,
            inbox_prefix=inbox_of(CUTTER).encode(),
            allow_reconnect=False,
            connect_timeout=2,
            error_cb=quietly,
            **encryption(settings.nats_url, settings.nats_ca),
        )


async def _connections(client: Client, user: str) -> AsyncIterator[tuple[str, list[int]]]:
    """Of one user: each server, and the numbers of his connections there."""
    inbox = client.new_inbox()
    answers = await client.subscribe(inbox)
    await client.publish("$SYS.REQ.SERVER.PING.CONNZ", _asking(user), reply=inbox)
    patience = 2.0
    while True:
        try:
            answer: dict[str, Any] = json.loads((await answers.next_msg(timeout=patience)).data)
        except TimeoutError:
            if patience > _SILENCE:
                raise
            return
        numbers = [one["cid"] for one in answer["data"]["connections"] if one["authorized_user"] == user]
        yield answer["server"]["id"], numbers
        patience = _SILENCE


def _asking(user: str) -> bytes:
    return json.dumps({"auth": True, "user": user, "limit": 1024}).encode()
