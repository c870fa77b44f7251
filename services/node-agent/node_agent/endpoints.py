"""Tells the platform where a workload answers on this node: the bucket `endpoints`.

The ingress of this machine does not wait for it. After every disturbance everything is said again.
"""

import asyncio

from contracts.errors import Unavailable
from contracts.workload import Endpoints
from runtime.bucket import Bucket
from runtime.clock import Clock

# So long the bus may take until it knows.
_PATIENCE = 3.0
_LOOK_EVERY = 0.02


class EndpointBoard:
    def __init__(self, node: str, clock: Clock) -> None:
        self._node = node
        self._clock = clock
        self._wanted: dict[str, tuple[str, ...] | None] = {}
        self._told: dict[str, tuple[str, ...]] = {}
        self._changed = asyncio.Event()

    def say(self, workload: str, addresses: tuple[str, ...]) -> None:
        if self._wanted.get(workload) != addresses:
            self._wanted[workload] = addresses
            self._changed.set()

    async def told(self, workload: str, addresses: tuple[str, ...]) -> None:
        """Returns when it is said, and the bus has it."""
        self.say(workload, addresses)
        end = self._clock.monotonic() + _PATIENCE
        while self._told.get(workload) != addresses:
            if self._clock.monotonic() > end:
                raise Unavailable("the message bus does not take where workloads answer")
            await self._clock.sleep(_LOOK_EVERY)

    def withdraw(self, workload: str) -> None:
        self._wanted[workload] = None
        self._changed.set()

    def say_again(self) -> None:
        """What was said may have been lost."""
        self._told.clear()
        self._changed.set()

    async def publish(self, bucket: Bucket) -> None:
        """Never ends but by the error of the bucket."""
        while True:
            self._changed.clear()
            for workload, addresses in list(self._wanted.items()):
                key = f"{workload}.{self._node}"
                if addresses is None:
                    await bucket.delete(key)
                    self._wanted.pop(workload, None)
                    self._told.pop(workload, None)
                elif self._told.get(workload) != addresses:
                    said = Endpoints(
                        node=self._node, workload=workload, addresses=addresses, at=self._clock.now()
                    )
                    await bucket.put(key, said.model_dump_json().encode())
                    self._told[workload] = addresses
            await self._changed.wait()
