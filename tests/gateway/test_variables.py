"""Variables of an app: set, masked, imported, exported, and told to nobody who should not know."""

import json
from typing import Any

import pytest
from contracts import variables
from contracts.events import AppChanged, AppDeleted, JobEnded, JobRequested
from contracts.jobs import Job
from contracts.queries import WorkloadsAfter
from contracts.workload import WorkloadSpec
from gateway.tables import WorkloadRow
from gateway.variables import LARGEST_ALL, LARGEST_VALUE, MOST
from runtime.seal import Seal
from runtime.store import PLATFORM

from tests.customer import Customer, Refused
from tests.gateway.world import SOURCE, World, finished, started, succeeded

MASK = "********"


def path(app: str, more: str = "") -> str:
    return f"/api/paas/apps/{app}/variables{more}"


async def change(customer: Customer, app: str, changes: Any) -> dict[str, str]:
    return shown(await customer.call("PATCH", path(app), json=changes))


def shown(answer: Any) -> dict[str, str]:
    return {variable["name"]: variable["value"] for variable in answer["variables"]}


async def revealed(customer: Customer, app: str) -> dict[str, str]:
    return shown(await customer.call("GET", path(app, "?reveal=1")))


def seal(here: World) -> Seal:
    return Seal(here.host.runtime.settings.seal_key_of("variables"))


def environment(here: World, spec: WorkloadSpec) -> dict[str, str]:
    assert spec.variables is not None
    opened = seal(here).open(spec.variables, variables.for_scheduler(spec.id))
    return variables.read_environment(opened)


async def refused(customer: Customer, app: str, changes: Any) -> Refused:
    # Also what no text holds, such as half a character.
    body: Any = {"content": json.dumps(changes), "headers": {"Content-Type": "application/json"}}
    with pytest.raises(Refused) as error:
        await customer.call("PATCH", path(app), **body)
    return error.value


# Six bytes each in JSON, which is then sealed.
HEAVY = "".join(f"HEAVY{number}='{chr(1) * (LARGEST_VALUE - 10)}'\n" for number in range(2)).encode()


async def test_what_no_message_would_hold_is_refused(here: World, customer: Customer) -> None:
    processes = {"web": "run", "worker": "x" * 100_000}
    app = await customer.create("env-heavy")
    before = await here.build(await customer.deploy(app, SOURCE), processes=processes)
    assert len(before.processes["worker"].command or "") == 100_000
    with pytest.raises(Refused, match="may take 600000") as error:
        await customer.call("POST", path(app, "/import"), content=HEAVY)
    assert (error.value.status, error.value.error["code"]) == (413, "too_large")
    assert await revealed(customer, app) == {}
    await customer.call("POST", f"/api/paas/apps/{app}/stop")
    assert (await here.spec(app)).generation == before.generation + 1


@pytest.mark.parametrize("phase", [{}, {"release": "migrate"}])
async def test_a_release_that_no_message_would_hold_fails_with_a_reason(
    here: World, customer: Customer, phase: dict[str, str]
) -> None:
    app = await customer.create(f"env-full-{len(phase)}")
    await customer.call("POST", path(app, "/import"), content=HEAVY)
    deployment = await customer.deploy(app, SOURCE)
    request = await here.requested(deployment)
    processes = {"web": "run", "worker": "x" * 100_000, **phase}
    await here.say(started(request), finished(request, succeeded(processes=processes)))
    if phase:
        job = await here.harness.event(JobRequested, lambda e: e.job.spec.id == app)
        await here.say(job_ended(job.job))
    view = await customer.call("GET", f"/api/paas/deployments/{deployment}")
    assert (view["status"], "may take 600000" in (view["reason"] or "")) == ("failed", True)
    shown = await customer.call("GET", f"/api/paas/apps/{app}")
    assert (shown["status"], list(shown["processes"])) == ("failed", ["web"])


def job_ended(job: Job) -> JobEnded:
    return JobEnded(
        job=job.id,
        kind=job.kind,
        workload=job.spec.id,
        organization=job.spec.organization,
        deployment=job.spec.deployment,
        outcome="succeeded",
    )


@pytest.mark.promise("U4")
async def test_added_changed_deleted_and_masked(here: World, customer: Customer) -> None:
    app, spec = await here.live(customer, "env-life")
    assert await revealed(customer, app) == {}
    assert (spec.variables, spec.variables_digest) == (None, None)

    added = {"TOKEN": "s3cret value ", "_x1": "", "MODE": {"value": "fast", "secret": False}}
    assert await change(customer, app, added) == {"MODE": "fast", "TOKEN": MASK, "_x1": MASK}
    first = await here.spec(app)
    assert first.generation == spec.generation + 1
    assert first.fingerprint() != spec.fingerprint()
    assert environment(here, first) == {"MODE": "fast", "TOKEN": "s3cret value ", "_x1": ""}

    # One step for many, and none for nothing.
    changed = await change(
        customer, app, {"TOKEN": "other", "_x1": None, "MORE": "lines\nof it", "NONE": None}
    )
    assert changed == {"MODE": "fast", "MORE": MASK, "TOKEN": MASK}
    second = await here.spec(app)
    assert (second.generation, second.fingerprint() == first.fingerprint()) == (first.generation + 1, False)
    await change(customer, app, {"TOKEN": "other", "MORE": MASK})
    await change(customer, app, {})
    assert (await here.spec(app)).generation == second.generation
    assert await revealed(customer, app) == {"MODE": "fast", "MORE": "lines\nof it", "TOKEN": "other"}
    assert shown(await customer.call("GET", path(app))) == changed

    await change(customer, app, {"MODE": None, "MORE": None, "TOKEN": None})
    last = await here.spec(app)
    assert (last.variables, last.variables_digest) == (None, None)
    assert last.fingerprint() == spec.fingerprint()


async def test_the_same_again_is_the_same_release(here: World, customer: Customer) -> None:
    app, _ = await here.live(customer, "env-same")
    await change(customer, app, {"A": "1"})
    one = await here.spec(app)
    await change(customer, app, {"A": "2"})
    await change(customer, app, {"A": "1"})
    again = await here.spec(app)
    assert again.variables != one.variables
    assert again.fingerprint() == one.fingerprint()


async def test_what_only_builds_are_told_replaces_nothing(here: World, customer: Customer) -> None:
    app, spec = await here.live(customer, "env-build")
    await change(customer, app, {"NPM_TOKEN": {"value": "for the build", "scope": "build"}})
    same = await here.spec(app)
    assert same.generation == spec.generation
    await change(customer, app, {"NPM_TOKEN": {"scope": "both"}, "ONLY": "here"})
    assert environment(here, await here.spec(app)) == {"NPM_TOKEN": "for the build", "ONLY": "here"}
    deployment = await customer.deploy(app, SOURCE)
    request = await here.requested(deployment)
    assert request.variables is not None
    told = variables.read_all(seal(here).open(request.variables, variables.for_builder(app)))
    assert [(v.name, v.value, v.scope, v.secret) for v in told] == [
        ("NPM_TOKEN", "for the build", "both", True),
        ("ONLY", "here", "runtime", True),
    ]


@pytest.mark.promise("U4")
async def test_nothing_is_at_rest_or_on_the_way_in_the_clear(here: World, customer: Customer) -> None:
    app, _ = await here.live(customer, "env-sealed")
    other, _ = await here.live(customer, "env-sealed-too")
    await change(customer, app, {"PASSWORD": "correct-horse"})
    await customer.deploy(app, SOURCE)
    await here.spec(app)
    store = here.host.runtime.store
    for table in ("workload", "deployment", "release", "outbox"):
        rows = await store.read(
            f"select t::text from {table} t, set_config('berth.organization', '*', false)"
        )
        assert "correct-horse" not in repr(rows)
    for event in await here.harness.events(AppChanged):
        assert "correct-horse" not in event.model_dump_json()
    # Moved to another app it does not open.
    async with store.transaction(PLATFORM) as tx:
        one, two = await tx.get(WorkloadRow, app), await tx.get(WorkloadRow, other)
        assert one is not None
        assert two is not None
        two.variables = one.variables
    with pytest.raises(Refused):
        await revealed(customer, other)


WRONG: dict[str, tuple[Any, str]] = {
    "PORT": ({"PORT": "1"}, "reserved"),
    "DYNO": ({"DYNO": "1"}, "reserved"),
    "PS": ({"PS": None}, "reserved"),
    "a digit first": ({"1A": "x"}, "no name"),
    "a dash": ({"A-B": "x"}, "no name"),
    "a line": ({"A\n": "x"}, "no name"),
    "no name": ({"": "x"}, "no name"),
    "a long name": ({"A" * 129: "x"}, "no name"),
    "a NUL": ({"A": "x\0y"}, "NUL"),
    "half a character": ({"A": "\ud800"}, "A"),
    "a number": ({"A": 1}, "A"),
    "new without a value": ({"A": {"secret": False}}, "needs a value"),
    "new with the mask": ({"A": MASK}, "needs a value"),
    "another scope": ({"A": {"value": "1", "scope": "world"}}, "scope"),
    "another field": ({"A": {"value": "1", "x": 1}}, "x"),
    "a list": ([], "should be a JSON object"),
}


@pytest.mark.parametrize("case", WRONG)
async def test_what_is_wrong_changes_nothing(here: World, customer: Customer, case: str) -> None:
    changes, words = WRONG[case]
    app = await customer.create(f"env-wrong-{list(WRONG).index(case)}")
    if isinstance(changes, dict):
        changes = {"GOOD": "one", **changes}
    error = await refused(customer, app, changes)
    assert error.status == 422
    assert words in error.error["message"]
    assert await revealed(customer, app) == {}


async def test_limits_of_size(here: World, customer: Customer) -> None:
    app = await customer.create("env-large")
    assert (await refused(customer, app, {"A": "x" * (LARGEST_VALUE + 1)})).status == 413
    large = {f"A{number}": "x" * (LARGEST_ALL // 4 - 10) for number in range(4)}
    await change(customer, app, large)
    assert (await refused(customer, app, {"B": "x" * 60})).status == 413
    assert (await refused(customer, app, {f"B{n}": "" for n in range(MOST)})).status == 413
    assert await revealed(customer, app) == large
    # However large, every snapshot is whole and fits into its messages.
    for number in range(6):
        await change(customer, await customer.create(f"env-large-{number}"), large)
    bus, found, question = here.host.runtime.bus, [], WorkloadsAfter()
    while True:
        page = await bus.ask(question)
        found += [spec.id for spec in page.specs]
        if page.next is None:
            break
        question = WorkloadsAfter(after=page.next)
    [(count,)] = await here.host.runtime.store.read(
        "select count(*) from workload, set_config('berth.organization', '*', false)"
    )
    assert len(found) == len(set(found)) == count


@pytest.mark.promise("U4")
async def test_a_file_comes_in_and_goes_out_without_its_secrets(here: World, customer: Customer) -> None:
    app, spec = await here.live(customer, "env-file")
    await change(customer, app, {"KEPT": "as it is"})
    text = '# ours\nexport A=1 # one\nKEY=\'line 1\nline 2\'\nB="say \\"hi\\""\n'
    await customer.call("POST", path(app, "/import"), content=text)
    everything = {"A": "1", "B": 'say "hi"', "KEPT": "as it is", "KEY": "line 1\nline 2"}
    assert await revealed(customer, app) == everything
    assert environment(here, await here.spec(app)) == everything
    assert (await here.spec(app)).generation == spec.generation + 2

    await change(customer, app, {"B": {"secret": False}})
    response = await customer.client.get(path(app, "/export"), headers=customer.headers)
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert response.text == f"A={MASK}\nB='say \"hi\"'\nKEPT={MASK}\nKEY={MASK}\n"
    # As it went out it comes in again, and changes nothing.
    before = (await here.spec(app)).generation
    await customer.call("POST", path(app, "/import"), content=response.text)
    assert await revealed(customer, app) == everything
    assert (await here.spec(app)).generation == before

    answer = await customer.call("POST", path(app, "/import?scope=build&secret=false"), content="NEW=x")
    assert {"name": "NEW", "value": "x", "scope": "build", "secret": False} in answer["variables"]
    for wrong in (b"", b"# nothing", b"A='x", b"PORT=1", b"\xff=1", b"1A=2"):
        with pytest.raises(Refused) as error:
            await customer.call("POST", path(app, "/import"), content=wrong)
        assert error.value.status == 422


async def test_an_apps_end_is_theirs(here: World, customer: Customer) -> None:
    app = await customer.create("env-end")
    await change(customer, app, {"A": "1"})
    await customer.call("DELETE", f"/api/paas/apps/{app}")
    await here.harness.settle()
    gone = await here.harness.event(AppDeleted, lambda event: event.spec.id == app)
    assert (gone.spec.variables, gone.spec.variables_digest) == (None, None)
    with pytest.raises(Refused) as error:
        await revealed(customer, app)
    assert error.value.status == 404
    async with here.host.runtime.store.transaction(PLATFORM) as tx:
        row = await tx.get(WorkloadRow, app)
        assert row is not None
        assert row.variables is None
