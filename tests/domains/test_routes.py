"""Which hostname a workload may get, and which routes are wrong."""

import re
from typing import Any

import pytest
from contracts.workload import Route
from domains.routes import candidates, compare, stays_with, url_of
from hypothesis import given
from hypothesis import strategies as st

from tests.domains.samples import spec

ID = "app_0123456789abcdefghjkmnpqrs"
LABEL = re.compile(r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")


@pytest.mark.parametrize(
    ("fields", "first"),
    [
        ({"name": "shop"}, "shop.example.com"),
        ({"name": "shop", "environment": "staging"}, "shop-staging.example.com"),
        ({"name": "shop", "environment": "Feature/Über_7"}, "shop-feature-ber-7.example.com"),
        ({"name": "www"}, "www-pqrs.example.com"),
        ({"name": "a" * 40, "environment": "b" * 30}, f"{'a' * 40}-{'b' * 17}-pqrs.example.com"),
    ],
)
def test_the_first_choice(fields: dict[str, Any], first: str) -> None:
    assert next(candidates(spec(id=ID, **fields), "example.com", {"www"})) == first


def test_namesakes_are_told_apart_by_more_and_more_of_their_ids() -> None:
    assert list(candidates(spec(id=ID), "localhost", ())) == [
        "shop.localhost",
        "shop-pqrs.localhost",
        "shop-jkmnpqrs.localhost",
        "shop-0123456789abcdefghjkmnpqrs.localhost",
    ]


@given(st.text(max_size=60), st.text(max_size=60))
def test_every_candidate_is_a_hostname_and_the_last_is_nobody_elses(name: str, environment: str) -> None:
    one, other = spec(name, environment=environment), spec(name, environment=environment)
    found = list(candidates(one, "example.com", ()))
    assert found
    assert all(LABEL.match(hostname.removesuffix(".example.com")) for hostname in found)
    assert found == list(candidates(one, "example.com", ()))
    assert found[-1] not in set(candidates(other, "example.com", ()))


def test_a_workload_stays_with_the_hostname_it_has() -> None:
    shop = spec(id=ID)
    assert stays_with(shop, ["shop-pqrs.localhost"], "localhost") == "shop-pqrs.localhost"
    assert stays_with(shop, ["shop-pqrs.localhost", "shop.localhost"], "localhost") == "shop.localhost"
    assert stays_with(shop, ["shop.localhost"], "example.com") is None
    assert stays_with(shop, [], "localhost") is None
    assert stays_with(spec(id=ID, state="deleted"), ["shop.localhost"], "localhost") is None
    assert stays_with(spec("www", id=ID), ["www.localhost"], "localhost") == "www.localhost"


def test_the_usual_port_is_left_out_of_a_url() -> None:
    assert url_of("shop.localhost", 80) == "http://shop.localhost"
    assert url_of("shop.localhost", 8080) == "http://shop.localhost:8080"


def route(hostname: str, revision: int = 1) -> Route:
    one = spec(id=ID, organization="org_0123456789abcdefghjkmnpqrs")
    return Route(hostname=hostname, workload=one.id, organization=one.organization, revision=revision)


def test_what_differs_is_named_and_what_is_unknown_is_apart() -> None:
    wanted = {"same": route("same"), "missing": route("missing"), "old": route("old", 2), "released": None,
              "gone": None, "garbled": route("garbled")}  # fmt: skip
    found = {"same": route("same"), "old": route("old", 1), "released": route("released"), "garbled": None,
             "foreign": route("foreign")}  # fmt: skip
    difference = compare(wanted, found)
    assert difference.wrong == ("garbled", "missing", "old", "released")
    assert difference.unknown == ("foreign",)


def test_nothing_wanted_is_no_order_to_remove_anything() -> None:
    assert compare({}, {"shop.localhost": route("shop.localhost")}).wrong == ()
