"""What the platform's containers said last is part of a failure's report."""

from collections.abc import Generator

import pytest

from tests.compose.stack import Stack


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    platform = getattr(item, "funcargs", {}).get("platform")
    if report.when == "call" and report.failed and isinstance(platform, Stack):
        report.sections.append(("the platform's last words", platform.last_words()))
    return report
