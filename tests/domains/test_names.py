"""Which hostnames an app may get."""

from domains.names import address, candidates

APP = "app_0123456789abcdefghjkmnpqrs"


def test_the_first_choice_is_the_app_s_own_name() -> None:
    assert next(candidates("shop", "production", APP, "example.org")) == "shop.example.org"
    assert next(candidates("shop", "staging", APP, "example.org")) == "shop-staging.example.org"


def test_the_others_are_the_same_whoever_asks_and_fit_into_a_label() -> None:
    long = "a" * 40
    first = list(candidates(long, "an-environment-with-a-name", APP, "localhost"))
    assert first == list(candidates(long, "an-environment-with-a-name", APP, "localhost"))
    assert len(set(first)) == 4
    assert all(len(name.split(".")[0]) <= 63 for name in first[1:])


def test_the_usual_port_is_not_said() -> None:
    assert address("shop.localhost", 80) == "http://shop.localhost"
    assert address("shop.localhost", 8080) == "http://shop.localhost:8080"
