"""Files of variables: what people write in them, read as they meant it, and written without the secrets."""

import pytest
from contracts.errors import InvalidInput
from contracts.variables import Variable
from gateway import dotenv
from hypothesis import example, given
from hypothesis import strategies as st

READ = {
    "plain": ("A=1\nB=two words\n", {"A": "1", "B": "two words"}),
    "empty": ("A=\nB=''\nC=\"\"", {"A": "", "B": "", "C": ""}),
    "spaces around": ("  A = 1  \n\tB=2\t", {"A": "1", "B": "2"}),
    "export": ("export A=1\nexport\tB='2'\nexported=3", {"A": "1", "B": "2", "exported": "3"}),
    "comments": (
        "# first\n\n  # second\nA=1 # third\nB=a#b\nC='x' # y\nD=#none\n",
        {"A": "1", "B": "a#b", "C": "x", "D": ""},
    ),
    "single quotes": (r"A='a\n$B \"#'", {"A": r"a\n$B \"#"}),
    "double quotes": ('A="a\\n\\t\\"b\\" \\$C \\\\ \\x #"', {"A": 'a\n\t"b" $C \\ \\x #'}),
    "several lines": (
        'KEY="-----BEGIN KEY-----\nMIIE=\n-----END KEY-----"\nA=1\nB=\'x\n# no comment\n\'\n',
        {"KEY": "-----BEGIN KEY-----\nMIIE=\n-----END KEY-----", "A": "1", "B": "x\n# no comment\n"},
    ),
    "a continued line": ('A="one \\\ntwo"', {"A": "one two"}),
    "nothing is expanded": ("A=$HOME/${B}`c`", {"A": "$HOME/${B}`c`"}),
    "equals in values": ("URL=postgres://u:p@h/db?sslmode=require", {"URL": "postgres://u:p@h/db?sslmode=require"}),
    "of Windows": ("\ufeffA=1\r\nB=\"x\r\ny\"\r\n", {"A": "1", "B": "x\ny"}),
    "the last one counts": ("A=1\nA=2\n", {"A": "2"}),
    "nothing": ("\n# only words\n", {}),
}  # fmt: skip


@pytest.mark.parametrize(("text", "found"), READ.values(), ids=READ.keys())
def test_read(text: str, found: dict[str, str]) -> None:
    assert dotenv.parse(text) == found


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("A=1\nsecret-without-name\n", 2),
        ("A=1\n\nB: secret\n", 3),
        ("=secret", 1),
        ("A='secret", 1),
        ('A=1\nB="secret\nand more', 2),
        ("A='x' secret", 1),
        ('A="multi\nline" secret', 2),
    ],
)
def test_a_mistake_is_named_by_its_line_and_not_repeated(text: str, line: int) -> None:
    with pytest.raises(InvalidInput) as wrong:
        dotenv.parse(text)
    assert wrong.value.details == {"line": line}
    assert f"line {line} " in wrong.value.message
    assert "secret" not in wrong.value.message


def test_secrets_are_not_written() -> None:
    text = dotenv.render(
        [Variable(name="A", value="hidden"), Variable(name="B", value="shown", secret=False)]
    )
    assert text == "A=********\nB=shown\n"


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40))
@example("ends with a line\n")
@example("abc\n")
def test_what_is_written_is_read_again(value: str) -> None:
    text = dotenv.render(
        [Variable(name="A", value=value, secret=False), Variable(name="B", value="1", secret=False)]
    )
    # Files of Windows end their lines otherwise, and are read as all others.
    assert dotenv.parse(text) == {"A": value, "B": "1"}
