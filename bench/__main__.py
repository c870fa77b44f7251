"""Every figure, each in a process of its own; exit status 1 when one is short."""

import subprocess
import sys

FIGURES = (
    *("deploy", "build", "log", "start", "rolling", "failover"),
    *("footprint", "events", "api", "placement", "heartbeats"),
)


def main() -> int:
    ended = [subprocess.run([sys.executable, "-m", f"bench.{name}"], check=False) for name in FIGURES]
    return int(any(one.returncode for one in ended))


if __name__ == "__main__":
    sys.exit(main())
