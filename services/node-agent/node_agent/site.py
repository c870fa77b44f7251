"""What the keepers of all workloads on a node share."""

import asyncio
from dataclasses import dataclass

from runtime.clock import Clock
from runtime.telemetry import Telemetry

from node_agent.departures import Departures
from node_agent.desired import Desired
from node_agent.endpoints import EndpointBoard
from node_agent.engine import ContainerEngine
from node_agent.environment import Environment
from node_agent.images import Images
from node_agent.ingress import Proxy
from node_agent.journal import Journal
from node_agent.lines import Lines
from node_agent.mounts import Mounts
from node_agent.neighbourhood import Neighbourhood
from node_agent.routes import Routes
from node_agent.sleep import Sleep
from node_agent.tenure import Tenures
from node_agent.traffic import Traffic
from node_agent.volumes import Volumes
from node_agent.waker import Waker


@dataclass(frozen=True)
class Site:
    node: str
    clock: Clock
    telemetry: Telemetry
    engine: ContainerEngine
    proxy: Proxy
    images: Images
    desired: Desired
    routes: Routes
    journal: Journal
    tenures: Tenures
    departures: Departures
    endpoints: EndpointBoard
    environment: Environment
    # So many of a workload take the place of old ones at a time, or a quarter of it.
    rollout_batch: int
    # So many instances are started at once: more would only stand in each other's way in the engine.
    starts: asyncio.Semaphore
    volumes: Volumes
    mounts: Mounts
    sleep: Sleep
    traffic: Traffic
    waker: Waker
    lines: Lines
    # None: other nodes send it no requests, and it sends none to them.
    neighbourhood: Neighbourhood | None = None
