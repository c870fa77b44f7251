"""A warm rebuild after a one-line change against `docker build` by hand; and one of an unchanged source.

By hand is a Dockerfile tuned for the sample: dependencies in a layer of their own, compilers left behind.
Both arms build the same sources on the same bases and have built the version before. What counts is what the
platform shows its customer as the time of his build, from source to image; it runs as `make up` runs it.
"""

import asyncio
import itertools
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import certifi
from runtime.telemetry import configure_logging

from bench.deploy import SETTLE, run
from bench.pairs import Figure, at_most, in_turn, ratio, report
from bench.scratch import scratch
from tests.customer import Customer, archive
from tests.platform import ADMIN, platform

ROUNDS = 9
PATIENCE = 3.0
EXAMPLES = Path(__file__).parent.parent / "examples"
# Where a machine keeps the certificates it trusts, a company's own among them.
BUNDLES = (Path("/etc/ssl/certs/ca-certificates.crt"), Path("/etc/pki/tls/certs/ca-bundle.crt"))

_PYTHON = """\
FROM berth/python:3.11-build AS build
USER root
WORKDIR /app
COPY ca.pem /run/ca.pem
ENV PIP_CERT=/run/ca.pem
RUN python3 -m venv --without-pip /opt/venv
COPY requirements.txt ./
RUN python3 -m pip --python /opt/venv/bin/python3 install --requirement requirements.txt
FROM berth/python:3.11
WORKDIR /app
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PORT=8080
USER 1000:1000
CMD ["python", "app.py"]
COPY --from=build /opt/venv /opt/venv
COPY . ./
"""
_NODE = """\
FROM berth/node:24-build AS build
USER root
WORKDIR /app
COPY ca.pem /run/ca.pem
ENV NODE_EXTRA_CA_CERTS=/run/ca.pem
COPY package.json package-lock.json ./
RUN npm ci
COPY . ./
RUN npm run build
FROM berth/node:24
WORKDIR /app
ENV NODE_ENV=production PORT=8080
USER 1000:1000
CMD ["npm", "start"]
COPY --from=build /app ./
"""
_versions = itertools.count(1)


@dataclass(frozen=True)
class Sample:
    name: str
    files: Mapping[str, str]
    changes: str
    comment: str
    by_hand: str

    def changed(self) -> dict[str, str]:
        line = f"{self.comment} version {next(_versions)} of {time.time_ns()}\n"
        return {**self.files, self.changes: self.files[self.changes] + line}


def sample(name: str, changes: str, comment: str, by_hand: str, **more: str) -> Sample:
    folder = EXAMPLES / name
    files = {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}
    return Sample(name, files | more, changes, comment, by_hand)


SAMPLES = (
    # With something to install: the sample itself needs nothing.
    sample("hello-python", "app.py", "#", _PYTHON, **{"requirements.txt": "itsdangerous==2.2.0\n"}),
    sample("hello-node", "server.js", "//", _NODE),
)


def bundle() -> Path:
    return next((path for path in BUNDLES if path.exists()), Path(certifi.where()))


@dataclass
class Bench:
    customer: Customer
    tags: list[str] = field(default_factory=list)
    apps: dict[str, str] = field(default_factory=dict)

    async def begin(self, sample: Sample) -> None:
        """Both have built it once."""
        self.apps[sample.name] = await self.customer.create(sample.name)
        await self.rebuild(sample, sample.files)
        await self.by_hand(sample)

    async def rebuild(self, sample: Sample, files: Mapping[str, str] | None = None) -> float:
        app = self.apps[sample.name]
        await asyncio.sleep(SETTLE)
        source = await self.customer.upload(app, archive(sample.changed() if files is None else files))
        path = f"/api/paas/apps/{app}/deploy"
        asked = await self.customer.call("POST", path, json={"source": source["id"]})
        # Whoever asks all the time takes from what is measured; its instance comes up on nobody's time.
        await asyncio.sleep(PATIENCE)
        found = await self.customer.ended(asked["id"])
        if found["image"] is None:
            raise RuntimeError(f"{sample.name}: {found['status']}, {found['reason']}")
        return float(found["seconds"])

    async def by_hand(self, sample: Sample) -> float:
        tag = f"berth-bench-build:{len(self.tags)}"
        self.tags.append(tag)
        with tempfile.TemporaryDirectory() as folder:
            files = {**sample.changed(), "Dockerfile": sample.by_hand, "ca.pem": bundle().read_text()}
            for name, text in files.items():
                path = Path(folder) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
            await asyncio.sleep(SETTLE)
            began = time.perf_counter()
            await run("docker", "build", "--quiet", "--tag", tag, folder)
            return time.perf_counter() - began

    def clean(self) -> None:
        subprocess.run(["docker", "rmi", "--force", *self.tags], check=False, capture_output=True)


@asynccontextmanager
async def opened() -> AsyncIterator[Bench]:
    with scratch() as folder:
        async with (
            platform(folder, "bench", BUILDER_CA_BUNDLE=str(bundle())) as here,
            here.customer() as customer,
        ):
            await customer.log_in(*ADMIN)
            await customer.found("Bench")
            credits = f"/api/admin/organizations/{customer.organization}/credits"
            await customer.call("POST", credits, json={"amount": "100"})
            await asyncio.sleep(1)
            bench = Bench(customer)
            try:
                yield bench
            finally:
                bench.clean()


async def figures(bench: Bench, sample: Sample) -> list[Figure]:
    await bench.begin(sample)

    async def ours() -> float:
        return await bench.rebuild(sample)

    async def hand() -> float:
        return await bench.by_hand(sample)

    # Both arms once before anything counts.
    await ours()
    warm, by_hand = await in_turn(ours, hand, rounds=ROUNDS)
    same = [await bench.rebuild(sample, sample.files) for _ in range(3)]
    language = sample.name.removeprefix("hello-")
    value, note = ratio(warm, by_hand)
    return [
        at_most(f"build.warm_{language}", value, 1.15, note),
        at_most(f"build.unchanged_{language}_seconds", statistics.median(same), 2.0),
    ]


async def main() -> int:
    configure_logging("warning")
    async with opened() as bench:
        found = [figure for sample in SAMPLES for figure in await figures(bench, sample)]
    return report(found)


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
