"""Routes by which the platform makes a server a node by itself, over SSH: the script, run with a password.

Invariants: nothing is sent to a server before it has proved that it has the key the administrator confirmed;
the password is used for one log-in, and is in no table, log line or answer. What was begun goes on when the
administrator looks away; the script can be run again whatever became of it.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import structlog
from contracts.errors import BerthError, InvalidInput, ProviderFailed, Unavailable
from contracts.nodes_api import AddServer, AskServerKey, ServerKey, SetupStep
from contracts.queries import JoinTokenMade, JoinTokenRevoked, NewJoinToken, NodeOf
from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from gateway import event_stream, joining
from gateway.bundle import bundle
from gateway.desk import Desk
from gateway.permissions import Administrator

if TYPE_CHECKING:
    from asyncssh import SSHClientConnection, SSHKey

router = APIRouter(prefix="/api/admin/paas/servers", tags=["joining"])

log = structlog.get_logger("gateway.servers")

# Asked for in one order, so that a server with several keys shows the same one each time.
_KEYS = ("ssh-ed25519", "ecdsa-sha2-nistp256", "rsa-sha2-512", "rsa-sha2-256")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_CONNECT = 20.0
# Packages have to come down a line that may be slow.
_SETUP = 1800.0
_ONLINE = 60.0
_TOKEN_SECONDS = 3600
_KEEP_ALIVE = 15.0
_JOINED = " is ready"


@router.post("/key")
async def server_key(server: AskServerKey, caller: Administrator) -> ServerKey:
    """Who answers at this address: to be compared with what the server itself says, and confirmed."""
    import asyncssh

    try:
        async with asyncio.timeout(_CONNECT):
            key = await asyncssh.get_server_host_key(
                str(server.address), server.port, server_host_key_algs=_KEYS, config=None
            )
    except (OSError, asyncssh.Error, TimeoutError) as error:
        raise _unreachable(server, error) from error
    if key is None:
        raise ProviderFailed(f"{server.address} shows no key of its own")
    return ServerKey(fingerprint=key.get_fingerprint(), kind=key.get_algorithm())


@router.post("", response_class=StreamingResponse)
async def add_server(server: AddServer, request: Request, caller: Administrator) -> Response:
    """Sets the server up and says each step as it is done, as server-sent events; the last one is `joined` or
    `failed`."""
    desk = caller.desk
    joining.require_bus(desk)
    url = joining.public_url(desk, request)
    if not desk.settings.public_url and urlsplit(url).hostname in _LOOPBACK:
        raise InvalidInput("the server cannot reach the platform at this address: set GATEWAY_PUBLIC_URL")
    script = bundle().script_for(url)
    token = await desk.bus.ask(
        JoinTokenMade(
            region=server.region,
            node=server.node,
            labels=server.labels,
            created_by=caller.user,
            seconds=_TOKEN_SECONDS,
        )
    )
    setup = Setup(desk, server, token, script)
    return event_stream.answer(setup.events())


class Setup:
    def __init__(self, desk: Desk, server: AddServer, token: NewJoinToken, script: str) -> None:
        self._desk = desk
        self._server = server
        self._token = token
        self._script = script
        self._steps: asyncio.Queue[SetupStep | None] = asyncio.Queue()
        self._node: str | None = None

    async def events(self) -> AsyncIterator[bytes]:
        self._desk.begin(self._run(), "setup of a server")
        while True:
            try:
                async with asyncio.timeout(_KEEP_ALIVE):
                    step = await self._steps.get()
            except TimeoutError:
                yield b": still at it\n\n"
                continue
            if step is None:
                return
            yield f"event: {step.kind}\ndata: {step.model_dump_json()}\n\n".encode()

    async def _run(self) -> None:
        try:
            async with asyncio.timeout(_SETUP):
                await self._set_up()
        except BerthError as error:
            self._say("failed", error.message)
        except TimeoutError:
            self._say(
                "failed", f"not done after {_SETUP / 60:.0f} minutes; look at the server, and try again"
            )
        except Exception as error:
            log.exception("setup of a server broke", address=str(self._server.address))
            self._say("failed", f"the setup broke ({type(error).__name__}); the gateway's log says why")
        finally:
            self._steps.put_nowait(None)
            with contextlib.suppress(BerthError):
                # Used, or of no use any more.
                await self._desk.bus.ask(JoinTokenRevoked(token=self._token.info.id))

    async def _set_up(self) -> None:
        self._say("step", f"connecting to {self._server.address}")
        connection = await self._connect()
        async with connection:
            self._say("step", "the server has the key you confirmed, and let us in")
            await self._run_script(connection)
        if self._node is None:
            raise ProviderFailed("the script ended well and named no node; run it on the server by hand")
        self._say("step", f"waiting for {self._node} to be heard")
        await self._heard(self._node)
        self._say("joined", f"{self._node} is online", node=self._node)

    async def _connect(self) -> "SSHClientConnection":
        import asyncssh

        server, confirmed = self._server, self._server.fingerprint

        class Client(asyncssh.SSHClient):
            def validate_host_public_key(self, host: str, addr: str, port: int, key: "SSHKey") -> bool:
                return key.get_fingerprint() == confirmed

        try:
            async with asyncio.timeout(_CONNECT):
                return await asyncssh.connect(
                    str(server.address),
                    server.port,
                    username=server.user,
                    password=server.password.get_secret_value(),
                    client_factory=Client,
                    # None known: so each is shown to the client above. Nothing of this machine's own is used.
                    known_hosts=([], [], []),
                    client_keys=None,
                    agent_path=None,
                    config=None,
                    server_host_key_algs=_KEYS,
                    keepalive_interval=15,
                )
        except asyncssh.HostKeyNotVerifiable as error:
            raise InvalidInput(
                f"{server.address} has another key than the one you confirmed: nothing was sent. Compare its "
                "fingerprint again; somebody may stand in between"
            ) from error
        except asyncssh.PermissionDenied as error:
            raise InvalidInput(
                f"{server.address} refuses {server.user} with this password (if it allows keys only, run "
                "the script there yourself)"
            ) from error
        except (OSError, asyncssh.Error, TimeoutError) as error:
            raise _unreachable(server, error) from error

    async def _run_script(self, connection: "SSHClientConnection") -> None:
        import asyncssh

        # Over its input: what stands in a command is seen by everybody on the server.
        text = f"export BERTH_JOIN_TOKEN='{self._token.token}'\n{self._script}"
        try:
            async with connection.create_process(
                "bash -s", stderr=asyncssh.STDOUT, encoding="utf-8", errors="replace"
            ) as process:
                process.stdin.write(text)
                process.stdin.write_eof()
                last = ""
                async for line in process.stdout:
                    last = line.strip()[:500] or last
                    self._heard_line(line.rstrip()[:500])
                done = await process.wait()
        except (OSError, asyncssh.Error) as error:
            raise Unavailable(f"the connection broke ({error}); add the server again") from error
        if done.exit_status != 0:
            raise ProviderFailed(f"the script failed: {last}", exit_status=done.exit_status)

    def _heard_line(self, line: str) -> None:
        kind, own = "line", line.removeprefix("berth: ")
        if own != line:
            kind = "step"
            if own.endswith(_JOINED):
                self._node = own.removesuffix(_JOINED)
        if own:
            self._say(kind, own)

    async def _heard(self, node: str) -> None:
        end = self._desk.clock.monotonic() + _ONLINE
        while True:
            try:
                detail = await self._desk.bus.ask(NodeOf(node=node))
                if detail.node.status == "online":
                    return
            except BerthError as error:
                log.debug("not heard yet", node=node, error=error.message)
            if self._desk.clock.monotonic() > end:
                raise Unavailable(f"{node} has joined and is not heard: look at its agent's log")
            await self._desk.clock.sleep(0.5)

    def _say(self, kind: str, text: str, **details: Any) -> None:
        self._steps.put_nowait(SetupStep.model_validate({"kind": kind, "text": text, "details": details}))


def _unreachable(server: AskServerKey, error: Exception) -> Unavailable:
    match error:
        case TimeoutError():
            why = "nothing came back in time"
        case ConnectionRefusedError():
            why = "the connection was refused"
        case OSError(strerror=str(words)):
            why = words.lower()
        case _:
            why = "the connection broke off"
    return Unavailable(
        f"no SSH server answers at {server.address}:{server.port}, {why}; is the address right, is the port "
        "open?"
    )
