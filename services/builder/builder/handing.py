"""Hands secrets to the steps of a build in memory alone: no layer, no history and no log of it has them.

A step that wants them begins with a script that waits for a file in the step's own memory (`/dev/shm`, which
the engine never commits); the builder has a second process in the same container write it. Which container
is this build's, `docker_steps` knows. Only rendered Dockerfiles ask: in a customer's own all words are his.
"""

from collections.abc import Mapping

import structlog
from contracts.errors import Unavailable
from runtime.clock import Clock

from builder.engine_api import EngineApi, Refused

log = structlog.get_logger("builder.handing")

_FILE = "/dev/shm/berth"  # noqa: S108 - of a container that is thrown away
_LOOK, _PATIENCE = 0.02, 10.0
# What is exported comes back as what a shell reads, whatever is in it.
_WRITE = f"umask 077; export -p > {_FILE}.new && mv {_FILE}.new {_FILE}"

# Runs `$1` with the secrets in its environment.
SCRIPT = f"""\
tries=0
until [ -e {_FILE} ]; do
    tries=$((tries + 1))
    if [ $tries -gt 300 ]; then
        echo "the builder did not hand over the build's variables" >&2
        exit 75
    fi
    sleep 0.05
done
. {_FILE}
unset tries
exec /bin/sh -c "$1"
""".encode()


async def hand(api: EngineApi, clock: Clock, container: str, secrets: Mapping[str, str]) -> None:
    """As soon as the step runs. One that has ended before did not wait for them."""
    wanted = {
        "Cmd": ["/bin/sh", "-c", _WRITE],
        "Env": [f"{name}={value}" for name, value in secrets.items()],
    }
    until = clock.monotonic() + _PATIENCE
    while clock.monotonic() < until:
        try:
            made = await api.call("POST", f"/containers/{container}/exec", body=wanted)
            await api.call("POST", f"/exec/{made['Id']}/start", body={"Detach": True})
            return
        except Refused as error:
            # 409: it is there and does not run yet.
            if error.status != 409:
                log.debug("a step had ended", container=container, error=str(error))
                return
        except Unavailable as error:
            log.warning("a step cannot be given its secrets", container=container, error=str(error))
        await clock.sleep(_LOOK)
