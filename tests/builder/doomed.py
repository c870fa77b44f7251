"""A builder in a process of its own, to be killed. Its builds take so many seconds, or never end.

`python -m tests.builder.doomed DATABASE NATS SECRET LEASE [SECONDS]`
"""

import asyncio
import sys

from builder.app import create
from builder.settings import BuilderSettings
from pydantic import SecretStr
from runtime.clock import SystemClock
from runtime.host import Host
from runtime.run import make_runtime
from runtime.settings import RuntimeSettings
from runtime.telemetry import Telemetry

from tests.ports.fake_image_builder import FakeImageBuilder


async def main(database: str, nats: str, secret: str, lease: str, seconds: str | None = None) -> None:
    settings = RuntimeSettings(database_url=database, nats_url=nats, secret=SecretStr(secret))
    images = FakeImageBuilder()
    if seconds is None:
        images.hold()
    else:
        images.seconds = float(seconds)
    runtime = make_runtime("builder", settings, SystemClock(), Telemetry(None))
    chosen = BuilderSettings(lease_seconds=float(lease), concurrency=1)
    await Host(runtime, create(runtime, images, chosen)).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
