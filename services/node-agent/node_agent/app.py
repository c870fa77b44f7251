"""Wires the node agent: what it publishes, reports and repeats. It handles no event, it follows buckets."""

import asyncio

from contracts.events import (
    InstanceCrashed,
    InstanceStarted,
    InstanceStopped,
    JobFinished,
    RolloutFinished,
)
from contracts.reports import JobOutput, NodeHeartbeat
from runtime.runtime import Runtime
from runtime.service import Loop, Service

from node_agent.departures import Departures
from node_agent.desired import Desired
from node_agent.endpoints import EndpointBoard
from node_agent.engine import ContainerEngine, Credentials
from node_agent.environment import Environment
from node_agent.exec import Sessions
from node_agent.firewall import Firewall
from node_agent.firewall_rules import Policy
from node_agent.heartbeat import Heart
from node_agent.images import Images
from node_agent.ingress import Proxy, TraefikProxy
from node_agent.jobs import Jobs
from node_agent.journal import Journal
from node_agent.machine import Machine, Share
from node_agent.node import Node
from node_agent.routes import Routes
from node_agent.settings import NodeAgentSettings
from node_agent.site import Site
from node_agent.tenure import Tenures
from node_agent.volumes import LoopVolumes

_INTRODUCTION = (0.5, 1.0, 2.0, 4.0, 8.0)
_DISK_SECONDS = 60.0
_PURGE_SECONDS = 3600.0


def create(
    runtime: Runtime,
    engine: ContainerEngine | None = None,
    proxy: Proxy | None = None,
    settings: NodeAgentSettings | None = None,
) -> Service:
    settings = settings or NodeAgentSettings()
    name, clock, bus = runtime.settings.node, runtime.clock, runtime.bus
    folder = runtime.settings.state.absolute() / "nodes" / name
    engine = engine or _engine(settings, name)
    proxy = proxy or _traefik(settings, runtime)
    journal = Journal(folder / "journal")
    tenures = Tenures(folder, name, journal, clock)
    site = Site(
        node=name,
        telemetry=runtime.telemetry,
        clock=clock,
        engine=engine,
        proxy=proxy,
        images=Images(engine, _credentials(settings), clock),
        desired=Desired(folder, name),
        routes=Routes(folder),
        journal=journal,
        tenures=tenures,
        departures=Departures(engine, tenures, clock, settings.drain_seconds),
        endpoints=EndpointBoard(name, clock),
        environment=Environment(name, lambda: runtime.settings.seal_key_of_node(name)),
        rollout_batch=settings.rollout_batch,
        starts=asyncio.Semaphore(settings.starts),
        volumes=LoopVolumes(
            folder / "volumes",
            lambda: runtime.settings.seal_key_of_node(name),
            clock,
            keep_days=settings.volume_days,
            first_uid=settings.first_uid,
        ),
    )
    jobs = Jobs(site, folder, bus.report)
    sessions = Sessions(site, lambda: bus.client, jobs.attach)
    node = Node(site, jobs, sessions)
    share = Share(settings.cpu_millis, settings.memory_mb, settings.disk_mb)
    heart = Heart(site, settings.region, Machine(share, runtime.settings.state), node.healthy, bus.report)
    heartbeat = Loop("heartbeat", heart.beat, every=settings.heartbeat_seconds)
    tenures.on_change(heartbeat.nudge)

    async def introduce() -> None:
        # Whoever listens may begin a little later than this node to speak.
        for seconds in _INTRODUCTION:
            await clock.sleep(seconds)
            heartbeat.nudge()

    return Service(
        name="node-agent",
        publishes=(InstanceStarted, InstanceStopped, InstanceCrashed, RolloutFinished, JobFinished),
        reports=(NodeHeartbeat, JobOutput),
        without_bus=True,
        loops=[
            Loop("desired", lambda: node.follow_desired(bus.bucket("desired")), every=None),
            Loop("jobs", lambda: jobs.follow(bus.bucket("jobs")), every=None),
            Loop("sessions", sessions.serve, every=None),
            Loop("routes", lambda: node.follow_routes(bus.bucket("routes")), every=None),
            Loop("engine", node.follow_engine, every=None),
            Loop("reconcile", node.reconcile, every=settings.reconcile_seconds),
            Loop("volumes", site.volumes.purge, every=_PURGE_SECONDS),
            Loop("disks", node.measure_disks, every=_DISK_SECONDS),
            Loop("journal", lambda: journal.relay(bus.publish), every=None),
            Loop("endpoints", lambda: site.endpoints.publish(bus.bucket("endpoints")), every=None),
            heartbeat,
            Loop("introduce", introduce, every=3600.0),
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


def _traefik(settings: NodeAgentSettings, runtime: Runtime) -> TraefikProxy:
    folder = settings.routes or runtime.settings.state.absolute() / "traefik" / "routes"
    return TraefikProxy(folder, settings.ingress_url, runtime.clock)


def _credentials(settings: NodeAgentSettings) -> Credentials | None:
    if settings.registry_user is None or settings.registry_password is None:
        return None
    return Credentials(settings.registry_user, settings.registry_password.get_secret_value())
