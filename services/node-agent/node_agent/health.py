"""Does an instance answer? Asked from this machine, over the network, as its ingress would; or by a command.

`examine` asks once; `until_ready` asks a new instance quickly at first, then more and more slowly, until it
answers; from then on `Watch` goes on asking. The reason of a failure is in words a customer understands.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from contracts.errors import NotFound, ProviderFailed
from contracts.workload import HealthCheck
from runtime.clock import Clock

from node_agent.endings import words
from node_agent.engine import ContainerEngine, Instance, Session

_FIRST_PAUSE = 0.02
# A command is a process in the instance, which has better things to do just now.
_FIRST_PAUSE_OF_COMMAND = 0.5
_LAST_WORDS = 200
_LONGEST_PAUSE = 0.5
_LONGEST_LINE = 4096


async def examine(engine: ContainerEngine, instance: Instance) -> str | None:
    """None when it is healthy, else why not."""
    identity = instance.identity
    check = identity.health
    if check.kind != "command":
        return await probe(check, instance.address, identity.port)
    named = f"the check `{' '.join(check.command)}`"
    try:
        async with asyncio.timeout(check.timeout_seconds):
            session = await engine.execute(identity.instance, check.command, {}, terminal=False)
            try:
                said = await _said(session)
                code = await session.exit_code()
            finally:
                await session.close()
    except TimeoutError:
        return f"{named} did not end within {check.timeout_seconds:g} s"
    except (ProviderFailed, NotFound) as error:
        return f"{named} could not be run: {error.message}"
    if code == 0:
        return None
    return f"{named} failed ({words(code)})" + (f": {said}" if said else "")


async def _said(session: Session) -> str:
    """The last of it."""
    await session.end_input()
    data = b""
    while (chunk := await session.read()) is not None:
        data = (data + chunk.data)[-_LAST_WORDS:]
    return data.decode(errors="replace").strip()


async def probe(check: HealthCheck, address: str, port: int) -> str | None:
    """None when it answers, else why it does not count as healthy."""
    try:
        async with asyncio.timeout(check.timeout_seconds):
            reader, writer = await asyncio.open_connection(address, port, limit=_LONGEST_LINE)
            try:
                return await _get(check.path, port, reader, writer) if check.kind == "http" else None
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
    except TimeoutError:
        return f"no answer on port {port} within {check.timeout_seconds:g} s"
    except (OSError, asyncio.IncompleteReadError, ValueError) as error:
        return f"nothing answers on port {port} ({_reason(error)})"


async def _get(
    path: str, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> str | None:
    request = f"GET {path} HTTP/1.1\r\nHost: localhost:{port}\r\nUser-Agent: berth-health\r\n"
    writer.write(f"{request}Accept: */*\r\nConnection: close\r\n\r\n".encode())
    await writer.drain()
    words = (await reader.readline()).decode("latin-1").split()
    if len(words) < 2 or not words[0].startswith("HTTP/") or not words[1].isdigit():
        return f"GET {path} on port {port} was not answered in HTTP"
    if not 200 <= int(words[1]) < 400:
        return f"GET {path} on port {port} was answered with status {words[1]}"
    return None


async def until_ready(
    check: HealthCheck,
    ask: Callable[[], Awaitable[str | None]],
    clock: Clock,
    given_up: Callable[[], Awaitable[str | None]],
) -> str | None:
    """None once it is ready; else why not, at the end of its start period or when `given_up` says so."""
    deadline = clock.monotonic() + check.start_seconds
    pause = _FIRST_PAUSE_OF_COMMAND if check.kind == "command" else _FIRST_PAUSE
    while True:
        reason = await ask()
        if reason is None:
            return None
        if (why := await given_up()) is not None:
            return why
        if clock.monotonic() + pause > deadline:
            return f"not ready after {check.start_seconds:g} s: {reason}"
        await clock.sleep(pause)
        # A twentieth of the time that has passed: what is ready is found when it is hardly later.
        pause = min(pause * 1.05, _LONGEST_PAUSE)


def _reason(error: Exception) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, ConnectionResetError | BrokenPipeError):
        return "connection reset"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return type(error).__name__
