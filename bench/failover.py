"""A node loses its power: how long an app of it is away, with the times the platform comes with.

Two whole nodes; the one that runs the app is gone from one moment to the next, its link with it. Counted from
its last heartbeat, as the platform counts, to the first answer from the ingress of the other.
"""

import asyncio
import sys
import time
from datetime import datetime

from runtime.telemetry import configure_logging
from scheduler.settings import SchedulerSettings

from bench.pairs import at_most, report
from bench.scratch import scratch
from tests.fleet import Fleet, fleet
from tests.harness import eventually

NODES = ("east", "west")
# 90 s of silence, and 30 to place, start and route it; the rest is what the timers leave to chance.
BOUND = 125.0
REPLICAS = 2


async def failover(here: Fleet) -> tuple[float, float]:
    """Seconds from the last heartbeat, and from the power cut."""
    async with here.platform.customer() as customer:
        await customer.register("bench@example.org")
        await here.pay(customer)
        app, hostname = await here.live(customer, "lasting", replicas=REPLICAS)
        [home] = here.homes(app)
        [other] = {*NODES} - {home}
        await asyncio.to_thread(here[home].kill)
        dead = time.time()

        async def serves() -> bool:
            return (await here.ask(other, hostname))[0] == 200

        await eventually(serves, seconds=2 * BOUND, every=0.05, what=f"the app on {other}")
        back = time.time()
        seen = (await here.view(home))["node"]["last_seen_at"]
        return back - datetime.fromisoformat(seen).timestamp(), back - dead


async def main() -> int:
    configure_logging("warning")
    silence = SchedulerSettings().offline_seconds
    with scratch() as folder:
        async with fleet(folder, *NODES, told={}, SCHEDULER_OFFLINE_SECONDS=str(silence)) as here:
            since_heard, since_dead = await failover(here)
    note = f"one power cut; {since_dead:.1f} s after it, silence counts from {silence:g} s"
    return report([at_most("failover.seconds_since_heartbeat", since_heard, BOUND, note)])


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
