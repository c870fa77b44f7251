"""What builds leave behind: containers of builds that are over, images no release needs, old cache.

Never an image of a release, of a build that may become one, or of a running container. When the gateway
does not say which releases there are, none is removed.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

import structlog
from contracts.errors import BerthError
from contracts.queries import WorkloadsAfter
from runtime.runtime import Runtime
from runtime.store import PLATFORM
from sqlalchemy import delete, func, select, update
from sqlalchemy.dialects.postgresql import insert

from builder.image_builder import ImageBuilder, KeptImage
from builder.settings import BuilderSettings
from builder.tables import BuildRow, LayerRow

log = structlog.get_logger("builder.janitor")

# A build that has just ended is not yet a release; the gateway may still be making it one.
_FRESH = timedelta(hours=1)
_AT_ONCE = 200
_OPEN = BuildRow.state.in_(("queued", "building"))


@dataclass(frozen=True, slots=True)
class Needed:
    """Workloads that are there, the images of their releases, and the deployments that are built or
    were built last of each."""

    workloads: frozenset[str]
    images: frozenset[str]
    deployments: frozenset[str]


@dataclass(frozen=True, slots=True)
class Published:
    deployment: str
    workload: str
    image: str


@dataclass(frozen=True, slots=True)
class Janitor:
    runtime: Runtime
    settings: BuilderSettings
    images: ImageBuilder

    async def work(self) -> None:
        await self.images.sweep(await self._active())
        await self._remember_layers()
        await self._remove_images()
        await self._forget_layers()

    async def _active(self) -> set[str]:
        async with self.runtime.store.transaction(PLATFORM) as tx:
            return set(await tx.scalars(select(BuildRow.id).where(BuildRow.state == "building")))

    async def _remove_images(self) -> None:
        needed = await self._needed()
        await self._withdraw(needed)
        for image in superfluous(await self.images.images(), needed):
            if self.runtime.clock.now() - image.made_at < _FRESH:
                continue
            if await self.images.remove(image):
                log.info("image removed", image=image.id, deployment=image.deployment)

    async def _withdraw(self, needed: Needed) -> None:
        """Out of the registry, whichever builder has put them there."""
        if self.settings.registry is None:
            return
        built = (
            select(BuildRow.deployment, BuildRow.workload, BuildRow.image)
            .where(BuildRow.state == "succeeded", BuildRow.withdrawn.is_(False))
            .where(BuildRow.image.startswith(f"{self.settings.registry}/", autoescape=True))
            .where(BuildRow.finished_at < self.runtime.clock.now() - _FRESH)
        )
        async with self.runtime.store.transaction(PLATFORM) as tx:
            found = await tx.execute(built)
            published = [Published(one.deployment, one.workload, str(one.image)) for one in found]
        for image in unwanted(published, needed)[:_AT_ONCE]:
            try:
                await self.images.withdraw(image)
            except BerthError as error:
                log.warning("an image stays in the registry", image=image, error=error.message)
                return
            async with self.runtime.store.transaction(PLATFORM) as tx:
                await tx.execute(update(BuildRow).where(BuildRow.image == image).values(withdrawn=True))
            log.info("image removed from the registry", image=image)

    async def _needed(self) -> Needed:
        workloads, images = set(), set()
        page = await self.runtime.bus.ask(WorkloadsAfter())
        while True:
            for spec in page.specs:
                if spec.state != "deleted":
                    workloads.add(spec.id)
                    images.add(spec.image or "")
            if page.next is None:
                break
            page = await self.runtime.bus.ask(WorkloadsAfter(after=page.next))
        place = func.row_number().over(partition_by=BuildRow.workload, order_by=BuildRow.finished_at.desc())
        built = (
            select(BuildRow.deployment, place.label("place")).where(BuildRow.state == "succeeded").subquery()
        )
        async with self.runtime.store.transaction(PLATFORM) as tx:
            found = await tx.execute(
                select(built.c.deployment).where(built.c.place <= self.settings.keep_images)
            )
            last = set(found.scalars())
            # Under its deployment's name an image may be old that was built, from the cache, a moment ago.
            fresh = BuildRow.finished_at > self.runtime.clock.now() - _FRESH
            last |= set(await tx.scalars(select(BuildRow.deployment).where(_OPEN | fresh)))
        return Needed(frozenset(workloads), frozenset(images), frozenset(last))

    async def _remember_layers(self) -> None:
        used = self.images.layers()
        if not used:
            return
        engine, now = await self.images.engine(), self.runtime.clock.now()
        weights = await self.images.weigh(used)
        rows = [
            {"engine": engine, "id": layer, "used_at": now, "bytes": weights.get(layer, 0)}
            for layer in sorted(used)
        ]
        statement = insert(LayerRow).values(rows)
        async with self.runtime.store.transaction(PLATFORM) as tx:
            await tx.execute(
                statement.on_conflict_do_update(
                    index_elements=[LayerRow.engine, LayerRow.id],
                    set_={"used_at": statement.excluded.used_at, "bytes": statement.excluded.bytes},
                )
            )

    async def _forget_layers(self) -> None:
        """What was not used for long, and, where the cache is too large or the disk is nearly full, what was
        not used for longest; never what a build of this moment may stand on."""
        engine, now = await self.images.engine(), self.runtime.clock.now()
        most = 0 if await self.images.full() is not None else int(self.settings.cache_gb * 1024**3)
        async with self.runtime.store.transaction(PLATFORM) as tx:
            rows = await tx.scalars(
                select(LayerRow).where(LayerRow.engine == engine).order_by(LayerRow.used_at, LayerRow.id)
            )
        total = sum(row.bytes for row in rows)
        gone: list[str] = []
        for row in rows:
            old = row.used_at < now - timedelta(days=self.settings.cache_days)
            large = total > most and row.used_at < now - _FRESH
            if len(gone) == _AT_ONCE or not (old or large):
                break
            if await self.images.forget(row.id):
                gone.append(row.id)
                total -= row.bytes
        if gone:
            async with self.runtime.store.transaction(PLATFORM) as tx:
                await tx.execute(delete(LayerRow).where(LayerRow.engine == engine, LayerRow.id.in_(gone)))


def unwanted(published: Iterable[Published], needed: Needed) -> list[str]:
    """PURE. The same of images in the registry; one that several deployments have is there once."""
    kept: defaultdict[bool, dict[str, None]] = defaultdict(dict)
    for one in published:
        released = one.image in needed.images or one.deployment in needed.deployments
        kept[one.workload in needed.workloads and released][one.image] = None
    return [image for image in kept[False] if image not in kept[True]]


def superfluous(images: Iterable[KeptImage], needed: Needed) -> list[KeptImage]:
    """PURE. Those of workloads that are gone, and those neither released nor built lately."""
    groups: defaultdict[bool, list[KeptImage]] = defaultdict(list)
    for image in images:
        released = image.id in needed.images or any(name in needed.images for name in image.digests)
        kept = image.workload in needed.workloads and (released or image.deployment in needed.deployments)
        groups[kept].append(image)
    return groups[False]
