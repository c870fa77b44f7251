"""Whether the data a node has of a workload is what is to run, or another node's time has come since.

Every time a workload's data gets another home, its number rises. A node runs only on data of the number it is
told; it makes that out of the copy it was told to claim, and of nothing else; and what it has of an older
number it keeps until the newer is known to run elsewhere, and then puts it aside. Called by the keepers.
"""

import asyncio
import os
import shutil
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import structlog
from contracts.copies import keys_for_node
from contracts.errors import InvalidInput, ProviderFailed
from contracts.model import Model
from contracts.workload import NodeWorkload
from pydantic import TypeAdapter, ValidationError

from node_agent.holdings import CHECKED, MANIFEST, Holdings, Manifest, image_of
from node_agent.shelf import sync_folder, write_alone
from node_agent.volumes import Volumes, take_room

log = structlog.get_logger("node-agent.homes")

_RECORD = "home.json"
_KEYS: TypeAdapter[dict[str, str]] = TypeAdapter(dict[str, str])


class Home(Model):
    number: int


class Homes:
    def __init__(
        self, folder: Path, node: str, key: Callable[[], str], volumes: Volumes, holdings: Holdings
    ) -> None:
        """`folder`: of the volumes. `key`: what is sealed for this node; asked for when there is something to
        open."""
        self._files = folder / "files"
        self._node = node
        self._key = key
        self._volumes = volumes
        self._holdings = holdings
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    def number(self, workload: str) -> int:
        """Of the data that is here; 0 where it has never been anywhere else."""
        try:
            return Home.model_validate_json((self._files / workload / _RECORD).read_text()).number
        except FileNotFoundError:
            return 0

    async def enter(self, wanted: NodeWorkload) -> None:
        """What is to run is here when this returns. Instances that start at once ask at once."""
        async with self._locks[wanted.spec.id]:
            await self._enter(wanted)

    async def _enter(self, wanted: NodeWorkload) -> None:
        workload, number = wanted.spec.id, self.number(wanted.spec.id)
        if number == wanted.home:
            return
        if number > wanted.home:
            raise ProviderFailed("its volumes here are newer than those it is to run with")
        # What is here stays what it is as long as there is nothing to take its place.
        await asyncio.to_thread(self._claimable, wanted)
        await self.leave(wanted)
        await asyncio.to_thread(self._claim, wanted)
        log.info("a copy has become the data", workload=workload, home=wanted.home)

    def awaited(self, told: NodeWorkload) -> bool:
        """This is the home of its data, and the data is still a copy."""
        return (
            told.claim is not None and told.spec.state != "deleted" and self.number(told.spec.id) < told.home
        )

    def stale(self, told: NodeWorkload) -> bool:
        """It is here, and newer data runs elsewhere."""
        return bool(self._volumes.of(told.spec.id)) and self.number(told.spec.id) < told.proven

    async def leave(self, told: NodeWorkload) -> None:
        """Whatever is here of an older number is put aside."""
        for volume in self._volumes.of(told.spec.id):
            await self._volumes.give_up(volume)

    def _claimable(self, wanted: NodeWorkload) -> Manifest | None:
        claim = wanted.claim
        if claim is None:
            return None
        held = self._holdings.finish(wanted.spec.id)
        if held is None or (held.id != claim.id and held.taken_at < claim.taken_at):
            raise ProviderFailed("the copy of its volumes is not on this node")
        return held

    def _claim(self, wanted: NodeWorkload) -> None:
        workload, claim = wanted.spec.id, wanted.claim
        home = self._files / workload
        if claim is None:
            # It begins anew here, on empty volumes.
            home.mkdir(mode=0o700, parents=True, exist_ok=True)
            _record(home, wanted.home)
            return
        with self._holdings.alone(workload):
            held = self._claimable(wanted)
            assert held is not None, "there is a claim"
            copy = self._holdings.folder(workload)
            for volume in held.volumes:
                _allocate(image_of(copy, volume))
            _record(copy, wanted.home)
            self._files.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Of what was here before, the volumes are aside already.
            shutil.rmtree(home, ignore_errors=True)
            # One step: it is a copy, or it is the data.
            copy.rename(home)
            sync_folder(self._files)
            for left in (*home.glob("*.digests"), home / CHECKED, home / MANIFEST):
                left.unlink(missing_ok=True)

    def keys(self, wanted: NodeWorkload) -> dict[str, str]:
        """Of encrypted volumes that were made elsewhere."""
        if wanted.volume_keys is None:
            return {}
        from runtime.seal import Seal

        context = keys_for_node(wanted.spec.id, self._node)
        try:
            return _KEYS.validate_json(Seal(self._key()).open(wanted.volume_keys, context))
        except (InvalidInput, ValidationError) as error:
            raise ProviderFailed("the keys of its volumes cannot be unsealed on this node") from error


def _allocate(image: Path) -> None:
    """Nobody else's writes can make it fail from now on: its blocks are its own."""
    try:
        with image.open("r+b") as file:
            take_room(file.fileno(), image.stat().st_size)
            os.fsync(file.fileno())
    except OSError as error:
        raise ProviderFailed(f"there is no room for its volumes: {error.strerror}") from error


def _record(folder: Path, number: int) -> None:
    write_alone(folder / _RECORD, Home(number=number).model_dump_json())
