"""The second try of what failed, alone and on servers of its own: `python -m tests.again CODE [ARGS]`.

CODE is what the first try ended with. What passes now takes the place of its failure in the report.
"""

import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

from tests.conftest import CACHE

REPORT, AGAIN = CACHE / "junit.xml", CACHE / "junit-again.xml"
SOME_FAILED = 1


def main(code: int, arguments: list[str]) -> int:
    if code != SOME_FAILED:
        return code
    print("Once more, alone and on servers of its own, what failed:", flush=True)
    known = ["-x", "--last-failed", "--last-failed-no-failures", "none"]
    words = [sys.executable, "-m", "pytest", *known, f"--junitxml={AGAIN}", *arguments]
    done = subprocess.run(words, check=False)
    if AGAIN.exists():
        merge(REPORT, AGAIN)
    return done.returncode


def merge(report: Path, again: Path) -> None:
    cases = {_name(case): case for case in ET.parse(again).iter("testcase")}
    tree = ET.parse(report)
    for suite in tree.iter("testsuite"):
        for place, case in enumerate(suite):
            if case.tag == "testcase" and (newer := cases.get(_name(case))) is not None:
                suite[place] = newer
        for name, tag in (("failures", "failure"), ("errors", "error")):
            suite.set(name, str(sum(case.find(tag) is not None for case in suite)))
    tree.write(report)


def _name(case: ET.Element) -> tuple[str | None, str | None]:
    return case.get("classname"), case.get("name")


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
