"""The files an engine keeps of what a container says, as they are written, renamed and broken."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import orjson
import pytest
from contracts.lines import LINE_BYTES, Line
from node_agent.docker_log import DockerLog, moment

Opened = Callable[[int], DockerLog]
START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
MOST = 1024 * 1024


def entry(number: int, text: str, stream: str = "stdout") -> bytes:
    at = f"{START + timedelta(milliseconds=number):%Y-%m-%dT%H:%M:%S.%f}".rstrip("0") + "Z"
    return orjson.dumps({"log": text, "stream": stream, "time": at}) + b"\n"


def at(number: int) -> int:
    return moment(f"{START + timedelta(milliseconds=number):%Y-%m-%dT%H:%M:%S.%f}Z")


def write(path: Path, *entries: bytes) -> None:
    with path.open("ab") as file:
        file.write(b"".join(entries))


def texts(lines: list[Line]) -> list[str]:
    return [line.text for line in lines]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "abc-json.log"


@pytest.fixture
def opened(path: Path) -> Iterator[Opened]:
    logs: list[DockerLog] = []

    def open_log(after: int) -> DockerLog:
        logs.append(DockerLog(path, after))
        return logs[-1]

    yield open_log
    for log in logs:
        log.close()


def rotate(path: Path) -> None:
    for number in (1, 0):
        old = path.with_name(f"{path.name}.{number}") if number else path
        if old.exists():
            old.rename(path.with_name(f"{path.name}.{number + 1}"))


def test_a_moment_is_exact_to_the_nanosecond() -> None:
    assert moment("1970-01-01T00:00:01.000000002Z") == 1_000_000_002
    assert moment("1970-01-01T00:00:01Z") == 1_000_000_000
    assert moment("1970-01-01T00:00:01.5Z") == 1_500_000_000


def test_lines_come_once_and_as_they_are_written(path: Path, opened: Opened) -> None:
    log = opened(0)
    assert log.read(MOST) == []
    write(path, entry(1, "one\n"), entry(2, "two\r\n", "stderr"))
    assert log.read(MOST) == [Line(at(1), "stdout", "one"), Line(at(2), "stderr", "two")]
    assert log.read(MOST) == []
    half = entry(3, "three\n")
    write(path, half[:20])
    assert log.read(MOST) == []
    write(path, half[20:], entry(4, "\n"))
    assert texts(log.read(MOST)) == ["three", ""]


def test_a_reader_goes_on_behind_a_moment(path: Path, opened: Opened) -> None:
    write(path, *(entry(n, f"line {n}\n") for n in range(1, 6)))
    log = opened(at(3))
    assert texts(log.read(MOST)) == ["line 4", "line 5"]
    # A clock that is set back afterwards hides nothing.
    write(path, entry(2, "earlier\n"))
    assert texts(log.read(MOST)) == ["earlier"]


def test_no_more_is_read_than_was_asked_for(path: Path, opened: Opened) -> None:
    write(path, *(entry(n, f"line {n}\n") for n in range(1, 101)))
    log = opened(0)
    first = log.read(1000)
    assert 5 < len(first) < 20
    found = first
    while more := log.read(1000):
        found = [*found, *more]
    assert texts(found) == [f"line {n}" for n in range(1, 101)]


def test_renamed_files_are_read_to_their_ends(path: Path, opened: Opened) -> None:
    log = opened(0)
    write(path, entry(1, "one\n"))
    assert texts(log.read(MOST)) == ["one"]
    write(path, entry(2, "two\n"))
    rotate(path)
    # Between two files there is none under the name.
    assert texts(log.read(MOST)) == ["two"]
    write(path, entry(3, "three\n"))
    rotate(path)
    write(path, entry(4, "four\n"))
    assert texts(log.read(MOST)) == ["three", "four"]
    # From the start all of them are found, the oldest first.
    assert texts(opened(0).read(MOST)) == ["one", "two", "three", "four"]
    assert texts(opened(at(2)).read(MOST)) == ["three", "four"]


def test_a_line_the_engine_took_apart_is_one(path: Path, opened: Opened) -> None:
    log = opened(0)
    write(path, entry(1, "a" * 3000), entry(1, "b" * 10 + "\n"), entry(2, "next\n"))
    assert texts(log.read(MOST)) == ["a" * 3000 + "b" * 10, "next"]
    # Without an end it is told when something else follows, or when nothing will.
    write(path, entry(3, "Password: "), entry(4, "after a restart\n"), entry(5, "no end"))
    assert texts(log.read(MOST)) == ["Password: ", "after a restart"]
    assert texts(log.rest()) == ["no end"]
    assert log.rest() == []


def test_a_line_that_is_too_long_is_cut_once(path: Path, opened: Opened) -> None:
    log = opened(0)
    write(path, *(entry(1, "x" * 16_000) for _ in range(5)), entry(1, "end\n"), entry(2, "next\n"))
    (cut, following) = texts(log.read(MOST))
    assert len(cut) == LINE_BYTES
    assert cut.endswith("x … (the line is longer)")
    assert following == "next"


def test_what_cannot_be_read_is_passed_over(path: Path, opened: Opened) -> None:
    late = b'{"log": "never", "stream": "stdout", "time": "9999-01-02T03:04:05Z"}\n'
    broken = (b"\0" * 5000 + b"\n", b'{"log": 3}\n', b"[]\n", late)
    write(path, entry(1, "one\n"), *broken, entry(2, "two\n"))
    assert texts(opened(0).read(MOST)) == ["one", "two"]


def test_an_emptied_file_is_read_from_its_start(path: Path, opened: Opened) -> None:
    log = opened(0)
    write(path, entry(1, "a longer line than the next\n"))
    log.read(MOST)
    path.write_bytes(b"")
    assert log.read(MOST) == []
    write(path, entry(2, "new\n"))
    assert texts(log.read(MOST)) == ["new"]


def test_who_is_far_behind_goes_on_with_the_newest(path: Path, opened: Opened) -> None:
    log = opened(0)
    write(path, entry(1, "one\n"))
    assert texts(log.read(MOST)) == ["one"]
    many = [entry(n, f"line {n} {'x' * 500}\n") for n in range(2, 12_000)]
    write(path, *many[:6000])
    rotate(path)
    write(path, *many[6000:])
    found = log.read(10 * MOST)
    assert found[0].stream == "platform"
    assert "were written too fast" in found[0].text
    numbers = [int(line.text.split()[1]) for line in found[1:]]
    assert numbers == list(range(numbers[0], 12_000))
    assert 300 < len(numbers) < 600
    # And from there on it is whole again.
    write(path, entry(12_000, "last\n"))
    assert texts(log.read(MOST)) == ["last"]


def test_a_container_that_is_gone_says_nothing_more(path: Path, opened: Opened) -> None:
    log = opened(0)
    write(path, entry(1, "one\n"), entry(2, "two\n"))
    assert texts(log.read(60)) == []
    path.unlink()
    # Open as it was, it is read to its end.
    assert texts(log.read(MOST)) == ["one", "two"]
    assert log.read(MOST) == []
    assert opened(0).read(MOST) == []
