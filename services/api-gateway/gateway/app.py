"""The gateway: REST and SSE; it owns identity and every customer's intent."""

import functools

from contracts import events, queries
from contracts.lines import KeepLines
from contracts.reports import JobOutput, LinesKept
from runtime.runtime import Runtime
from runtime.service import Loop, Service

from gateway import (
    accounts,
    activity,
    alerts,
    copies,
    credentials,
    cron,
    http,
    jobs,
    lines,
    names,
    outages,
    rollouts,
    silence,
    sleep,
    snapshots,
    sources,
    sweeps,
    wallets,
)
from gateway.desk import Desk
from gateway.passwords import Passwords
from gateway.scaling import scale_by_rules
from gateway.seed import seed
from gateway.settings import GatewaySettings
from gateway.tokens import Tokens


def create(
    runtime: Runtime, settings: GatewaySettings | None = None, resolve: names.Resolve = names.resolve
) -> Service:
    settings = settings or GatewaySettings()
    key = settings.token_secret
    secret = key.get_secret_value() if key else runtime.secret("tokens")
    desk = Desk(
        settings=settings,
        currency=runtime.settings.currency,
        clock=runtime.clock,
        store=runtime.store,
        bus=runtime.bus,
        tokens=Tokens(secret, settings.token_hours, runtime.store, runtime.clock),
        passwords=Passwords(),
        names=names.Names(resolve),
        seal_key=runtime.settings.seal_key_of,
    )

    async def begin() -> None:
        await seed(desk)
        await accounts.first_administrator(desk)

    return Service(
        name="gateway",
        handles={
            events.HostnameAssigned: rollouts.hostname_assigned,
            events.BuildStarted: rollouts.build_started,
            events.BuildFinished: functools.partial(rollouts.build_finished, desk),
            events.PlacementDecided: rollouts.placement_decided,
            events.PlacementBlocked: rollouts.placement_blocked,
            events.VolumesMoved: copies.volumes_moved,
            events.RolloutFinished: rollouts.rollout_finished,
            events.InstanceCrashed: activity.crashed,
            events.InstanceStopped: activity.stopped,
            events.JobBlocked: rollouts.job_blocked,
            events.JobPlaced: rollouts.job_placed,
            events.SleepChanged: sleep.changed,
            events.JobEnded: rollouts.job_ended,
            events.WalletChanged: wallets.changed,
            events.AlertRaised: alerts.raised,
        },
        publishes=(
            events.AppCreated,
            events.DeploymentRequested,
            events.DeploymentCancelled,
            events.AppChanged,
            events.AppDeleted,
            events.JobRequested,
            events.JobCancelled,
            events.CreditGranted,
            events.AlertRaised,
        ),
        reports=(LinesKept,),
        answers={
            queries.WorkloadsAfter: functools.partial(snapshots.workloads_after, desk),
            queries.DeploymentsPending: functools.partial(snapshots.deployments_pending, desk),
            queries.SourcePartOf: functools.partial(sources.part_of, desk),
            queries.CredentialsOf: functools.partial(credentials.sealed, desk),
            KeepLines: functools.partial(lines.keep, desk),
        },
        listens={JobOutput: functools.partial(jobs.heard, desk)},
        loops=[
            Loop("sweep", functools.partial(sweeps.sweep, desk), every=15.0),
            Loop("silence", functools.partial(silence.listen, desk), every=30.0),
            Loop("outages", functools.partial(outages.look, desk), every=30.0),
            Loop("cron", functools.partial(cron.tick, desk), every=5.0),
            Loop("scale", functools.partial(scale_by_rules, desk), every=30.0),
            Loop("tidy", functools.partial(sweeps.tidy, desk), every=300.0),
        ],
        http=http.create(desk, runtime.telemetry),
        on_start=begin,
        on_closing=desk.closing.set,
        on_stop=desk.end,
    )
