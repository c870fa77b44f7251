"""Wires the scheduler: what it handles, answers, hears and repeats."""

import functools

from contracts.events import (
    AlertRaised,
    AppChanged,
    AppDeleted,
    InstanceStopped,
    PlacementBlocked,
    PlacementDecided,
)
from contracts.queries import AllNodes, RegionsWithRoom
from contracts.reports import NodeHeartbeat
from runtime.runtime import Runtime
from runtime.service import Loop, Service, many

from scheduler import queries
from scheduler.departures import Departures
from scheduler.nodes import LOOK_SECONDS, Nodes
from scheduler.place import Placing
from scheduler.projection import Projection
from scheduler.settings import SchedulerSettings
from scheduler.workloads import Workloads


def create(runtime: Runtime) -> Service:
    settings = SchedulerSettings()
    projection = Projection(runtime)
    project = Loop("project", projection.project, every=5.0)
    place = Loop("place", Placing(runtime, project.nudge).place, every=5.0)
    workloads = Workloads(runtime, place.nudge)
    departures = Departures(place.nudge)
    nodes = Nodes(runtime, departures, settings.offline_seconds, place.nudge)
    return Service(
        name="scheduler",
        handles={
            AppChanged: many(workloads.changed),
            AppDeleted: many(workloads.changed),
            InstanceStopped: many(departures.stopped),
        },
        publishes=(PlacementDecided, PlacementBlocked, AlertRaised),
        answers={
            RegionsWithRoom: functools.partial(queries.regions, runtime, settings),
            AllNodes: functools.partial(queries.all_nodes, runtime),
        },
        listens={NodeHeartbeat: nodes.heard},
        loops=[
            place,
            project,
            Loop("look", nodes.look, every=LOOK_SECONDS),
            Loop("heal", workloads.heal, every=60.0),
            Loop("survey", projection.watch, every=5.0),
            Loop("forget", projection.forget, every=60.0),
        ],
    )
