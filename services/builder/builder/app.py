"""The builder: source to image. Wiring only."""

import functools

from contracts import build_queries, events, reports
from contracts.credentials import RegistryLogin
from runtime.registry_key import RegistryKey
from runtime.runtime import Runtime
from runtime.service import Loop, Service

from builder import build_log
from builder.build import Builds
from builder.docker_builder import DockerBuilder
from builder.engine_api import EngineApi
from builder.image_builder import ImageBuilder
from builder.janitor import Janitor
from builder.own_registry import OwnRegistry
from builder.queue import Queue
from builder.settings import MIB, BuilderSettings


def create(
    runtime: Runtime, images: ImageBuilder | None = None, settings: BuilderSettings | None = None
) -> Service:
    settings = settings or BuilderSettings()
    ca_bundle = settings.ca_bundle.read_bytes() if settings.ca_bundle is not None else None
    if images is None:
        images = DockerBuilder(
            EngineApi(settings.engine),
            runtime.clock,
            prefix=settings.prefix,
            pids=settings.pids,
            git_image=settings.git_image,
            git_seconds=settings.git_seconds,
            build_seconds=settings.timeout_seconds,
            source_bytes=settings.source_mb * MIB,
            ca_bundle=ca_bundle,
            registry=_registry(runtime, settings),
            allow_private_registry=settings.allow_private_registry,
            least_free_mb=settings.least_free_mb,
        )
    loops: list[Loop] = []

    def nudge() -> None:
        for loop in loops:
            loop.nudge()

    queue = Queue(runtime, settings.lease_seconds, nudge, settings.organization_concurrency)
    builds = Builds(runtime, settings, images, queue, ca_bundle)
    janitor = Janitor(runtime, settings, images)
    loops += [Loop(f"build-{n}", builds.work, every=5.0) for n in range(1, settings.concurrency + 1)]
    return Service(
        name="builder",
        handles={
            events.DeploymentRequested: queue.requested,
            events.DeploymentCancelled: queue.cancelled,
            events.AppDeleted: queue.deleted,
        },
        publishes=(events.BuildStarted, events.BuildFinished),
        answers={
            build_queries.BuildLogAfter: functools.partial(build_log.answer, runtime),
            build_queries.BuildsOpen: queue.answer,
            build_queries.ImageLookup: builds.look_up,
        },
        reports=(reports.BuildLog,),
        loops=[*loops, Loop("pending", queue.heal, every=45.0), Loop("janitor", janitor.work, every=300.0)],
        on_stop=images.close,
    )


def _registry(runtime: Runtime, settings: BuilderSettings) -> OwnRegistry | None:
    if settings.registry is None:
        return None
    if settings.registry_user:
        password = settings.registry_password.get_secret_value()
        login = RegistryLogin(host=settings.registry, user=settings.registry_user, password=password)
        return OwnRegistry(settings.registry, runtime.clock, login=login, url=settings.registry_url)
    key = RegistryKey(runtime.settings.registry_secret)
    return OwnRegistry(settings.registry, runtime.clock, key=key, url=settings.registry_url)
