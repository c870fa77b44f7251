"""A base domain that is none is refused at the start, before any hostname is made of it."""

import pytest
from pydantic import ValidationError
from runtime.settings import RuntimeSettings


@pytest.mark.parametrize("domain", ["", "exa mple.com", "http://example.com", "-a.com", "a..b", "a_b.com"])
def test_what_is_no_domain_is_refused(domain: str) -> None:
    with pytest.raises(ValidationError):
        RuntimeSettings(base_domain=domain)
    with pytest.raises(ValidationError):
        RuntimeSettings(base_domains={"eu": domain})


def test_a_domain_is_kept_in_lower_case() -> None:
    assert RuntimeSettings(base_domain="Apps.Example.COM").base_domain == "apps.example.com"
