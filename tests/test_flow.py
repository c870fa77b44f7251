"""The README's flow table is the code's, and nothing is said that nobody hears."""

from contracts.events import EVENTS
from contracts.queries import QUERIES
from contracts.reports import REPORTS
from runtime.permissions import HEARS, PUBLISHES

from tests.flow import BEGIN, END, README, services, table


def test_the_table_in_the_readme_is_the_code() -> None:
    written = README.read_text().partition(BEGIN)[2].partition(END)[0].strip()
    assert written == table(), "run `make gen`"


def test_every_event_is_published_and_handled() -> None:
    found = services().values()
    assert [e.name for e in EVENTS if not any(e in s.publishes for s in found)] == []
    assert [e.name for e in EVENTS if not any(e in s.handles for s in found)] == []


def test_every_report_is_made_and_every_question_has_one_owner() -> None:
    found = services().values()
    assert [r.name for r in REPORTS if not any(r in s.reports for s in found)] == []
    for query in QUERIES:
        assert [s.name for s in found if query in s.answers] == [query.owner]


def test_the_bus_allows_what_services_declare_and_no_more() -> None:
    for name, service in services().items():
        if name == "node-agent":
            continue
        allowed = {subject for subject in PUBLISHES[name] if not subject.startswith("$")}
        declared = {event.name for event in service.publishes} | {f"{r.name}.*" for r in service.reports}
        assert allowed | {"alert.raised"} == declared | {"alert.raised"}, name
        assert {f"{report.name}.*" for report in service.listens} <= set(HEARS.get(name, ())), name
