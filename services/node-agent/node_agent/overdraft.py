"""Whether an instance has written more than its plan allows. Called once a minute for each, job or not."""

import structlog
from contracts.errors import BerthError

from node_agent.site import Site

log = structlog.get_logger("node-agent.overdraft")

_MIB = 1024 * 1024
# Looking takes no more than this part of a core, however much there is to be looked at.
_SHARE = 0.2


async def overdrawn(site: Site, instance: str, allowed_mb: int) -> str | None:
    """What it did."""
    began = site.clock.monotonic()
    try:
        written = await site.engine.written(instance, allowed_mb * _MIB)
    except BerthError as error:
        log.info("usage is not known", instance=instance, error=error.message)
        return None
    except Exception:
        # An engine that answers as none before it: nobody else's disk is without a limit for that.
        log.exception("usage is not known", instance=instance)
        return None
    if written > allowed_mb * _MIB:
        return f"wrote more than the {allowed_mb} MB of its plan, or folders too deep to be measured"
    await site.clock.sleep((site.clock.monotonic() - began) * (1 / _SHARE - 1))
    return None
