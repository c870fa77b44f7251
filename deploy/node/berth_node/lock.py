"""Writes `requirements.txt`: what a node's agent stands on, as the project's lock file has it, each file with
its digest. `make gen` calls it; the gateway hands the result to joining machines.
"""

import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
OURS = "berth-node"
# What the chassis offers to services with a database or an API; the agent has neither.
UNUSED = {"alembic", "fastapi", "faststream", "psycopg", "sqlalchemy", "uvicorn", "uvloop"}


def requirements(lock: Mapping[str, Any]) -> str:
    packages = {package["name"]: package for package in lock["package"]}
    wanted: set[str] = set()
    waiting = [OURS]
    while waiting:
        name = waiting.pop()
        if name in wanted or name in UNUSED:
            continue
        wanted.add(name)
        waiting += [
            dependency["name"]
            for dependency in packages[name].get("dependencies", ())
            if "win32" not in dependency.get("marker", "")
        ]
    lines = []
    for name in sorted(wanted):
        package = packages[name]
        if "editable" in package["source"]:
            continue
        digests = sorted(
            wheel["hash"]
            for wheel in package["wheels"]
            if not wheel["url"].endswith(("win32.whl", "amd64.whl"))
        )
        lines.append(f"{name}=={package['version']} \\\n" + " \\\n".join(f"    --hash={d}" for d in digests))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(requirements(tomllib.loads((ROOT / "uv.lock").read_text())))
