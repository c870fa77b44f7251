"""What an agent makes of what it hears of other nodes, by itself."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from contracts.errors import InvalidInput, Poison
from contracts.ids import new_id
from contracts.mesh import MESH, RENEW, Peer, Placed, name_of
from contracts.reports import NodePeer
from contracts.workload import Endpoints, Route
from cryptography import x509
from node_agent import certificate
from node_agent.elsewhere import SOURCES, Elsewhere
from node_agent.membership import Membership
from node_agent.mesh_file import Credentials, Mesh
from node_agent.routes import Routes
from node_agent.routes_file import (
    Served,
    digest,
    has_instances,
    hostnames_in,
    peers_in,
    render,
    render_common,
)
from node_agent.standing import Standing, counted, placed, shares
from runtime.bucket import Bucket, Change
from scheduler.authority import Authority

from tests.harness import ShiftedClock

APP, ORGANIZATION = new_id("app"), new_id("org")
EVERYBODY = {"n1", "n2", "n3"}
NOW = datetime(2026, 1, 1, tzinfo=UTC)


# --- whom a request may be sent to --------------------------------------------------------------------------


def at(*nodes: str, revision: int = 1) -> Placed:
    return Placed(workload=APP, organization=ORGANIZATION, revision=revision, nodes=nodes)


def standing(*nodes: str, revision: int = 1, **counts: int) -> Standing:
    made = Standing(workload=APP)
    for node, count in counts.items():
        made = counted(made, node, count)
    return placed(made, at(*nodes, revision=revision))


def seen(found: Standing, us: str = "n1") -> dict[str, int]:
    return dict(shares(found, us, EVERYBODY))


def test_each_node_counts_for_its_instances_and_we_do_not_count() -> None:
    assert seen(standing("n1", "n2", "n3", n1=2, n2=3, n3=1)) == {"n2": 3, "n3": 1}
    assert seen(standing("n1", "n2", n2=0)) == {}
    assert dict(shares(standing("n2", "n3", n2=1, n3=1), "n1", {"n3"})) == {"n3": 1}


def test_a_node_is_not_believed_about_what_it_was_not_given() -> None:
    assert seen(standing("n2", n2=1, n3=100)) == {"n2": 1}
    assert seen(Standing(workload=APP, counts={"n3": 1})) == {}


def test_what_moves_is_served_by_the_old_node_until_the_new_one_can() -> None:
    moved = placed(standing("n2", n2=1), at("n3", revision=2))
    assert seen(moved) == {"n2": 1}
    arrived = counted(moved, "n3", 1)
    assert seen(arrived) == {"n3": 1}
    # The copy that was given up is not asked again: not when the new one fails, not when its node is back.
    assert seen(counted(counted(arrived, "n3", 0), "n2", 1)) == {}


def test_what_is_to_stop_everywhere_is_asked_nowhere() -> None:
    assert seen(placed(standing("n2", n2=1), at(revision=2))) == {}
    assert seen(placed(standing("n2", n2=1), None)) == {}


def test_an_older_word_of_where_it_is_placed_changes_nothing() -> None:
    now = standing("n3", revision=5, n2=1, n3=1)
    assert placed(now, at("n2", revision=4)) == now


# --- files ------------------------------------------------------------------------------------------------


def content(served: Served, *, meshed: bool = True) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(render(served, meshed=meshed))["http"]
    return found


ALONE = Served(APP, ("shop.example.com",), ("10.0.0.2:80", "10.0.0.1:80"))


def test_a_node_in_no_mesh_is_told_nothing_of_one() -> None:
    assert set(content(ALONE, meshed=False)["routers"]) == {f"{APP}-confirm", f"{APP}-shop.example.com"}
    common = json.loads(render_common("x.invalid", ["sh"], "PEM"))
    assert set(common) == {"http", "tls"}
    assert "here" not in json.dumps(common)


def test_what_comes_from_another_node_is_served_here_or_nowhere() -> None:
    both = content(Served(APP, ALONE.hostnames, ALONE.addresses, (("n2", 1),)))
    inner = both["routers"][f"{APP}-shop.example.com-here"]
    assert (inner["parentRefs"], inner["service"]) == (["here-sh"], APP)
    assert [s["url"] for s in both["services"][APP]["loadBalancer"]["servers"]] == [
        "http://10.0.0.1:80",
        "http://10.0.0.2:80",
    ]
    # It is counted by this name, whatever others have.
    assert both["services"][f"{APP}-everywhere"]["weighted"]["services"] == [
        {"name": APP, "weight": 2},
        {"name": "mesh-n2", "weight": 1},
    ]
    far = content(Served(APP, ALONE.hostnames, (), (("n2", 1), ("n3", 4))))
    assert list(far["services"]) == [f"{APP}-everywhere"]
    assert not [name for name in far["routers"] if name.endswith("-here")]


def test_what_is_not_counted_is_below_no_parent() -> None:
    """Only there can a router say so; and under another name what was counted is dropped."""
    both = content(Served(APP, ALONE.hostnames, ALONE.addresses, (("n2", 1),), counted=False))
    for name, entry_point, service in (
        (f"{APP}-shop.example.com", "web", f"{APP}-everywhere"),
        (f"{APP}-shop.example.com-here", "here", f"{APP}-uncounted"),
    ):
        router = both["routers"][name]
        assert (router["entryPoints"], router["service"]) == ([entry_point], service)
        assert router["observability"] == {"metrics": False}
        assert "parentRefs" not in router
    assert set(both["services"]) == {f"{APP}-uncounted", f"{APP}-everywhere"}


def test_what_nobody_here_keeps_is_said_in_a_word() -> None:
    """All files are read whenever one changes."""
    far = content(Served(APP, ALONE.hostnames, (), (("n2", 7),), remote=True))
    assert list(far) == ["routers"]
    (router,) = far["routers"].values()
    assert router["service"] == "mesh-n2"
    spread = content(Served(APP, ALONE.hostnames, (), (("n2", 1), ("n3", 1)), remote=True))
    assert (len(spread["routers"]), list(spread["services"])) == (1, [f"{APP}-everywhere"])
    nowhere = content(Served(APP, ALONE.hostnames, (), remote=True))
    assert nowhere["services"][APP]["loadBalancer"]["servers"] == []


def test_a_file_says_what_it_leads_to() -> None:
    near, far = render(ALONE, meshed=True), render(Served(APP, ("a.b",), (), (("n2", 1),)), meshed=True)
    assert (peers_in(near), has_instances(near)) == (set(), True)
    word = render(Served(APP, ("a.b",), (), (("n2", 1),), remote=True), meshed=True)
    for file in (far, word):
        assert (peers_in(file), has_instances(file), set(hostnames_in(file))) == ({"n2"}, False, {"a.b"})
    assert digest(ALONE, meshed=True) != digest(ALONE)


def test_a_peer_that_cannot_be_reached_is_there_and_leads_nowhere() -> None:
    """A service that is missing would take every workload with it that leads there."""
    with_none = json.loads(render_common("x.invalid", [], "PEM", Mesh(7480, None, {"n2": "192.0.2.1:7443"})))
    # Refused at once, where a service without any server would answer in its place.
    nobody = [{"url": "http://127.0.0.1:1"}]
    assert with_none["http"]["services"]["mesh-n2"]["loadBalancer"]["servers"] == nobody
    assert "tcp" not in with_none
    credentials = Credentials("/mesh/own.pem", "/mesh/authority.pem")
    peers = {"n2": None, "n3": "[2001:db8::1]:7443"}
    common = json.loads(render_common("x.invalid", ["sh"], "PEM", Mesh(7480, credentials, peers)))
    services = common["http"]["services"]
    assert services["mesh-n2"]["loadBalancer"]["servers"] == nobody
    assert "mesh-n2" not in common["http"]["serversTransports"]
    assert "serversTransport" not in services["mesh-n2"]["loadBalancer"]
    assert services["mesh-n3"]["loadBalancer"]["servers"] == [{"url": "https://[2001:db8::1]:7443"}]
    assert common["http"]["serversTransports"]["mesh-n3"]["serverName"] == "n3.mesh.berth.invalid"
    asked = common["tls"]["options"][common["tcp"]["routers"]["mesh"]["tls"]["options"]]
    assert asked["clientAuth"]["clientAuthType"] == "RequireAndVerifyClientCert"


@pytest.mark.parametrize(("node", "address"), [("{{ x }}", "192.0.2.1:1"), ("n2", "192.0.2.1:1/{{ x }}")])
def test_nothing_that_traefik_would_take_for_a_template_is_written(node: str, address: str) -> None:
    def write() -> str:
        file = render(Served(APP, ("a.b",), (), ((node, 1),)))
        return file + render_common("x.invalid", [], "PEM", Mesh(1, Credentials("a", "b"), {node: address}))

    with pytest.raises(InvalidInput):
        write()


# --- what is heard ----------------------------------------------------------------------------------------


class Played(Bucket):
    def __init__(self, *changes: Change | None) -> None:
        self._changes = changes

    async def watch(self, pattern: str = ">") -> Any:
        for change in self._changes:
            yield change


def said(key: str, value: Any) -> Change:
    return Change(key, None if value is None else value.model_dump_json().encode(), 1)


def endpoints(node: str, count: int, workload: str = APP) -> Endpoints:
    addresses = tuple(f"10.0.0.{n}:80" for n in range(count))
    return Endpoints(node=node, workload=workload, addresses=addresses, at=NOW)


def peer(node: str, host: str | None = "192.0.2.1") -> Peer:
    return Peer(node=node, host=host, port=7443, certificate="", authority="", expires_at=NOW)


async def heard(known: Elsewhere, source: str, *changes: Change) -> None:
    await known.follow(source, Played(*changes, None))


async def test_half_of_the_truth_changes_nothing_and_a_restart_forgets_nothing(tmp_path: Path) -> None:
    known = Elsewhere("n1", tmp_path)
    known.open()
    await heard(known, "places", said(APP, at("n2", "n3")))
    await heard(known, "endpoints", said(f"{APP}.n2", endpoints("n2", 2)))
    assert known.shares(APP) == ()
    await heard(known, "peers", said("n2", peer("n2")))
    assert known.shares(APP) == (("n2", 2),)
    assert await known.changed() == {APP}

    again = Elsewhere("n1", tmp_path)
    again.open()
    assert again.shares(APP) == (("n2", 2),)
    assert await again.changed() == {APP}
    # Empty buckets are no order to remove everything.
    for source in SOURCES:
        await heard(again, source)
    assert again.shares(APP) == (("n2", 2),)
    await heard(again, "peers", said("n2", None))
    assert again.shares(APP) == ()


async def test_a_bad_record_stops_no_other(tmp_path: Path) -> None:
    known = Elsewhere("n1", tmp_path)
    known.open()
    for source in SOURCES:
        await heard(known, source)
    other = new_id("app")
    bad = [
        Change(APP, b"{", 1),
        said(f"{APP}.n2", endpoints("n3", 1)),
        said(f"{APP}.n2", endpoints("n2", 1, other)),
        Change(f"{APP}.n2", b"[]", 1),
    ]
    await heard(known, "endpoints", *bad, said(f"{other}.n2", endpoints("n2", 1, other)))
    await heard(
        known,
        "places",
        Change("nonsense", b"{}", 1),
        said(other, at("n2").model_copy(update={"workload": other})),
    )
    await heard(known, "peers", said("n3", peer("n2")), said("n2", peer("n2")))
    assert known.shares(other) == (("n2", 1),)
    assert known.shares(APP) == ()


async def test_the_hostnames_of_a_workload_follow_every_change(tmp_path: Path) -> None:
    routes = Routes(tmp_path)
    routes.open()
    other = new_id("app")

    def to(workload: str, revision: int) -> bytes:
        route = Route(hostname="a.b", workload=workload, organization=ORGANIZATION, revision=revision)
        return route.model_dump_json().encode()

    assert await routes.accept("a.b", to(APP, 1)) == [APP]
    assert routes.hostnames(APP, ORGANIZATION) == ("a.b",)
    assert routes.hostnames(APP, new_id("org")) == ()
    assert set(await routes.accept("a.b", to(other, 2))) == {APP, other}
    assert (routes.hostnames(APP, ORGANIZATION), routes.hostnames(other, ORGANIZATION)) == ((), ("a.b",))
    again = Routes(tmp_path)
    again.open()
    assert again.hostnames(other, ORGANIZATION) == ("a.b",)
    await again.accept("a.b", None)
    assert again.hostnames(other, ORGANIZATION) == ()


# --- its certificate --------------------------------------------------------------------------------------

AUTHORITY = Authority("a key of the platform, long enough to be one")


async def test_a_certificate_is_asked_for_taken_and_renewed_in_time(tmp_path: Path) -> None:
    clock, reports = ShiftedClock(), list[NodePeer]()

    async def report(said: NodePeer) -> None:
        reports.append(said)

    def answer(asked: NodePeer, life: timedelta = 2 * RENEW) -> Peer:
        made, ends = AUTHORITY.certify(asked.node, asked.request, clock.now() - 2 * RENEW + life)
        return Peer(
            node="n1", host="192.0.2.1", port=7443, certificate=made, authority=AUTHORITY.pem, expires_at=ends
        )

    def member() -> Membership:
        made = Membership("n1", tmp_path / "mesh", (None, 7443), clock, report)
        made.open()
        return made

    ours = member()
    assert ours.credentials is None
    assert not await ours.keep(None)
    # Asked again, because the question was lost: the same, and the key is on disk already.
    assert not await member().keep(None)
    assert reports[0] == reports[1]
    assert "PRIVATE" not in reports[0].request
    # One for somebody else's key is not taken.
    stranger = NodePeer(node="n1", port=1, request=certificate.ask().partition("-----BEGIN PRIVATE")[0])
    assert not await ours.keep(answer(stranger))
    known = answer(reports[0])
    assert await ours.keep(known)
    first = ours.credentials
    assert first is not None
    assert first == member().credentials
    assert names_in(first) == [MESH, name_of("n1")]

    reports.clear()
    await ours.keep(known)
    assert reports == []
    clock.advance(RENEW.total_seconds() + 60)
    await ours.keep(known)
    assert await ours.keep(answer(reports[0]))
    second = ours.credentials
    assert second is not None
    assert second != first
    # Both are there: the ingress may not have read of the new one yet.
    assert names_in(first) == names_in(second)
    # One who is reached elsewhere now says so.
    reports.clear()
    await ours.keep(answer(stranger).model_copy(update={"port": 1}))
    assert len(reports) == 1


def names_in(credentials: Credentials) -> list[str]:
    """For its owner alone, from the authority, and for these names."""
    certificate, authority = Path(credentials.certificate), Path(credentials.authority)
    assert certificate.stat().st_mode & 0o077 == 0
    found = x509.load_pem_x509_certificate(certificate.read_bytes())
    found.verify_directly_issued_by(x509.load_pem_x509_certificate(authority.read_bytes()))
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return names.get_values_for_type(x509.DNSName)


def test_nothing_is_certified_without_the_proof_of_its_key() -> None:
    real = certificate.ask()
    for request in ("", "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"):
        with pytest.raises(Poison):
            AUTHORITY.certify("n1", request, NOW)
    assert AUTHORITY.certify("n1", real, NOW)[1] == NOW + 2 * RENEW
    # Every scheduler is the same authority.
    assert Authority("a key of the platform, long enough to be one").pem == AUTHORITY.pem
