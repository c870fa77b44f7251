"""Wires the node agent: what it publishes, reports and repeats. It handles no event, it follows buckets."""

import asyncio
from functools import partial
from pathlib import Path

import structlog
from contracts.errors import Unavailable
from contracts.events import (
    InstanceCrashed,
    InstanceStarted,
    InstanceStopped,
    JobFinished,
    RolloutFinished,
    SleepChanged,
)
from contracts.permits import PullPermitFor
from contracts.reports import CopiesHeld, CopyState, JobOutput, NodeHeartbeat, NodePeer, NodeTraffic
from runtime.runtime import Runtime
from runtime.service import Loop, Service
from runtime.telemetry import recent

from node_agent.copies import Copies
from node_agent.departures import Departures
from node_agent.desired import Desired
from node_agent.elsewhere import SOURCES, Elsewhere
from node_agent.endpoints import EndpointBoard
from node_agent.engine import ContainerEngine, Credentials
from node_agent.environment import Environment
from node_agent.exec import Sessions
from node_agent.firewall import Firewall
from node_agent.firewall_rules import Policy
from node_agent.heartbeat import Heart
from node_agent.holdings import Holdings
from node_agent.homes import Homes
from node_agent.images import Images, Permit
from node_agent.ingress import Proxy, TraefikProxy
from node_agent.jobs import Jobs
from node_agent.journal import Journal
from node_agent.lines import Lines, OwnLog
from node_agent.machine import Machine, Share
from node_agent.membership import Membership
from node_agent.mounts import Mounts
from node_agent.neighbourhood import Neighbourhood
from node_agent.node import Node
from node_agent.routes import Routes
from node_agent.scrub import Scrub
from node_agent.settings import NodeAgentSettings
from node_agent.shelf import Shelf
from node_agent.site import Site
from node_agent.sleep import Nap, Sleep
from node_agent.tenure import Tenures
from node_agent.traffic import Traffic
from node_agent.volumes import LoopVolumes
from node_agent.waker import Waker

log = structlog.get_logger("node_agent")

_INTRODUCTION = (0.5, 1.0, 2.0, 4.0, 8.0)
_DISK_SECONDS = 60.0
_PURGE_SECONDS = 3600.0
_SCRUB_SECONDS = 3600.0
_MEMBERSHIP_SECONDS = 5.0
# How exactly the moment is met at which an app may sleep.
_SLEEP_SECONDS = 2.0
_COPY_SECONDS = 2.0
_LINES_SECONDS = 0.2
# Of the comparisons of everything: what lies still is looked at seldom.
_HELD_EVERY = 10


def create(
    runtime: Runtime,
    engine: ContainerEngine | None = None,
    proxy: Proxy | None = None,
    settings: NodeAgentSettings | None = None,
    machine: Machine | None = None,
) -> Service:
    settings = settings or NodeAgentSettings()
    name, clock, bus = runtime.settings.node, runtime.clock, runtime.bus
    folder = runtime.settings.state.absolute() / "nodes" / name
    engine = engine or _engine(settings, name)
    neighbourhood = None if proxy else _neighbourhood(settings, runtime, folder)
    proxy = proxy or _traefik(settings, runtime, neighbourhood)
    journal = Journal(folder / "journal")
    tenures = Tenures(folder, name, journal, clock)
    desired, routes = Desired(folder, name), Routes(folder)
    traffic = Traffic(name, proxy, clock)
    volumes = LoopVolumes(
        folder / "volumes",
        lambda: runtime.settings.seal_key_of_node(name),
        clock,
        keep_days=settings.volume_days,
        first_uid=settings.first_uid,
    )
    holdings = Holdings(folder / "volumes")
    lines = Lines(name, engine, OwnLog(recent), bus.ask, clock)
    homes = Homes(
        folder / "volumes", name, lambda: runtime.settings.seal_key_of_node(name), volumes, holdings
    )
    departures = Departures(engine, tenures, lines, clock, settings.drain_seconds)
    site = Site(
        node=name,
        telemetry=runtime.telemetry,
        clock=clock,
        engine=engine,
        proxy=proxy,
        images=Images(engine, _permit(settings, runtime), clock),
        desired=desired,
        routes=routes,
        journal=journal,
        tenures=tenures,
        departures=departures,
        endpoints=EndpointBoard(name, clock),
        environment=Environment(name, lambda: runtime.settings.seal_key_of_node(name)),
        rollout_batch=settings.rollout_batch,
        starts=asyncio.Semaphore(settings.starts),
        volumes=volumes,
        mounts=Mounts(engine, volumes, homes, desired, departures),
        neighbourhood=neighbourhood,
        sleep=Sleep(Shelf(folder / "naps", Nap), name, journal, clock),
        traffic=traffic,
        waker=Waker(folder, routes, desired, clock),
        lines=lines,
    )
    jobs = Jobs(site, folder, bus.report)
    sessions = Sessions(site, lambda: bus.client, jobs.attach)
    copies = Copies(
        site,
        folder / "volumes",
        holdings,
        lambda: bus.client,
        report=bus.report,
        mb_per_second=settings.copy_mb_per_second,
    )
    node = Node(site, jobs, sessions, copies)
    site.waker.on_request(node.rouse)
    traffic.on_crowded(node.crowded)
    tell = Loop("copies told", copies.tell, every=_COPY_SECONDS)
    copies.on_change(tell.nudge)
    if machine is None:
        share = Share(settings.cpu_millis, settings.memory_mb, settings.disk_mb)
        machine = Machine(share, runtime.settings.state)
    heart = Heart(site, settings.region, machine, node.healthy, bus.report)
    heartbeat = Loop("heartbeat", heart.beat, every=settings.heartbeat_seconds)
    tenures.on_change(heartbeat.nudge)

    async def introduce() -> None:
        # Whoever listens may begin a little later than this node to speak.
        for seconds in _INTRODUCTION:
            await clock.sleep(seconds)
            heartbeat.nudge()

    return Service(
        name="node-agent",
        publishes=(
            InstanceStarted,
            InstanceStopped,
            InstanceCrashed,
            RolloutFinished,
            SleepChanged,
            JobFinished,
        ),
        reports=(NodeHeartbeat, NodeTraffic, JobOutput, NodePeer, CopyState, CopiesHeld),
        without_bus=True,
        loops=[
            Loop("desired", lambda: node.follow_desired(bus.bucket("desired")), every=None),
            Loop("jobs", lambda: jobs.follow(bus.bucket("jobs")), every=None),
            Loop("sessions", sessions.serve, every=None),
            Loop("copies", lambda: copies.follow(bus.bucket("copies")), every=None),
            Loop("copies given", copies.giver.serve, every=None),
            tell,
            Loop("copies held", copies.tell_held, every=settings.reconcile_seconds * _HELD_EVERY),
            Loop("scrub", Scrub(clock, holdings).work, every=_SCRUB_SECONDS),
            Loop("routes", lambda: node.follow_routes(bus.bucket("routes")), every=None),
            Loop("engine", node.follow_engine, every=None),
            Loop("reconcile", node.reconcile, every=settings.reconcile_seconds),
            Loop("volumes", site.volumes.purge, every=_PURGE_SECONDS),
            Loop("disks", node.measure_disks, every=_DISK_SECONDS),
            Loop("journal", lambda: journal.relay(bus.publish), every=None),
            Loop("endpoints", lambda: site.endpoints.publish(bus.bucket("endpoints")), every=None),
            Loop("engine asked", heart.look, every=settings.heartbeat_seconds),
            heartbeat,
            Loop("traffic", lambda: traffic.report(bus.report), every=settings.heartbeat_seconds),
            Loop("lines", lines.work, every=_LINES_SECONDS),
            Loop("sleep", node.fall_asleep, every=_SLEEP_SECONDS),
            Loop("introduce", introduce, every=3600.0),
            *_among_others(site, node, runtime, settings.reconcile_seconds),
        ],
        on_start=node.open,
        on_stop=node.close,
    )


def _firewall(settings: NodeAgentSettings) -> Firewall | None:
    if settings.firewall == "off":
        return None
    return Firewall(
        Policy(
            prefix=settings.prefix,
            pool=settings.network_pool,
            allowed_networks=settings.allowed_networks,
            allowed_host_ports=settings.allowed_host_ports,
        )
    )


def _engine(settings: NodeAgentSettings, node: str) -> ContainerEngine:
    # The SDK is large: a process that is given another engine does not load it.
    from node_agent.docker_engine import DockerEngine
    from node_agent.docker_networks import Networks

    return DockerEngine(
        settings.engine,
        node=node,
        prefix=settings.prefix,
        networks=Networks(settings.prefix, node, settings.network_pool, settings.network_bits),
        firewall=_firewall(settings),
        tmp_mb=settings.tmp_mb,
    )


def _traefik(
    settings: NodeAgentSettings, runtime: Runtime, neighbourhood: Neighbourhood | None
) -> TraefikProxy:
    return TraefikProxy(
        _routes(settings, runtime), settings.ingress_url, runtime.clock, neighbours=neighbourhood
    )


def _routes(settings: NodeAgentSettings, runtime: Runtime) -> Path:
    return settings.routes or runtime.settings.state.absolute() / "traefik" / "routes"


def _neighbourhood(settings: NodeAgentSettings, runtime: Runtime, folder: Path) -> Neighbourhood | None:
    if not settings.mesh_port:
        return None
    name, clock = runtime.settings.node, runtime.clock
    # Beside the routes: the ingress reads there, and where it runs apart from the agent, nowhere else.
    membership = Membership(
        name,
        _routes(settings, runtime).absolute().parent / "mesh",
        (settings.mesh_host or None, settings.mesh_port),
        clock,
        runtime.bus.report,
    )
    return Neighbourhood(name, Elsewhere(name, folder), membership, settings.mesh_here_port, clock)


def _among_others(site: Site, node: Node, runtime: Runtime, reconcile_seconds: float) -> list[Loop]:
    neighbourhood, proxy = site.neighbourhood, site.proxy
    if neighbourhood is None or not isinstance(proxy, TraefikProxy):
        return []
    membership = Loop("membership", lambda: neighbourhood.keep_membership(proxy), every=_MEMBERSHIP_SECONDS)
    neighbourhood.elsewhere.on_own_peer(membership.nudge)
    return [
        membership,
        Loop("spread", lambda: neighbourhood.spread(proxy, site.routes, node.keeps), every=None),
        Loop("reassert", lambda: neighbourhood.reassert(proxy), every=reconcile_seconds),
        *(
            Loop(
                source,
                partial(neighbourhood.elsewhere.follow, source, runtime.bus.bucket(source)),
                every=None,
            )
            for source in SOURCES
        ),
    ]


def _permit(settings: NodeAgentSettings, runtime: Runtime) -> Permit:
    """A log-in where the operator gives one; else the scheduler says what this node may read."""

    async def permit(image: str) -> Credentials | None:
        if settings.registry_user is not None and settings.registry_password is not None:
            return Credentials(settings.registry_user, settings.registry_password.get_secret_value())
        if "/" not in image:
            # It has no registry.
            return None
        try:
            answer = await runtime.bus.ask(PullPermitFor(node=runtime.settings.node, image=image))
        except Unavailable as error:
            # A registry that asks nobody lets us in all the same.
            log.warning("an image is pulled without a permit", image=image, error=error.message)
            return None
        return Credentials(token=answer.token)

    return permit
