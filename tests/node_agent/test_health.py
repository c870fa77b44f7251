"""Whether an instance answers, and how soon that is noticed."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from contracts.workload import HealthCheck
from node_agent.health import probe, until_ready
from runtime.clock import SystemClock

from tests.harness import free_port

ADDRESS = "127.0.0.1"


@asynccontextmanager
async def server(answer: bytes, port: int = 0) -> AsyncIterator[tuple[int, list[bytes]]]:
    """Says the same to everybody; the port, and what it was asked."""
    asked: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if answer:
            asked.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(answer)
            await writer.drain()
        else:
            await reader.read()
        writer.close()

    listening = await asyncio.start_server(serve, ADDRESS, port)
    async with listening:
        yield listening.sockets[0].getsockname()[1], asked


def check(**changes: object) -> HealthCheck:
    return HealthCheck.model_validate({"kind": "http", "path": "/up", "timeout_seconds": 0.3, **changes})


def asks(chosen: HealthCheck, port: int) -> Callable[[], Awaitable[str | None]]:
    return lambda: probe(chosen, ADDRESS, port)


ANSWERS = {
    b"HTTP/1.1 200 OK\r\n\r\n": None,
    b"HTTP/1.0 302 Found\r\nLocation: /\r\n\r\n": None,
    b"HTTP/1.1 404 Not Found\r\n\r\n": "GET /up on port {} was answered with status 404",
    b"HTTP/1.1 503 Busy\r\n\r\n": "GET /up on port {} was answered with status 503",
    b"SSH-2.0-OpenSSH_9\r\n": "GET /up on port {} was not answered in HTTP",
    b"HTTP/1.1 " + b"2" * 10_000: "nothing answers on port {} (ValueError)",
    b"": "no answer on port {} within 0.3 s",
}


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda answer: answer[:20].decode())
async def test_an_http_check(answer: bytes) -> None:
    async with server(answer) as (port, asked):
        reason = ANSWERS[answer]
        assert await probe(check(), ADDRESS, port) == (reason and reason.format(port))
        assert all(request.startswith(b"GET /up HTTP/1.1\r\n") for request in asked)


async def test_a_tcp_check_asks_for_nothing() -> None:
    async with server(b"") as (port, _):
        assert await probe(check(kind="tcp"), ADDRESS, port) is None
    reason = await probe(check(kind="tcp"), ADDRESS, port)
    assert reason == f"nothing answers on port {port} (connection refused)"


async def test_readiness_is_noticed_at_once_and_believed_at_its_first_answer() -> None:
    port = free_port()

    async def never() -> str | None:
        return None

    waiting = asyncio.create_task(until_ready(check(), asks(check(), port), SystemClock(), never))
    await asyncio.sleep(0.3)
    assert not waiting.done()
    async with server(b"HTTP/1.1 200 OK\r\n\r\n", port) as (_, asked):
        began = time.monotonic()
        assert await waiting is None
        assert time.monotonic() - began < 1
        assert len(asked) == 1


async def test_it_is_given_up_at_the_end_of_its_start_period() -> None:
    async def never() -> str | None:
        return None

    port = free_port()
    why = await until_ready(check(start_seconds=0.2), asks(check(), port), SystemClock(), never)
    assert why == f"not ready after 0.2 s: nothing answers on port {port} (connection refused)"


async def test_it_is_given_up_when_nobody_waits_any_more() -> None:
    async def at_once() -> str | None:
        return "was given up"

    assert await until_ready(check(), asks(check(), free_port()), SystemClock(), at_once) == "was given up"
