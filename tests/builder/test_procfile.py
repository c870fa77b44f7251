import pytest
from builder import procfile
from builder.image_builder import StepFailed


def test_reads_processes() -> None:
    text = (
        "\ufeff# what runs\r\nweb: gunicorn app:app --bind 0.0.0.0:$PORT\r\n\n"
        "  worker:python worker.py  \nrelease : ./migrate"
    )
    assert procfile.parse(text) == {
        "web": "gunicorn app:app --bind 0.0.0.0:$PORT",
        "worker": "python worker.py",
        "release": "./migrate",
    }


def test_an_empty_one_names_nothing() -> None:
    assert procfile.parse("\n# nothing\n") == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("web gunicorn", "line 1 of the Procfile is not of the form"),
        ("a: b\nweb:", "line 2 of the Procfile gives the process 'web' no command"),
        ("Web: x", "lower-case"),
        ("../x: y", "lower-case"),
        ("web: a\nweb: b", "a second time"),
        ("web: a\x1b[31m", "control character"),
        ("web: a\tb", "control character"),
        ("web: " + "x" * 2001, "more than 2000"),
        ("\n".join(f"p{i}: x" for i in range(21)), "more than 20"),
    ],
)
def test_refuses(text: str, words: str) -> None:
    with pytest.raises(StepFailed, match="Procfile") as failed:
        procfile.parse(text)
    assert words in failed.value.message
