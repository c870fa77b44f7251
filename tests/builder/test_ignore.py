import time

import pytest
from builder.ignore import Ignore


@pytest.mark.parametrize(
    ("text", "name", "out"),
    [
        ("", "a", False),
        ("# comment\n\n", "# comment", False),
        ("node_modules", "node_modules/x/y.js", True),
        ("node_modules", "web/node_modules/x", False),
        ("**/node_modules", "web/node_modules/x", True),
        ("**/node_modules", "node_modules", True),
        ("/dist/", "dist/a", True),
        ("./dist", "dist/a", True),
        ("*.md", "README.md", True),
        ("*.md", "docs/README.md", False),
        ("*/*.md", "docs/README.md", True),
        ("docs/**/x", "docs/x", True),
        ("docs/**/x", "docs/a/b/x", True),
        ("docs/**", "docs/a/b", True),
        ("a?c", "abc", True),
        ("a?c", "a/c", False),
        ("[^a]b", "cb", True),
        ("[^a]b", "ab", False),
        ("*", "any/thing", True),
        ("*\n!src", "src/app.py", False),
        ("*\n!src\nsrc/*.log", "src/x.log", True),
        ("!src", "src/x", False),
        ("/", "x", False),
        ("..", "x", False),
        ("a.c", "abc", False),
    ],
)
def test_leaves_out(text: str, name: str, out: bool) -> None:
    assert Ignore(text).leaves_out(name) == out


def test_hostile_patterns_cost_no_more_than_they_are_long() -> None:
    ignore = Ignore("\n".join(["/".join(["**"] * 200) + "/x", "*a" * 200 + "b"]))
    begun = time.monotonic()
    assert not ignore.leaves_out("/".join(["a" * 100] * 40))
    assert time.monotonic() - begun < 1
