"""Wires domains: what it handles and repeats."""

from contracts.events import AppChanged, AppCreated, AppDeleted, HostnameAssigned
from runtime.runtime import Runtime
from runtime.service import Loop, Service, many

from domains.hostnames import Hostnames
from domains.projection import Projection
from domains.settings import DomainsSettings


def create(runtime: Runtime) -> Service:
    projection = Projection(runtime)
    project = Loop("project", projection.project, every=5.0)
    hostnames = Hostnames(runtime, DomainsSettings(), project.nudge)
    return Service(
        name="domains",
        handles={
            AppCreated: many(hostnames.changed),
            AppChanged: many(hostnames.changed),
            AppDeleted: many(hostnames.changed),
        },
        publishes=(HostnameAssigned,),
        loops=[
            project,
            Loop("survey", projection.watch, every=5.0),
            Loop("heal", hostnames.heal, every=60.0),
        ],
    )
