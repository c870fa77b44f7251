"""One trace from the customer's request to the node: HTTP, outbox, NATS, handlers, build, rollout."""

from collections import defaultdict
from pathlib import Path

from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tests.customer import archive
from tests.harness import Servers, eventually, open_harness
from tests.world import world

SOURCE = archive({"Dockerfile": "FROM berth/python:3.11\nRUN echo built\n"})


async def test_a_deployment_is_one_trace(running: Servers, tmp_path: Path) -> None:
    exporter = InMemorySpanExporter()
    harness = await open_harness(running, "test", tmp_path, exporter)
    try:
        async with world(harness, tmp_path) as here, here.customer() as customer:
            await customer.register("traced@example.org")
            await here.paying(customer)
            app, _ = await customer.live("traced", SOURCE)

            async def whole() -> set[str] | None:
                harness.telemetry.flush()
                names = defaultdict(set)
                for span in exporter.get_finished_spans():
                    if span.context is not None:
                        names[span.context.trace_id].add(span.name.partition(" x")[0])
                request = f"POST /api/paas/apps/{app}/deploy"
                found = next((spans for spans in names.values() if request in spans), set())
                return found if {*STEPS, request} <= found else None

            found = await eventually(whole, what="the whole trace")
            assert "rollout" in found
            await harness.close_services()
    finally:
        await harness.close()


STEPS = ("deployment.requested", "build", "build.finished", "app.changed", "rollout")
