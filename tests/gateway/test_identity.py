"""Who is who: accounts, log-ins, tokens, organizations."""

import time
from datetime import timedelta
from typing import Any

import jwt
import pytest
from gateway import accounts

from tests.customer import PASSWORD, Customer, Refused
from tests.gateway.world import ADMIN, World
from tests.harness import SECRET


def login(email: str, password: str) -> dict[str, Any]:
    return {"json": {"email": email, "password": password}}


async def test_an_account_comes_with_its_organization(here: World) -> None:
    visitor = await here.visitor()
    body = {"email": " Ann@Example.ORG ", "password": PASSWORD, "organization": "Ann's shop"}
    answer = await visitor.call("POST", "/api/auth/register", json=body)
    visitor.token = answer["token"]
    me = await visitor.call("GET", "/api/auth/me")
    assert (me["email"], me["administrator"]) == ("ann@example.org", False)
    [organization] = me["organizations"]
    assert organization["name"] == "Ann's shop"
    # The only organization needs no naming.
    assert await visitor.call("GET", "/api/paas/apps") == {"apps": [], "next": None}
    with pytest.raises(Refused, match="account with this e-mail") as refused:
        await visitor.call("POST", "/api/auth/register", json=body)
    assert refused.value.status == 409


async def test_a_wrong_password_and_an_unknown_account_are_one_answer(
    here: World, customer: Customer
) -> None:
    email = (await customer.call("GET", "/api/auth/me"))["email"]
    visitor = await here.visitor()

    async def ask(address: str) -> tuple[float, int, str]:
        begin = time.perf_counter()
        response = await visitor.client.post("/api/auth/login", **login(address, "wrong password"))
        return time.perf_counter() - begin, response.status_code, response.text

    known, unknown = [], []
    for i in range(7):
        known.append(await ask(email))
        unknown.append(await ask(f"nobody-{i}@example.org"))
    assert {answer[1:] for answer in known} == {answer[1:] for answer in unknown}
    assert known[0][1] == 401
    # Both cost one hash; without it the unknown would be answered in a tenth of the time.
    assert 0.5 < min(a[0] for a in unknown) / min(a[0] for a in known) < 2


async def test_guessing_is_limited_by_account_and_address(here: World, customer: Customer) -> None:
    email = (await customer.call("GET", "/api/auth/me"))["email"]
    visitor = await here.visitor()
    codes = [
        (await visitor.client.post("/api/auth/login", **login(email, "wrong password"))).status_code
        for _ in range(accounts.TRIES + 1)
    ]
    assert codes == [401] * accounts.TRIES + [429]
    with pytest.raises(Refused, match="too many failed log-ins") as refused:
        await visitor.call("POST", "/api/auth/login", **login(email, PASSWORD))
    assert refused.value.status == 429
    assert 0 < refused.value.error["details"]["retry_after_seconds"] <= 900
    # Another account is not locked, nor is this one from another address.
    await visitor.log_in(*ADMIN)
    await visitor.call(
        "POST", "/api/auth/login", **login(email, PASSWORD), headers={"X-Forwarded-For": "203.0.113.9"}
    )
    here.harness.clock.advance(16 * 60)
    await visitor.call("POST", "/api/auth/login", **login(email, PASSWORD))


async def test_a_log_in_clears_the_count(here: World, customer: Customer) -> None:
    email = (await customer.call("GET", "/api/auth/me"))["email"]
    for _ in range(2):
        for _ in range(accounts.TRIES - 1):
            response = await customer.client.post("/api/auth/login", **login(email, "wrong password"))
            assert response.status_code == 401
        await customer.log_in(email, PASSWORD)


async def test_a_token_expires_and_is_revoked(here: World) -> None:
    customer = await here.customer(credit=None)
    first = customer.token
    await customer.log_in((await customer.call("GET", "/api/auth/me"))["email"], PASSWORD)
    await customer.call("POST", "/api/auth/logout")
    for token in (first, customer.token):
        customer.token = token
        with pytest.raises(Refused, match="revoked") as refused:
            await customer.call("GET", "/api/paas/apps")
        assert refused.value.status == 401
    other = await here.customer(credit=None)
    await other.call("GET", "/api/paas/apps")
    here.harness.clock.advance(24 * 3600 + 1)
    with pytest.raises(Refused, match="expired"):
        await other.call("GET", "/api/paas/apps")


@pytest.mark.parametrize(
    "change",
    [
        {"exp": None},
        {"exp": "never"},
        {"sub": None},
        {"ver": None},
        {"ver": 2},
        {"sub": "usr_00000000000000000000000000"},
    ],
    ids=str,
)
async def test_a_token_must_be_whole(here: World, customer: Customer, change: dict[str, Any]) -> None:
    assert customer.token is not None
    secret = here.harness.runtime("gateway").secret("tokens")
    claims = jwt.decode(customer.token, options={"verify_signature": False})
    assert claims["exp"] - claims["iat"] == timedelta(hours=24).total_seconds()
    forged = {key: value for key, value in {**claims, **change}.items() if value is not None}
    customer.token = jwt.encode(forged, secret, "HS256")
    with pytest.raises(Refused) as refused:
        await customer.call("GET", "/api/paas/apps")
    assert refused.value.status == 401


async def test_a_token_of_another_key_is_none(here: World, customer: Customer) -> None:
    assert customer.token is not None
    claims = jwt.decode(customer.token, options={"verify_signature": False})
    unsigned = customer.token.split(".")
    for forged in (
        jwt.encode(claims, SECRET, "HS256"),
        jwt.encode(claims, "", "none"),
        f"{unsigned[0]}.{unsigned[1]}.",
        "nonsense",
    ):
        customer.token = forged
        with pytest.raises(Refused, match="not valid") as refused:
            await customer.call("GET", "/api/paas/apps")
        assert refused.value.status == 401


async def test_several_organizations_are_told_apart_by_the_header(here: World, customer: Customer) -> None:
    first = customer.organization
    await customer.call("GET", "/api/paas/apps")
    second = await customer.call("POST", "/api/organizations", json={"name": "Second"})
    listed = (await customer.call("GET", "/api/organizations"))["organizations"]
    assert [o["id"] for o in listed] == [first, second["id"]]
    customer.organization = None
    with pytest.raises(Refused, match="X-Organization") as refused:
        await customer.call("GET", "/api/paas/apps")
    assert refused.value.status == 422
    assert set(refused.value.error["details"]["organizations"]) == {first, second["id"]}
    customer.organization = second["id"]
    app = await customer.create("second-home")
    customer.organization = first
    assert (await customer.call("GET", "/api/paas/apps"))["apps"] == []
    with pytest.raises(Refused):
        await customer.call("GET", f"/api/paas/apps/{app}")


async def test_a_membership_that_another_replica_made_counts_at_once(here: World, customer: Customer) -> None:
    await customer.call("GET", "/api/paas/apps")
    desk = here.host.service.http.state.desk  # type: ignore[union-attr]
    remembered = dict(desk.tokens._known)
    second = await customer.call("POST", "/api/organizations", json={"name": "Second"})
    desk.tokens._known.update(remembered)
    customer.organization = second["id"]
    assert (await customer.call("GET", "/api/paas/apps"))["apps"] == []


async def test_organizations_have_ranges_of_user_ids_of_their_own(here: World) -> None:
    specs = []
    for number in range(2):
        _, spec = await here.live(await here.customer(), f"range-{number}")
        specs.append(spec)
    assert abs(specs[0].uid - specs[1].uid) >= 1000
    assert all(spec.uid > 100_000 for spec in specs)


async def test_an_administrator_is_in_no_organization_by_itself(here: World) -> None:
    admin = await here.administrator()
    with pytest.raises(Refused, match="create one with POST /api/organizations") as refused:
        await admin.call("GET", "/api/paas/apps")
    assert refused.value.status == 403
    customer = await here.customer(credit=None)
    admin.organization = customer.organization
    with pytest.raises(Refused, match="no such organization") as refused:
        await admin.call("GET", "/api/paas/apps")
    assert refused.value.status == 404
