"""Buckets: desired state, routes and endpoints as newest value per key, on JetStream.

Keys are tokens joined by dots. A watch never ends: it says everything, then every change, and everything
again after any disturbance, so a reader that was away cannot miss an order.
"""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog
from contracts.errors import Conflict, TooLarge, Unavailable
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.errors import APIError, KeyDeletedError, KeyNotFoundError, KeyWrongLastSequenceError
from nats.js.kv import KeyValue

if TYPE_CHECKING:
    from runtime.bus import Bus

log = structlog.get_logger("runtime.bucket")

_HEARTBEAT = 5.0
# What `delete` says where `update` raises KeyWrongLastSequenceError.
_WRONG_LAST_SEQUENCE = (10071, 10164)


@dataclass(frozen=True, slots=True)
class Entry:
    value: bytes
    revision: int


@dataclass(frozen=True, slots=True)
class Change:
    key: str
    value: bytes | None
    revision: int


class Bucket:
    """A key-value bucket. Keys are tokens joined by dots; `watch` never ends and heals by replay."""

    def __init__(self, bus: "Bus", name: str) -> None:
        self._bus = bus
        self._name = name
        self._store: KeyValue | None = None

    async def _kv(self) -> KeyValue:
        if self._store is None:
            self._store = await self._bus.jetstream().key_value(self._name)
        return self._store

    async def get(self, key: str) -> Entry | None:
        async with _available():
            try:
                entry = await (await self._kv()).get(key)
            except (KeyNotFoundError, KeyDeletedError):
                return None
            return Entry(entry.value or b"", entry.revision or 0)

    async def put(self, key: str, value: bytes) -> int:
        if len(value) > self._bus.largest:
            # Not for want of a server: to try again would be in vain.
            raise TooLarge(f"{key} has {len(value)} bytes, more than the message bus takes")
        async with _available():
            return int(await (await self._kv()).put(key, value))

    async def create(self, key: str, value: bytes) -> int:
        async with _available():
            return int(await (await self._kv()).create(key, value))

    async def update(self, key: str, value: bytes, last: int) -> int:
        async with _available():
            return int(await (await self._kv()).update(key, value, last=last))

    async def delete(self, key: str, last: int | None = None) -> None:
        async with _available():
            await (await self._kv()).delete(key, last=last)

    async def entries(self, prefix: str = "") -> dict[str, Entry]:
        """Everything the bucket holds below `prefix` (a whole token and its dot)."""
        found: dict[str, Entry] = {}
        async with _available(), asyncio.timeout(30):
            async for change in self._replay(f"{prefix}>"):
                if change is None:
                    break
                if change.value is not None:
                    found[change.key] = Entry(change.value, change.revision)
        return found

    async def keys(self, prefix: str = "") -> list[str]:
        return sorted(await self.entries(prefix))

    async def watch(self, pattern: str = ">") -> AsyncIterator[Change | None]:
        """Every key's newest value, then None, then each change; all of it again after any disturbance."""
        while True:
            try:
                async for change in self._replay(pattern):
                    yield change
            except (NatsError, APIError, TimeoutError, OSError, Unavailable) as error:
                log.debug("watch begins again", bucket=self._name, error=str(error))
                await asyncio.sleep(0.5)

    async def _replay(self, pattern: str) -> AsyncIterator[Change | None]:
        # nats-py's own watcher names no consumer and no filter in the request, so a node's credentials
        # could not be confined to its own keys. This one can: the server checks the subject.
        client, js = self._bus.client, self._bus.jetstream()
        arrived: asyncio.Queue[Msg] = asyncio.Queue()
        inbox = client.new_inbox()
        subscription = await client.subscribe(inbox, cb=arrived.put)
        try:
            info = await js.add_consumer(
                f"KV_{self._name}",
                ConsumerConfig(
                    name=f"{self._bus.user}-{uuid.uuid4().hex[:12]}",
                    filter_subject=f"$KV.{self._name}.{pattern}",
                    deliver_subject=inbox,
                    deliver_policy=DeliverPolicy.LAST_PER_SUBJECT,
                    ack_policy=AckPolicy.NONE,
                    idle_heartbeat=_HEARTBEAT,
                    inactive_threshold=60,
                    mem_storage=True,
                    num_replicas=1,
                ),
            )
            complete = not info.num_pending
            if complete:
                yield None
            expected = 1
            while True:
                async with asyncio.timeout(3 * _HEARTBEAT):
                    message = await arrived.get()
                if (message.headers or {}).get("Status"):
                    continue
                metadata = message.metadata
                if metadata.sequence.consumer != expected:
                    return
                expected += 1
                gone = (message.headers or {}).get("KV-Operation") in ("DEL", "PURGE")
                key = message.subject[len(f"$KV.{self._name}.") :]
                yield Change(key, None if gone else message.data, metadata.sequence.stream)
                if not complete and not metadata.num_pending:
                    complete = True
                    yield None
        finally:
            with contextlib.suppress(NatsError, OSError):
                await subscription.unsubscribe()


@asynccontextmanager
async def _available() -> AsyncIterator[None]:
    try:
        yield
    except KeyWrongLastSequenceError as error:
        raise Conflict("somebody else has changed this key") from error
    except (NatsError, APIError, TimeoutError, OSError) as error:
        if isinstance(error, APIError) and error.err_code in _WRONG_LAST_SEQUENCE:
            raise Conflict("somebody else has changed this key") from error
        raise Unavailable(f"the message bus did not answer: {error}") from error
