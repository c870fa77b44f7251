"""The flow table: every event in the order of the data, who publishes and who handles it, from the code."""

import re
from pathlib import Path

from contracts.events import EVENTS
from contracts.queries import QUERIES
from contracts.reports import REPORTS
from pydantic import SecretStr
from runtime.clock import SystemClock
from runtime.permissions import HEARS
from runtime.run import entry_points, make_runtime
from runtime.service import Service
from runtime.settings import RuntimeSettings
from runtime.telemetry import Telemetry

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- flow: written by `make gen` -->", "<!-- /flow -->"


def services() -> dict[str, Service]:
    """Made as in a process, connected to nothing."""
    settings = RuntimeSettings(secret=SecretStr("flow-table-0123456789-abcdefghijklm"))
    telemetry = Telemetry()
    clock = SystemClock()
    return {
        name: entry.load()(make_runtime(name, settings, clock, telemetry))
        for name, entry in sorted(entry_points().items())
    }


def table() -> str:
    found = services()

    def names(kinds: dict[str, bool]) -> str:
        return ", ".join(name for name, does in kinds.items() if does) or "—"

    lines = ["| what | said by | heard by |", "|---|---|---|"]
    for event in EVENTS:
        said = names({n: event in s.publishes for n, s in found.items()})
        heard = names({n: event in s.handles for n, s in found.items()})
        lines.append(f"| `{event.name}` | {said} | {heard} |")
    for report in REPORTS:
        said = names({n: report in s.reports for n, s in found.items()})
        heard = names({n: f"{report.name}.*" in HEARS.get(n, ()) for n in found})
        lines.append(f"| `{report.name}` (report) | {said} | {heard} |")
    for query in QUERIES:
        owner = names({n: query in s.answers for n, s in found.items()})
        lines.append(f"| `{query.subject()}` (question) | whoever needs it | {owner} |")
    return "\n".join(lines)


def main() -> None:
    text = README.read_text()
    pattern = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.DOTALL)
    README.write_text(pattern.sub(lambda _: f"{BEGIN}\n{table()}\n{END}", text))


if __name__ == "__main__":
    main()
