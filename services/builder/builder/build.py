"""One build from its claim to its end: source, recipe, build, image.

What the customer can mend ends the build; what is the platform's fault is tried again, from scratch; and a
lease that is lost stops everything at once. Run by the service's loops, one per build at a time.
"""

import asyncio
import contextlib
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import BinaryIO

import structlog
from contracts.build_queries import ImageExistence, ImageLookup
from contracts.credentials import RegistryLogin
from contracts.errors import BerthError, InvalidInput, TooLarge, Unavailable
from contracts.workload import BuildFailed, BuildResult, BuildSucceeded, Commit, GitSource, ImageSource
from runtime.runtime import Runtime
from runtime.store import Tx
from runtime.tasks import end

from builder import classic, context, lifecycle, recipe
from builder.build_log import LeaseLost, LogWriter
from builder.buildpacks import Classic
from builder.cnb import Lifecycle
from builder.given import Given, opened
from builder.hints import hint_for
from builder.image_builder import BuiltImage, ImageBuilder, Order, StepFailed
from builder.material import Material, Product
from builder.queue import ATTEMPTS, Claimed, Queue
from builder.settings import MIB, BuilderSettings
from builder.source import Sources

log = structlog.get_logger("builder.build")

_PATIENCE = 1.0
_GIVE_BACK_SECONDS = 5
# Of an image that is made for no particular user.
_SOMEBODY = 1000


@dataclass(frozen=True, slots=True)
class Builds:
    runtime: Runtime
    settings: BuilderSettings
    images: ImageBuilder
    queue: Queue
    ca_bundle: bytes | None

    async def look_up(self, query: ImageLookup) -> ImageExistence:
        return ImageExistence(exists=await self.images.exists(query.reference))

    async def work(self) -> bool:
        """The next build, whole; False when none waits, or nothing can be built."""
        why = await self.images.full()
        if why is not None:
            log.warning("no build is begun", why=why)
            return False
        claimed = await self.queue.claim()
        if claimed is None:
            return False
        with (
            structlog.contextvars.bound_contextvars(build=claimed.row.id, deployment=claimed.row.deployment),
            self.runtime.telemetry.span(
                "build", carrier=claimed.request.trace, deployment=claimed.row.deployment
            ),
        ):
            log.info("build begun", attempt=claimed.row.attempts)
            await self._carry_out(claimed)
        return True

    async def _carry_out(self, claimed: Claimed) -> None:
        writer = LogWriter(self.runtime, claimed.row, claimed.holder, int(self.settings.log_mb * MIB))
        making = asyncio.create_task(self._attempt(claimed, writer), name="build")
        helping = [
            asyncio.create_task(self.queue.keep(claimed), name="keep lease"),
            asyncio.create_task(writer.run(), name="write log"),
        ]
        try:
            await asyncio.wait({making, *helping}, return_when=asyncio.FIRST_COMPLETED)
            if not making.done():
                _say_why(helping)
        except asyncio.CancelledError:
            await end([making, *helping])
            await self._give_back(claimed, writer)
            raise
        finally:
            await end([making, *helping])
        if not making.cancelled():
            making.result()

    async def _attempt(self, claimed: Claimed, writer: LogWriter) -> None:
        try:
            result = await self._result(claimed, writer)

            async def conclude(tx: Tx) -> None:
                if result is None:
                    await self.queue.retry(tx, claimed)
                else:
                    await self.queue.finish(tx, claimed, result)

            while True:
                try:
                    await writer.flush(conclude)
                    return
                except Unavailable as error:
                    # A finished build is not thrown away because the database is away for a moment.
                    log.warning("a build's end waits for the database", error=str(error))
                    await self.runtime.clock.sleep(_PATIENCE)
        except LeaseLost as error:
            log.info("the build is somebody else's now", why=str(error))

    async def _result(self, claimed: Claimed, writer: LogWriter) -> BuildResult | None:
        """None: to be tried again."""
        row = claimed.row
        if row.attempts > ATTEMPTS:
            return BuildFailed(
                step="build",
                exit_code=None,
                message=f"the builders stopped {ATTEMPTS} times while they worked on it",
                hint="Deploy again. If it happens again, tell your provider.",
            )
        if row.attempts > 1:
            await writer.write(
                "source", "platform", f"Beginning again (attempt {row.attempts} of {ATTEMPTS})."
            )
        try:
            async with asyncio.timeout(self._time_left(claimed)) as limit:
                if row.attempts > 1:
                    await self.images.discard(row.id, but=claimed.holder)
                return await self._make(claimed, writer)
        except TimeoutError as error:
            if not limit.expired():
                return await self._ours(claimed, writer, error)
            minutes = self.settings.timeout_seconds / 60
            return BuildFailed(
                step="build", exit_code=None, message=f"the build was not done within {minutes:g} minutes"
            )
        except StepFailed as error:
            hint = error.hint or hint_for(error.message, writer.tail)
            message = writer.masked(error.message)
            return BuildFailed(
                step=error.step,
                exit_code=error.exit_code,
                message=message,
                hint=hint,
                **error.commit.model_dump(),
            )
        except LeaseLost:
            raise
        except Exception as error:
            return await self._ours(claimed, writer, error)

    def _time_left(self, claimed: Claimed) -> float:
        begun = claimed.row.started_at
        spent = 0.0 if begun is None else (self.runtime.clock.now() - begun).total_seconds()
        return max(0.0, self.settings.timeout_seconds - spent)

    async def _ours(self, claimed: Claimed, writer: LogWriter, error: Exception) -> BuildResult | None:
        known = isinstance(error, BerthError)
        words = str(error) if known else "the builder had an internal error"
        log.warning("attempt failed", attempt=claimed.row.attempts, error=str(error), exc_info=not known)
        if claimed.row.attempts >= ATTEMPTS:
            return BuildFailed(
                step="build",
                exit_code=None,
                message=f"{words} ({ATTEMPTS} attempts)",
                hint=hint_for(words, ()),
            )
        await writer.write(
            "build",
            "platform",
            f"Attempt {claimed.row.attempts} of {ATTEMPTS} failed: {words}. Trying again.",
        )
        return None

    async def _give_back(self, claimed: Claimed, writer: LogWriter) -> None:
        try:
            async with asyncio.timeout(_GIVE_BACK_SECONDS):
                await writer.write("build", "platform", "This builder is stopping; another takes over.")
                await writer.flush()
                await self.images.discard(claimed.row.id)
                await self.queue.give_back(claimed)
        except (LeaseLost, BerthError, TimeoutError) as error:
            # The lease runs out by itself, and then it is taken over all the same.
            log.info("the build could not be given back", error=str(error))

    # --- the four steps ------------------------------------------------------------------------------

    async def _make(self, claimed: Claimed, writer: LogWriter) -> BuildSucceeded:
        request = claimed.request
        order = Order(
            build=claimed.row.id,
            attempt=claimed.holder,
            deployment=request.deployment,
            workload=request.workload,
            organization=request.organization,
            memory_mb=max(request.limits.memory_mb, self.settings.memory_mb),
            cpu_millis=max(request.limits.cpu_millis, self.settings.cpu_millis),
            disk_mb=max(request.limits.disk_mb, self.settings.disk_mb),
            cache=None if request.cache is None else f"{request.workload}.{request.cache}",
        )
        given = opened(request, self.runtime.settings.seal_key_of("variables"))
        writer.hide(given.mask())
        with contextlib.ExitStack() as files:
            archive = files.enter_context(tempfile.TemporaryFile())
            packed = files.enter_context(tempfile.TemporaryFile())
            sources = Sources(self.runtime, self.settings, self.images)
            if isinstance(request.source, ImageSource):
                image = await sources.pull(request, request.source, order, writer)
                return await self._published(claimed, order, image, writer, made_by="image")
            commit = await sources.take(request, order, archive, writer)
            try:
                return await self._steps(claimed, order, archive, packed, writer, given=given, commit=commit)
            except StepFailed as error:
                error.commit = commit
                raise

    async def _steps(
        self,
        claimed: Claimed,
        order: Order,
        archive: BinaryIO,
        packed: BinaryIO,
        writer: LogWriter,
        *,
        given: Given,
        commit: Commit,
    ) -> BuildSucceeded:
        request = claimed.request
        fetched = isinstance(request.source, GitSource)
        limits = self.settings.source_limits(links=fetched)
        try:
            found = await asyncio.to_thread(
                context.survey,
                archive,
                limits,
                recipe.wanted(request.build),
                unwrap=not fetched,
                folder=request.build.folder,
            )
        except (InvalidInput, TooLarge) as error:
            raise StepFailed("source", error.message) from error
        await writer.write(
            "source", "platform", f"The source has {found.files} files, {found.bytes:,} bytes."
        )

        chosen = recipe.choose(found.source, request.build, request.runtimes, self.ca_bundle)
        for line in chosen.why:
            await writer.write("recipe", "platform", line)

        async def login_for(images: Collection[str]) -> RegistryLogin | None:
            sources = Sources(self.runtime, self.settings, self.images)
            return await sources.login_for(request.workload, images, writer)

        chosen = given.into(chosen, found.source)
        processes = chosen.processes
        if chosen.by is not None:
            material = Material(
                images=self.images,
                order=order,
                source=archive,
                limits=limits,
                limits_of_git=self.settings.source_limits(links=True),
                survey=found,
                variables={**given.plain, **given.secrets},
                commit=commit.commit,
                uid=request.uid or _SOMEBODY,
                ca_bundle=self.ca_bundle,
                allow_private=self.settings.allow_private_git,
                say=writer.of,
                login_for=login_for,
            )
            product = await _made(chosen.by, material, processes)
            image, processes = product.image, product.processes
        else:
            await asyncio.to_thread(context.write, archive, limits, found, chosen, packed)
            image = await self.images.build(
                order,
                packed,
                chosen.dockerfile,
                chosen.bases,
                writer.of("build"),
                target=chosen.target,
                arguments=chosen.arguments,
                secrets=chosen.handed,
                login=await login_for(chosen.bases),
            )

        done = await self._published(claimed, order, image, writer, made_by=chosen.name)
        return done.model_copy(update={"processes": dict(processes), **commit.model_dump()})

    async def _published(
        self, claimed: Claimed, order: Order, image: BuiltImage, writer: LogWriter, *, made_by: str
    ) -> BuildSucceeded:
        published = await self.images.publish(order, image, writer.of("image"))
        await writer.write(
            "image", "platform", f"The image has {image.size_bytes:,} bytes: {published.digest}"
        )
        start = claimed.request.build.start_command
        return BuildSucceeded(
            image=published.reference,
            digest=published.digest,
            size_bytes=image.size_bytes,
            recipe=made_by,
            processes={"web": start} if start else {},
            port=image.ports[0] if len(image.ports) == 1 else None,
        )


async def _made(by: Classic | Lifecycle, material: Material, processes: Mapping[str, str]) -> Product:
    if isinstance(by, Classic):
        return await classic.make(by, material)
    return await lifecycle.make(by, material, processes)


def _say_why(helping: list[asyncio.Task[None]]) -> None:
    for task in helping:
        error = task.exception() if task.done() else None
        if error is not None and not isinstance(error, LeaseLost):
            log.error("a build was stopped", task=task.get_name(), error=str(error))
        elif task.done():
            log.info("the lease of a build was lost", task=task.get_name())
