"""What passes at the second try takes its place in the report, and nothing else does."""

import xml.etree.ElementTree as ET
from pathlib import Path

from tests.again import merge

_PROPERTY = '<properties><property name="promise" value="R1" /></properties>'
_FIRST = (
    '<testsuites><testsuite failures="2" errors="0" tests="3"><testcase classname="t" name="slow">'
    f'{_PROPERTY}<failure message="late" /></testcase><testcase classname="t" name="broken">'
    '<failure message="no" /></testcase><testcase classname="t" name="good" /></testsuite></testsuites>'
)
_SECOND = (
    f'<testsuites><testsuite tests="2"><testcase classname="t" name="slow">{_PROPERTY}</testcase>'
    '<testcase classname="t" name="broken"><failure message="still no" /></testcase></testsuite></testsuites>'
)


def test_what_passes_at_the_second_try_takes_its_place(tmp_path: Path) -> None:
    report, again = tmp_path / "first.xml", tmp_path / "again.xml"
    report.write_text(_FIRST)
    again.write_text(_SECOND)
    merge(report, again)
    [suite] = ET.parse(report).iter("testsuite")
    failed = {case.get("name") for case in suite if case.find("failure") is not None}
    assert failed == {"broken"}
    assert suite.get("failures") == "1"
    assert [case.get("name") for case in suite] == ["slow", "broken", "good"]
    assert suite[0].find("properties/property") is not None
