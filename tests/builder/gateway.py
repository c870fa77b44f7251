"""The gateway's part in a build, played by tests: sources, pending deployments, workloads."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from builder.app import create
from builder.image_builder import ImageBuilder
from builder.settings import BuilderSettings
from contracts import build_queries, credentials, queries
from contracts.credentials import Purpose
from contracts.errors import Unavailable
from contracts.events import BuildFinished, DeploymentRequested
from contracts.ids import new_id
from contracts.model import Model
from contracts.money import Rate
from contracts.reports import LogLine
from contracts.workload import (
    BuildSettings,
    DockerfileSource,
    GitSource,
    ImageSource,
    Limits,
    RuntimePreset,
    UploadSource,
    WorkloadSpec,
)
from runtime.host import Host
from runtime.seal import Seal

from tests.builder.archives import packed
from tests.harness import Harness, eventually

PYTHON = RuntimePreset(
    name="python-3.11",
    type="python",
    version="3.11",
    image="berth/python:3.11",
    build_image="berth/python:3.11-build",
)
LIMITS = Limits(cpu_millis=500, memory_mb=256, disk_mb=1024)
_PART = 100
AnySource = UploadSource | GitSource | ImageSource | DockerfileSource


@dataclass
class Gateway:
    harness: Harness
    sources: dict[str, bytes] = field(default_factory=dict)
    pending: list[DeploymentRequested] = field(default_factory=list)
    specs: list[WorkloadSpec] = field(default_factory=list)
    credentials: dict[str, dict[Purpose, Model]] = field(default_factory=dict)
    asked_parts: int = 0
    # Questions that find the gateway's database away.
    away: int = 0

    async def open(self) -> "Gateway":
        bus = await self.harness.everybody()
        bus.answer(queries.SourcePartOf, self._part)
        bus.answer(queries.CredentialsOf, self._credentials)
        bus.answer(queries.DeploymentsPending, self._pending)
        bus.answer(queries.WorkloadsAfter, self._workloads)
        await bus.start_broker()
        self.bus = bus
        return self

    async def _part(self, query: queries.SourcePartOf) -> queries.SourcePart:
        self.asked_parts += 1
        if self.away:
            self.away -= 1
            raise Unavailable("the database does not answer; try again")
        data = self.sources[query.source]
        begin = query.index * _PART
        return queries.SourcePart(data=data[begin : begin + _PART], last=begin + _PART >= len(data))

    async def _credentials(self, query: queries.CredentialsOf) -> queries.SealedCredentials:
        seal = Seal(self.harness.settings.seal_key_of("credentials"))
        texts = {
            purpose: seal.close(found.model_dump_json(), credentials.context(query.workload, purpose))
            for purpose, found in self.credentials.get(query.workload, {}).items()
        }
        return queries.SealedCredentials(git=texts.get("git"), registry=texts.get("registry"))

    async def _pending(self, query: queries.DeploymentsPending) -> queries.PendingDeployments:
        return queries.PendingDeployments(requests=tuple(self.pending))

    async def _workloads(self, query: queries.WorkloadsAfter) -> queries.Workloads:
        if query.after is None and len(self.specs) > 1:
            return queries.Workloads(specs=tuple(self.specs[:1]), next=self.specs[0].id)
        rest = self.specs if query.after is None else self.specs[1:]
        return queries.Workloads(specs=tuple(rest), next=None)

    def upload(self, files: Mapping[str, str | bytes] | bytes, **changes: Any) -> DeploymentRequested:
        archive = files if isinstance(files, bytes) else packed(files)
        source = UploadSource(
            source=new_id("src"), sha256=hashlib.sha256(archive).hexdigest(), size=len(archive)
        )
        self.sources[source.source] = archive
        return self.request(changes.pop("source", source), **changes)

    def request(self, source: AnySource, **changes: Any) -> DeploymentRequested:
        values: dict[str, Any] = {
            "deployment": new_id("dep"),
            "number": 1,
            "workload": new_id("app"),
            "organization": new_id("org"),
            "app_name": "hello",
            "source": source,
            "build": BuildSettings(),
            "runtimes": (PYTHON,),
            "limits": LIMITS,
        }
        return DeploymentRequested(**(values | changes))

    async def builder(self, images: ImageBuilder | None, alias: str = "builder", **settings: Any) -> Host:
        chosen = BuilderSettings(**({"lease_seconds": 2, "concurrency": 1} | settings))
        return await self.harness.start(
            "builder", lambda runtime: create(runtime, images, chosen), alias=alias
        )

    async def finished(self, request: DeploymentRequested, seconds: float = 30) -> BuildFinished:
        return await self.harness.event(
            BuildFinished, lambda event: event.deployment == request.deployment, seconds
        )

    async def log(self, request: DeploymentRequested) -> list[LogLine]:
        """Page by page until nothing will follow; numbered without a gap."""
        lines: list[LogLine] = []

        async def finished() -> bool:
            asked = build_queries.BuildLogAfter(deployment=request.deployment, after=len(lines), limit=700)
            page = await self.bus.ask(asked)
            lines.extend(page.lines)
            return page.finished

        await eventually(finished, what="the end of the log")
        assert [line.sequence for line in lines] == list(range(1, len(lines) + 1))
        return lines


def spec(request: DeploymentRequested, **changes: Any) -> WorkloadSpec:
    values: dict[str, Any] = {
        "id": request.workload,
        "name": request.app_name,
        "organization": request.organization,
        "project": new_id("prj"),
        "generation": 1,
        "state": "running",
        "region": "local",
        "plan": "small",
        "limits": LIMITS,
        "rate": Rate(micros_per_hour=1, currency="USD"),
        "uid": 100_001,
    }
    return WorkloadSpec(**(values | changes))
