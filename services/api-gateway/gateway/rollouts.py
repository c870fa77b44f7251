"""What builder, scheduler, nodes and domains say about a workload, and what becomes of its deployments.

Handlers: each may come twice, late and out of order. A build takes effect once and only while its deployment
is under way; what is said of an old generation is dropped. A release that does not come to life gives way to
the last one that did.
"""

from datetime import datetime
from typing import Any

from contracts.errors import NotFound, TooLarge
from contracts.events import (
    BuildFinished,
    BuildStarted,
    HostnameAssigned,
    JobBlocked,
    JobEnded,
    JobPlaced,
    PlacementBlocked,
    PlacementDecided,
    RolloutFinished,
)
from contracts.ids import new_id
from contracts.jobs import JobKind
from contracts.workload import BuildCancelled, BuildFailed, BuildSucceeded, Process, WorkloadSpec
from runtime.store import Tx
from sqlalchemy import func, select, update

from gateway import activity, jobs, sizes, sleep, status, workloads
from gateway.desk import Desk
from gateway.status import Blockage, Placement, Rollout
from gateway.tables import DeploymentRow, JobRow, ReleaseRow, WorkloadRow

RELEASE: JobKind = "release"
_RELEASE_RUNS = "its release phase runs before it goes live"
_LOG_TAIL = 50

# --- hostnames -------------------------------------------------------------------------------------------


async def hostname_assigned(event: HostnameAssigned, tx: Tx) -> None:
    row = await workloads.find(tx, event.workload)
    if row is not None and (row.url_at is None or row.url_at <= event.at):
        row.url, row.url_at = event.url, event.at


# --- builds ----------------------------------------------------------------------------------------------


async def build_started(event: BuildStarted, tx: Tx) -> None:
    row, deployment = await _both(tx, event.workload, event.deployment)
    if row is not None and deployment.status == "queued":
        _enter(deployment, "building")
        await workloads.settle(tx, row)


async def build_finished(desk: Desk, event: BuildFinished, tx: Tx) -> None:
    row, deployment = await _both(tx, event.workload, event.deployment)
    if row is None or deployment.seconds is not None:
        return
    deployment.seconds, deployment.build_lines = event.seconds, event.lines
    if not isinstance(event.result, BuildCancelled):
        deployment.commit = event.result.commit
        deployment.commit_author = event.result.commit_author
        deployment.commit_message = event.result.commit_message
    if isinstance(event.result, BuildSucceeded):
        await _built(desk, tx, row, deployment, event.result)
    elif isinstance(event.result, BuildCancelled):
        if deployment.status in status.WAITING:
            _enter(deployment, "cancelled", event.result.message)
    else:
        _not_built(deployment, event.result)
    await workloads.settle(tx, row)


async def _built(
    desk: Desk, tx: Tx, row: WorkloadRow, deployment: DeploymentRow, result: BuildSucceeded
) -> None:
    deployment.recipe = result.recipe
    deployment.image, deployment.size_bytes = result.image, result.size_bytes
    if deployment.status not in status.WAITING:
        return
    found = await tx.execute(
        select(DeploymentRow.number, DeploymentRow.status).where(DeploymentRow.workload == row.id)
    )
    if not status.overtakes(deployment.number, {other.number: other.status for other in found}):
        _enter(deployment, "superseded", "a newer deployment was faster")
        return
    release = ReleaseRow(
        id=new_id("rel"),
        organization=row.organization,
        workload=row.id,
        deployment=deployment.id,
        image=result.image,
        digest=result.digest,
        processes=result.processes,
        port=result.port,
    )
    tx.add(release)
    _enter(deployment, "deploying")
    await workloads.end_deployments(
        tx, row, "superseded", "a newer deployment was faster", before=deployment.number
    )
    command = result.processes.get(RELEASE)
    if command is None:
        await go_live(tx, row, deployment, release)
        return
    spec = workloads.spec_of(row).model_copy(
        update={"image": release.image, "release": release.id, "deployment": deployment.id}
    )
    if _too_large(deployment, spec):
        return
    deployment.reason = _RELEASE_RUNS
    jobs.ask(
        tx,
        row,
        spec,
        RELEASE,
        command=command,
        timeout_seconds=desk.settings.release_minutes * 60,
        now=desk.clock.now(),
        deployment=deployment.id,
    )


async def go_live(tx: Tx, row: WorkloadRow, deployment: DeploymentRow, release: ReleaseRow) -> None:
    """Where its commands fit beside the app's variables; before anything of the app is touched."""
    wanted = {"image": release.image, "processes": await workloads.processes_of(tx, row, release)}
    if _too_large(deployment, workloads.spec_of(row).model_copy(update=wanted)):
        return
    had, chosen = set(row.processes), row.chosen
    await workloads.use_release(tx, row, release)
    deployment.notes = [
        note for name in sorted(row.processes.keys() - had) if (note := _note(row, name, chosen.get(name, 0)))
    ]
    row.state, row.suspended = "running", False
    workloads.tell(tx, row)


def _note(row: WorkloadRow, name: str, chosen: int) -> str | None:
    """Of a process that was not there before."""
    replicas = Process.model_validate(row.processes[name]).replicas
    if replicas < chosen:
        return f"the process {name} comes back with {replicas} of {chosen} instances: its plan has no room"
    if replicas:
        return None
    return f"the process {name} is new and has no instance yet; POST …/scale gives it some"


def _too_large(deployment: DeploymentRow, spec: WorkloadSpec) -> bool:
    try:
        sizes.require_sendable(spec)
    except TooLarge as error:
        _enter(deployment, "failed", error.message)
        return True
    return False


async def job_blocked(event: JobBlocked, tx: Tx) -> None:
    row = await workloads.find(tx, event.workload)
    words = status.blocked_words(event.reasons)
    await _tell_deployment(tx, row, await jobs.blocked(event, words, tx), f"its release phase waits: {words}")


async def job_placed(event: JobPlaced, tx: Tx) -> None:
    row = await workloads.find(tx, event.workload)
    await _tell_deployment(tx, row, await jobs.placed(event, tx), _RELEASE_RUNS)


async def _tell_deployment(tx: Tx, row: WorkloadRow | None, job: JobRow | None, words: str) -> None:
    if row is None or job is None or job.deployment is None:
        return
    deployment = await tx.get(DeploymentRow, job.deployment, lock=True)
    if deployment is not None and deployment.status == "deploying":
        deployment.reason = words
        await workloads.settle(tx, row)


async def job_ended(event: JobEnded, tx: Tx) -> None:
    """The end of a release phase decides about its deployment; all others are only noted."""
    row = await workloads.find(tx, event.workload)
    ended = await jobs.end(event, tx)
    if row is None or ended is None or ended.deployment is None:
        return
    deployment = await tx.get(DeploymentRow, ended.deployment, lock=True)
    if deployment is None or deployment.status != "deploying":
        return
    if event.outcome == "succeeded":
        release = await tx.one(select(ReleaseRow).where(ReleaseRow.deployment == deployment.id))
        assert release is not None, "a release phase has a release"
        deployment.reason = None
        await go_live(tx, row, deployment, release)
    else:
        deployment.failed_step, deployment.exit_code = RELEASE, event.exit_code
        deployment.log_tail = [line.text for line in event.tail[-_LOG_TAIL:]]
        words = event.words or event.outcome
        _enter(deployment, "failed", f"the release phase failed: {words}")
    await workloads.settle(tx, row)


def _not_built(deployment: DeploymentRow, result: BuildFailed) -> None:
    deployment.failed_step, deployment.exit_code = result.step, result.exit_code
    if deployment.status in status.WAITING:
        hint = f" ({result.hint})" if result.hint else ""
        _enter(deployment, "failed", f"{result.message}{hint}")


# --- a release on its nodes --------------------------------------------------------------------------------


async def placement_decided(event: PlacementDecided, tx: Tx) -> None:
    row = await _at_generation(tx, event.workload, event.generation)
    if row is None or _newer(row.placement, event.at):
        return
    placement = Placement(at=event.at, nodes=event.nodes, lost=event.lost)
    row.placement = placement.model_dump(mode="json")
    # Nothing is known to run any more where nobody is heard.
    row.rollouts = {node: said for node, said in row.rollouts.items() if node not in event.lost}
    if placement.words:
        await activity.moved(event, placement.words, tx)
    await _weigh(tx, row)


async def placement_blocked(event: PlacementBlocked, tx: Tx) -> None:
    row = await _at_generation(tx, event.workload, event.generation)
    if row is None or _newer(row.blockage, event.at):
        return
    blockage = Blockage(at=event.at, reasons=event.reasons, lost=event.lost)
    # The reasons change with every other app that comes and goes: the loss is told of once.
    if event.lost and (row.blockage or {}).get("lost", []) != list(event.lost):
        gone = " and ".join(event.lost)
        await activity.moved(event, f"{gone} went offline, and {blockage.words}", tx)
    row.blockage = blockage.model_dump(mode="json")
    await _weigh(tx, row)


async def rollout_finished(event: RolloutFinished, tx: Tx) -> None:
    row = await _at_generation(tx, event.workload, event.generation)
    if row is None or _newer(row.rollouts.get(event.node), event.at):
        return
    rollout = Rollout(at=event.at, ok=event.ok, running=event.running, reason=event.reason)
    if row.release == row.good_release:
        await activity.rolled_out(event, row.rollouts.get(event.node), tx)
    row.rollouts = {**row.rollouts, event.node: rollout.model_dump(mode="json")}
    sleep.heard(row, event.node, event.at, asleep=event.asleep)
    await _weigh(tx, row, event.log_tail)


async def _weigh(tx: Tx, row: WorkloadRow, log_tail: tuple[str, ...] = ()) -> None:
    verdict = workloads.heard(row)
    deployment = await tx.get(DeploymentRow, row.deployment, lock=True) if row.deployment else None
    if row.state != "running" or deployment is None:
        return
    if verdict.lost:
        row.live = verdict.running > 0
    match verdict.kind:
        case "up":
            row.live, row.good_release = True, row.release
            if deployment.status != "running":
                deployment.log_tail = list(log_tail)
                _enter(deployment, "running")
                await tx.execute(update(ReleaseRow).where(ReleaseRow.id == row.release).values(lived=True))
                await workloads.end_deployments(
                    tx,
                    row,
                    "superseded",
                    "a newer deployment runs",
                    among=("running",),
                    before=deployment.number,
                )
        case "broken" if row.release == row.good_release:
            row.live = verdict.running > 0
        case "broken":
            deployment.log_tail = list(log_tail)
            _enter(deployment, "failed", verdict.reason)
            good = await tx.get(ReleaseRow, row.good_release) if row.good_release else None
            await workloads.use_release(tx, row, good)
            row.live = good is not None and verdict.running > 0
            workloads.tell(tx, row)
        case "blocked" if deployment.status in ("deploying", "blocked"):
            _enter(deployment, "blocked", verdict.reason)
        case "pending" if deployment.status == "blocked":
            _enter(deployment, "deploying")
    await workloads.settle(tx, row)


def _enter(deployment: DeploymentRow, state: str, reason: str | None = None) -> None:
    deployment.status, deployment.reason = state, reason
    deployment.status_at = func.now()
    if state in status.SETTLED:
        deployment.finished_at = func.now()


async def _both(tx: Tx, workload: str, deployment: str) -> tuple[WorkloadRow | None, DeploymentRow]:
    row = await workloads.find(tx, workload)
    found = await tx.get(DeploymentRow, deployment, lock=True)
    if found is None:
        raise NotFound(f"there is no deployment {deployment}")
    return row, found


async def _at_generation(tx: Tx, workload: str, generation: int) -> WorkloadRow | None:
    row = await workloads.find(tx, workload)
    return row if row is not None and row.generation == generation else None


def _newer(known: dict[str, Any] | None, at: datetime) -> bool:
    return known is not None and datetime.fromisoformat(known["at"]) > at
