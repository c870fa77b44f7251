"""Wires the scheduler: what it handles, answers, hears and repeats."""

import functools
from collections.abc import Sequence

from contracts import events
from contracts.events import (
    AlertRaised,
    AppChanged,
    AppDeleted,
    InstanceStarted,
    InstanceStopped,
    JobBlocked,
    JobCancelled,
    JobEnded,
    JobFinished,
    JobPlaced,
    JobRequested,
    PlacementBlocked,
    PlacementDecided,
    VolumesMoved,
)
from contracts.permits import PullPermitFor
from contracts.queries import (
    AllNodes,
    CopiesOf,
    JoinTokenMade,
    JoinTokenRevoked,
    JoinTokens,
    NodeChanged,
    NodeJoined,
    NodeOf,
    NodeRemoved,
    PlacesOf,
    RegionsWithRoom,
    SilentAfter,
    UsageOf,
)
from contracts.reports import CopiesHeld, CopyState, NodeHeartbeat, NodePeer, NodeTraffic
from runtime.runtime import Runtime
from runtime.service import Loop, Service, many
from runtime.store import Tx

from scheduler import copying, permits, queries, traffic, usage
from scheduler.administration import Administration
from scheduler.copies import Copies
from scheduler.departures import Departures
from scheduler.door import Door
from scheduler.held import Held
from scheduler.jobs import Jobs
from scheduler.joining import Joining
from scheduler.moves import Moves
from scheduler.nodes import LOOK_SECONDS, SAMPLE_SECONDS, Nodes
from scheduler.peers import SURVEY_SECONDS, Peers
from scheduler.place import Placing
from scheduler.projection import Projection
from scheduler.relief import Relief
from scheduler.settings import SchedulerSettings
from scheduler.workloads import Workloads


def create(runtime: Runtime) -> Service:
    settings = SchedulerSettings()
    projection = Projection(runtime)
    project = Loop("project", projection.project, every=5.0)
    place = Loop("place", Placing(runtime, project.nudge, pack=settings.placement == "pack").place, every=5.0)
    jobs = Jobs(runtime, projection.variables, project.nudge)
    work = Loop("jobs", jobs.work, every=5.0)
    jobs.on_change(work.nudge)
    workloads = Workloads(runtime, place.nudge)
    departures, relief = Departures(place.nudge), Relief(runtime, project.nudge)
    nodes = Nodes(runtime, departures, relief, settings.offline_seconds, place.nudge)
    moves = Moves(runtime, place.nudge, project.nudge)
    copies = Copies(runtime, moves)
    copy = Loop("copies", copies.work, every=5.0)
    copies.on_change(copy.nudge)
    moves.on_change(copy.nudge)
    held = Held(runtime)
    held.on_change(copy.nudge)

    async def started(facts: Sequence[InstanceStarted], tx: Tx) -> None:
        await relief.started(facts, tx)
        await moves.started(facts, tx)

    door, joining, peers = Door(runtime), Joining(runtime), Peers(runtime)
    administration = Administration(runtime, door, peers, place.nudge, jobs.lose)
    return Service(
        name="scheduler",
        handles={
            AppChanged: many(workloads.changed),
            AppDeleted: many(workloads.changed),
            InstanceStarted: many(started),
            InstanceStopped: many(departures.stopped),
            JobRequested: jobs.requested,
            JobCancelled: jobs.cancelled,
            JobFinished: jobs.finished,
        },
        publishes=(
            PlacementDecided,
            PlacementBlocked,
            VolumesMoved,
            JobBlocked,
            JobPlaced,
            JobEnded,
            events.NodeRemoved,
            AlertRaised,
        ),
        answers={
            RegionsWithRoom: functools.partial(queries.regions, runtime, settings),
            AllNodes: functools.partial(queries.all_nodes, runtime),
            PlacesOf: functools.partial(queries.places, runtime),
            NodeOf: functools.partial(queries.node_detail, runtime),
            CopiesOf: functools.partial(copying.of_workload, runtime),
            UsageOf: functools.partial(usage.answer, runtime),
            SilentAfter: functools.partial(usage.silent, runtime),
            NodeChanged: administration.change,
            NodeRemoved: administration.remove,
            JoinTokenMade: joining.make,
            JoinTokens: joining.tokens,
            JoinTokenRevoked: joining.revoke,
            NodeJoined: joining.join,
            PullPermitFor: functools.partial(permits.permit, runtime),
        },
        listens={
            NodeHeartbeat: nodes.heard,
            NodePeer: peers.heard,
            NodeTraffic: functools.partial(traffic.heard, runtime),
            CopyState: moves.heard,
            CopiesHeld: held.heard,
        },
        loops=[
            place,
            project,
            copy,
            Loop("volumes made", copies.remember, every=30.0),
            Loop("look", nodes.look, every=min(LOOK_SECONDS, settings.offline_seconds / 6)),
            Loop("heal", workloads.heal, every=60.0),
            work,
            Loop("forget jobs", jobs.forget, every=3600.0),
            Loop("survey", projection.watch, every=5.0),
            Loop("forget", projection.forget, every=60.0),
            Loop("door", door.judge, every=None),
            Loop("cut", door.watch, every=5.0),
            Loop("peers", peers.survey, every=SURVEY_SECONDS),
            Loop("sample", nodes.sample, every=SAMPLE_SECONDS / 2),
            Loop("thin", nodes.thin, every=3600.0),
            Loop("tokens", joining.forget, every=3600.0),
            Loop("forget traffic", functools.partial(traffic.forget, runtime), every=3600.0),
        ],
        on_start=door.open,
    )
