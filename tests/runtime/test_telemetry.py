"""One trace from the request to the handler, metrics and health behind a port of their own."""

import asyncio
import json
import subprocess
import sys
import urllib.request

import httpx
import pytest
from contracts.events import AppCreated, BillingTick
from opentelemetry import trace
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from runtime.http import api
from runtime.ops import Ops
from runtime.service import Service
from runtime.store import PLATFORM, Tx
from runtime.telemetry import Telemetry

from tests.harness import Servers, eventually, open_harness
from tests.runtime.samples import created


async def test_one_trace_runs_through_outbox_bus_and_handler(
    running: Servers, tmp_path_factory: pytest.TempPathFactory
) -> None:
    exporter = InMemorySpanExporter()
    harness = await open_harness(running, "test", tmp_path_factory.mktemp("state"), exporter)
    seen: list[int] = []

    async def handler(event: AppCreated, tx: Tx) -> None:
        seen.append(trace.get_current_span().get_span_context().trace_id)

    try:
        gateway = await harness.start("gateway", lambda _: Service(name="gateway", publishes=(AppCreated,)))
        await harness.start("domains", lambda _: Service(name="domains", handles={AppCreated: handler}))
        with harness.telemetry.span("POST /api/paas/apps") as span:
            async with gateway.runtime.store.transaction(PLATFORM) as tx:
                tx.publish(created())
        await harness.settle()
        harness.telemetry.flush()
        names = {s.name: s.context.trace_id for s in exporter.get_finished_spans() if s.context}
    finally:
        await harness.close()
    expected = span.get_span_context().trace_id
    assert seen == [expected]
    assert names[AppCreated.name] == names["POST /api/paas/apps"] == expected


async def test_health_readiness_and_metrics_answer() -> None:
    telemetry = Telemetry()
    telemetry.handled.labels("billing", BillingTick.name, "handled").inc()
    state = {"billing": False}
    ops = Ops(lambda: state, telemetry.registry)
    port = await ops.start("127.0.0.1", 0)

    async def get(path: str) -> tuple[int, str]:
        def fetch() -> tuple[int, str]:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as response:
                    return response.status, response.read().decode()
            except urllib.error.HTTPError as error:
                with error:
                    return error.code, error.read().decode()

        return await asyncio.to_thread(fetch)

    try:
        assert await get("/healthz") == (200, "ok\n")
        assert await get("/readyz") == (503, "billing: not ready\n")
        state["billing"] = True
        assert (await get("/readyz"))[0] == 200
        status, body = await get("/metrics")
        assert status == 200
        assert (
            'berth_events_handled_total{event="billing.tick",outcome="handled",service="billing"} 1.0' in body
        )
        assert (await get("/secrets"))[0] == 404
    finally:
        await ops.stop()
        telemetry.close()


_LOGGING = """
import logging
import structlog
from opentelemetry import trace
from runtime.telemetry import Telemetry, configure_logging

configure_logging("info")
telemetry = Telemetry()
with telemetry.span("work") as span:
    structlog.get_logger("test").info("hello", app="shop")
    structlog.get_logger("test").debug("not said")
logging.getLogger("library").info("not said")
try:
    raise ValueError("two\\nlines")
except ValueError:
    logging.getLogger("library").error("it %s", "broke", exc_info=True)
print(trace.format_trace_id(span.get_span_context().trace_id))
"""


def test_a_log_line_is_json_and_names_its_trace() -> None:
    """In a process of its own: logging is configured once for a whole process."""
    done = subprocess.run([sys.executable, "-c", _LOGGING], capture_output=True, text=True, check=True)
    line, library = map(json.loads, done.stderr.splitlines())
    assert (line["event"], line["app"], line["level"]) == ("hello", "shop", "info")
    assert line["trace"] == done.stdout.strip()
    assert (library["event"], library["logger"], library["level"]) == ("it broke", "library", "error")
    assert "ValueError: two" in library["exception"]


async def test_nothing_is_waited_for_that_never_comes() -> None:
    async def never() -> bool:
        return False

    with pytest.raises(AssertionError, match="a ship did not come"):
        await eventually(never, seconds=0.05, what="a ship")


async def test_an_invented_method_leaves_nothing_behind() -> None:
    telemetry = Telemetry()
    try:
        transport = httpx.ASGITransport(app=api("here", "1", telemetry))
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            for number in range(5):
                assert (await client.request(f"M{number}", "/")).status_code in (404, 405)
            await client.get("/")
        kept = {
            sample.labels["method"]
            for metric in telemetry.registry.collect()
            for sample in metric.samples
            if "method" in sample.labels
        }
        assert kept == {"GET", "other"}
    finally:
        telemetry.close()


FAILING = """
import asyncio
from types import SimpleNamespace
from runtime.host import Host
from runtime.service import Loop, Service
from runtime.telemetry import Telemetry, configure_logging

configure_logging("info")
tries = asyncio.Queue()

async def work():
    tries.put_nowait(None)
    raise ValueError("whatever it is")

async def main():
    host = Host(SimpleNamespace(telemetry=Telemetry()), Service(name="billing"))
    host._supervise(Loop("charge", work, every=1.0))
    async with asyncio.timeout(10):
        for _ in range(2):
            await tries.get()
    print("tried again")

asyncio.run(main())
"""


def test_a_log_that_cannot_be_written_ends_no_loop() -> None:
    """It may be a file on a disk that is full: what fails because of that is tried again when it is not."""
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-c", FAILING], stdout=subprocess.PIPE, stderr=full, check=False, text=True
        )
    assert done.stdout == "tried again\n"
