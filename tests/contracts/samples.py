"""One complete, fixed example of every event and report: what the golden files are made of."""

from datetime import UTC, datetime, timedelta

from contracts import events, reports
from contracts.jobs import Job, JobLine
from contracts.model import Model
from contracts.money import Money, Rate
from contracts.workload import (
    BuildSettings,
    BuildSucceeded,
    HealthCheck,
    Limits,
    Process,
    RuntimePreset,
    Slot,
    UploadSource,
    WorkloadSpec,
)

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def fixed(prefix: str) -> str:
    return f"{prefix}_0123456789abcdefghjkmnpqrs"


ORGANIZATION, APP, DEPLOYMENT = fixed("org"), fixed("app"), fixed("dep")
RATE = Rate(micros_per_hour=6944, currency="USD")
LIMITS = Limits(cpu_millis=500, memory_mb=512, disk_mb=2048, pids=256)
SLOT = Slot(process="web", index=0)

SPEC = WorkloadSpec(
    id=APP,
    name="shop",
    organization=ORGANIZATION,
    project=fixed("prj"),
    generation=3,
    state="running",
    region="local",
    plan="small",
    limits=LIMITS,
    rate=RATE,
    uid=100_000,
    processes={"web": Process(command="python app.py", replicas=2), "worker": Process(replicas=0)},
    port=8080,
    health=HealthCheck(kind="http", path="/health"),
    image="sha256:0f",
    release=fixed("rel"),
    deployment=DEPLOYMENT,
)

INSTANCE = {
    "node": "local",
    "instance": fixed("ins"),
    "workload": APP,
    "organization": ORGANIZATION,
    "slot": SLOT,
    "generation": 3,
    "deployment": DEPLOYMENT,
    "rate": RATE,
    "started_at": AT,
}


PYTHON = RuntimePreset(name="python-3.11", type="python", version="3.11", image="berth/python:3.11")
RUNNING = {key: value for key, value in INSTANCE.items() if key != "node"}


JOB = Job(
    id=fixed("job"),
    kind="release",
    spec=SPEC,
    command="python manage.py migrate",
    timeout_seconds=600,
    start_before=AT + timedelta(minutes=5),
)
JOB_LINE = JobLine(sequence=1, at=AT, stream="stdout", text="migrated")
ENDED = {
    "job": JOB.id,
    "outcome": "failed",
    "exit_code": 137,
    "words": "killed: out of memory (256 MB)",
    "seconds": 2.5,
    "tail": (JOB_LINE,),
    "lines": 1,
}


def _event(kind: type[events.Event], **fields: object) -> events.Event:
    return kind.model_validate({"id": "evt-golden", "at": AT, **fields})


OF_APP = {"workload": APP, "organization": ORGANIZATION}
OF_DEPLOYMENT = {**OF_APP, "deployment": DEPLOYMENT}

SAMPLES: tuple[Model, ...] = (
    _event(events.AppCreated, spec=SPEC),
    _event(events.HostnameAssigned, **OF_APP, hostname="shop.localhost", url="http://shop.localhost:8080"),
    _event(
        events.DeploymentRequested,
        **OF_DEPLOYMENT,
        number=7,
        app_name="shop",
        source=UploadSource(source=fixed("src"), sha256="0" * 64, size=1234),
        build=BuildSettings(start_command="python app.py"),
        runtimes=(
            RuntimePreset(name="python-3.11", type="python", version="3.11", image="berth/python:3.11"),
        ),
        limits=LIMITS,
    ),
    _event(events.DeploymentCancelled, **OF_DEPLOYMENT, reason="a newer deployment was asked for"),
    _event(events.BuildStarted, **OF_DEPLOYMENT, build=fixed("bld")),
    _event(
        events.BuildFinished,
        **OF_DEPLOYMENT,
        build=fixed("bld"),
        seconds=1.5,
        result=BuildSucceeded(
            image="sha256:0f",
            digest="sha256:0f",
            size_bytes=1,
            recipe="python",
            processes={"web": "python app.py"},
            port=8080,
            commit="c0ffee",
        ),
    ),
    _event(events.AppChanged, spec=SPEC),
    _event(events.AppDeleted, spec=SPEC),
    _event(events.PlacementDecided, **OF_DEPLOYMENT, generation=3, nodes=("local",)),
    _event(events.PlacementBlocked, **OF_DEPLOYMENT, generation=3, reasons={"n3": "memory short by 256 MB"}),
    _event(
        events.VolumesMoved,
        workload=APP,
        organization=ORGANIZATION,
        source="n1",
        target="n2",
        taken_at=AT,
        lost_until=AT + timedelta(minutes=3),
    ),
    _event(events.InstanceStarted, **INSTANCE),
    _event(
        events.InstanceStopped,
        **INSTANCE,
        stopped_at=AT + timedelta(seconds=90),
        reason="stopped",
        exit_code=137,
        words="killed",
    ),
    _event(
        events.InstanceCrashed,
        **{k: v for k, v in INSTANCE.items() if k not in ("generation", "deployment", "rate", "started_at")},
        exit_code=137,
        words="web.1 crashed 5 times in 2 minutes, next try in 40 s; the last time: exit code 1",
        crashes=5,
        seconds_away=40,
    ),
    _event(
        events.RolloutFinished,
        **OF_DEPLOYMENT,
        node="local",
        generation=3,
        ok=False,
        running=1,
        reason="the health check failed",
        log_tail=("boom",),
    ),
    _event(events.SleepChanged, **OF_APP, node="local", asleep=True, words="it sleeps"),
    _event(events.NodeRemoved, node="n3", last_seen_at=AT - timedelta(seconds=9)),
    _event(events.JobRequested, job=JOB),
    _event(events.JobCancelled, **OF_APP, job=JOB.id),
    _event(events.JobBlocked, **OF_APP, job=JOB.id, reasons={"local": "memory short by 256 MB"}),
    _event(events.JobPlaced, **OF_APP, job=JOB.id, placed_on="local"),
    _event(events.JobFinished, **OF_APP, **ENDED, node="local"),
    events.JobEnded.model_validate(
        {"id": "evt-golden", "at": AT, **OF_DEPLOYMENT, **ENDED, "kind": "release"}
    ),
    _event(
        events.CreditGranted,
        credit=fixed("crd"),
        organization=ORGANIZATION,
        amount=Money(micros=25_000_000, currency="USD"),
        note="welcome",
        by=fixed("usr"),
    ),
    _event(events.BillingTick, period_start=AT, period_end=AT + timedelta(hours=1)),
    _event(
        events.WalletChanged,
        organization=ORGANIZATION,
        sequence=4,
        balance=Money(micros=24_000_000, currency="USD"),
    ),
    _event(
        events.AlertRaised,
        service="billing",
        severity="critical",
        title="A message was parked",
        details={"a": "b"},
    ),
    reports.NodeHeartbeat(
        node="local",
        region="local",
        boot="b",
        sequence=2,
        at=AT,
        capacity=reports.NodeCapacity(cpu_millis=2000, memory_mb=4096, disk_mb=1000),
        used=reports.NodeUsage(cpu_millis=100, memory_mb=512, disk_mb=10, load=0.5),
        engine="20.10",
        instances=(
            reports.RunningInstance(**{k: v for k, v in INSTANCE.items() if k != "node"}, healthy=True),
        ),
    ),
    reports.NodeTraffic(
        node="local",
        boot="1.7e+09",
        at=AT,
        counts=(reports.TrafficCount(workload=APP, requests=9, failed=1, slow=2, seconds=4.5),),
    ),
    reports.BuildLog(
        build=fixed("bld"),
        deployment=DEPLOYMENT,
        lines=(reports.LogLine(sequence=1, at=AT, stream="stdout", step="build", text="hello"),),
    ),
    reports.JobOutput(node="local", job=JOB.id, lines=(JOB_LINE,)),
    reports.NodePeer(
        node="local", host="192.0.2.1", port=7443, request="-----BEGIN CERTIFICATE REQUEST-----"
    ),
    reports.CopyState(
        node="n2",
        copy_id=fixed("cpy"),
        workload=APP,
        phase="complete",
        done_mb=1024,
        total_mb=1024,
        sent_mb=12,
        taken_at=AT,
        digest="0f",
        volumes=(fixed("vol"),),
        frozen_ms=80,
    ),
    reports.LinesKept(of=APP),
    reports.CopiesHeld(node="n2", after=fixed("app"), copies=(reports.HeldCopy(workload=APP, taken_at=AT),)),
)
