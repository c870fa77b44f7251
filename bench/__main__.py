"""Every figure, or those that are named, each in a process of its own; exit status 1 when one is short.

What they need of the machine comes first: a container engine, where none answers, its images, and `wrk`.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence

from contracts.errors import BerthError, InvalidInput, Unavailable
from embedded.engine import Engine, install
from embedded.images import FURTHER, Images, trusted

from bench.scratch import CACHE

FIGURES = (
    *("deploy", "build", "log", "start", "rolling", "failover"),
    *("footprint", "events", "api", "placement", "heartbeats"),
)
_LOAD = "wrk"


def say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def measure(names: Sequence[str]) -> int:
    unknown = sorted(set(names) - set(FIGURES))
    if unknown:
        raise InvalidInput(f"there is no figure {', '.join(unknown)}: there are {', '.join(FIGURES)}")
    chosen = names or FIGURES
    if "api" in chosen and shutil.which(_LOAD) is None:
        if os.geteuid() != 0 or shutil.which("apt-get") is None:
            raise Unavailable(f"api needs {_LOAD}: install it with your system's packages")
        install((_LOAD,), CACHE / "apt.log")
    engine = Engine(CACHE / "engine", say=say)
    images = Images(engine.ensure(), CACHE / "images", say=say, ca_bundle=trusted())
    try:
        images.ensure()
        if "build" in chosen:
            images.ensure_further([stack for stack in FURTHER if stack.name == "node"])
        ended = [subprocess.run([sys.executable, "-m", f"bench.{name}"], check=False) for name in chosen]
    finally:
        images.close()
        engine.stop()
    return int(any(one.returncode for one in ended))


def main() -> int:
    try:
        return measure(sys.argv[1:])
    except BerthError as error:
        say(error.message)
        return 1


if __name__ == "__main__":
    sys.exit(main())
