"""The Docker Engine behind the port: an instance is a container that can do as little as possible.

Its labels carry its identity, its restart policy keeps it alive without us (I6), its limits are the plan's.
The SDK blocks, so calls run in threads of this engine's own; nothing polls, nothing is forked per container.
"""

import asyncio
import contextlib
import math
import os
import re
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import structlog
from contracts.errors import InvalidInput, NotFound, ProviderFailed, Unavailable

from node_agent import docker_disk, gauges, labels, shell
from node_agent.docker_errors import translated
from node_agent.docker_log import DockerLog
from node_agent.docker_networks import Networks
from node_agent.docker_streams import DockerSession, connect
from node_agent.engine import (
    Blueprint,
    Credentials,
    Ending,
    EngineEvent,
    EngineInfo,
    Instance,
    State,
    Usage,
)
from node_agent.firewall import Firewall

if TYPE_CHECKING:
    from docker import APIClient

T = TypeVar("T")

log = structlog.get_logger("node-agent.engine")

_CALLS = 8
# A pull holds its thread for as long as a registry likes.
_PULLS = 3
# A stop holds its thread for as long as the instance takes to end.
_STOPS = 32
_MIB = 1024 * 1024
_CPU_PERIOD = 100_000
_LOG_TAIL_BYTES = 64 * 1024
_STATES: dict[str, State] = {
    "created": "created",
    "running": "running",
    "paused": "running",
    "restarting": "restarting",
    "exited": "exited",
    "dead": "exited",
}
_EVENTS = {"start": "started", "die": "died", "destroy": "removed"}
_OUT_OF_MEMORY = "oom"
_EXIT_CODE = re.compile(r"\((\d+)\)")


class DockerEngine:
    def __init__(
        self,
        url: str,
        *,
        node: str,
        prefix: str,
        networks: Networks,
        firewall: Firewall | None,
        tmp_mb: int,
    ) -> None:
        self._url = url
        self._prefix = prefix
        self._networks = networks
        self._firewall = firewall
        self._tmp_mb = tmp_mb
        self._own = {labels.PREFIX: prefix, labels.NODE: node}
        self._calls = ThreadPoolExecutor(_CALLS, "engine")
        self._pulls = ThreadPoolExecutor(_PULLS, "engine-pull")
        self._stops = ThreadPoolExecutor(_STOPS, "engine-stop")
        self._connecting = threading.Lock()
        # Networks and addresses are looked up and then taken: one at a time.
        self._dealing = threading.Lock()
        self._connected: APIClient | None = None
        self._groups: dict[str, gauges.Group] = {}
        # The rules were in place when they were last looked at.
        self._isolated = False

    # --- the connection ----------------------------------------------------------------------------

    def _client(self) -> "APIClient":
        with self._connecting:
            if self._connected is None:
                from docker import APIClient

                most = _CALLS + _PULLS + _STOPS + 1
                self._connected = APIClient(
                    base_url=self._url, version="auto", timeout=120, max_pool_size=most
                )
            return self._connected

    async def _call(self, work: Callable[[Any], T], pool: ThreadPoolExecutor | None = None) -> T:
        def run() -> T:
            with translated():
                return work(self._client())

        return await asyncio.get_running_loop().run_in_executor(pool or self._calls, run)

    async def close(self) -> None:
        for pool in (self._calls, self._pulls, self._stops):
            pool.shutdown(wait=False, cancel_futures=True)
        if self._connected is not None:
            self._connected.close()

    # --- the machine -------------------------------------------------------------------------------

    async def info(self) -> EngineInfo:
        found = await self._call(lambda client: client.info())
        return EngineInfo(
            "Docker",
            found["ServerVersion"],
            found["NCPU"] * 1000,
            found["MemTotal"] // _MIB,
            found["Architecture"],
            tuple(sorted(found.get("Runtimes") or ())),
        )

    async def reassert(self) -> None:
        def assert_all(client: Any) -> None:
            with self._dealing:
                self._networks.forget_unused(client)
                self._networks.repair(client)
                self._assert_rules(client)

        await self._call(assert_all)

    def _assert_rules(self, client: Any) -> None:
        self._isolated = False
        if self._firewall is not None:
            self._firewall.reassert(self._networks.bridges(client))
        self._isolated = True

    # --- images ------------------------------------------------------------------------------------

    async def image_present(self, image: str) -> bool:
        try:
            await self._call(lambda client: client.inspect_image(image))
        except NotFound:
            return False
        return True

    async def pull(self, image: str, credentials: Credentials | None = None) -> None:
        login = None if credentials is None else credentials.told()

        def pull(client: Any) -> None:
            for line in client.pull(_tagged(image), auth_config=login, stream=True, decode=True):
                if "error" in line:
                    raise ProviderFailed(line["error"])

        try:
            await self._call(pull, self._pulls)
        except (NotFound, ProviderFailed) as error:
            raise ProviderFailed(f"image {image} could not be pulled: {error.message}") from error

    # --- instances ---------------------------------------------------------------------------------

    async def create(self, blueprint: Blueprint) -> Instance:
        instance = blueprint.identity.instance

        def create(client: Any) -> Instance:
            with self._dealing:
                network, new = self._networks.ensure(client, blueprint.identity.organization)
                if new or not self._isolated:
                    self._assert_rules(client)
                try:
                    address = str(self._networks.address(client, network, instance))
                    container = self._container(client, blueprint, network.name, address)
                    client.create_container_from_config(container, self._name(instance))
                except Exception:
                    self._networks.forget_unused(client)
                    raise
            return Instance(blueprint.identity, "created", address)

        return await self._call(create)

    def _container(self, client: Any, blueprint: Blueprint, network: str, address: str) -> dict[str, Any]:
        limits = blueprint.limits
        user = f"{blueprint.uid}:{blueprint.uid}"
        memory = limits.memory_mb * _MIB
        if blueprint.command is not None:
            start = shell.start(blueprint.command)
        else:
            start = shell.start_of(client.inspect_image(blueprint.image)["Config"])
        config: dict[str, Any] = client.create_container_config(
            blueprint.image,
            command=start.command,
            entrypoint=start.entrypoint,
            user=user,
            # Health is the agent's to judge, from outside.
            healthcheck={"test": ["NONE"]},
            hostname=str(blueprint.identity.slot).replace(".", "-"),
            environment={"HOME": "/tmp", **start.environment, **blueprint.environment},  # noqa: S108
            tty=blueprint.terminal,
            stdin_open=blueprint.terminal,
            labels={**self._own, **labels.labels_of(blueprint.identity), labels.ADDRESS: address},
            networking_config=client.create_networking_config(
                {network: client.create_endpoint_config(ipv4_address=address)}
            ),
            host_config=client.create_host_config(
                network_mode=network,
                privileged=False,
                cap_drop=["ALL"],
                security_opt=["no-new-privileges"],
                ipc_mode="private",
                runtime=blueprint.runtime,
                init=True,
                mem_limit=memory,
                memswap_limit=memory,
                mem_reservation=limits.reserved_memory_mb * _MIB,
                # Not as a number of CPUs: of those the engine takes no more than the machine has.
                cpu_period=_CPU_PERIOD,
                cpu_quota=limits.cpu_millis * _CPU_PERIOD // 1000,
                # Its weight where all want more than there is: 1024 for each core that is promised.
                cpu_shares=max(2, limits.reserved_cpu_millis * 1024 // 1000),
                pids_limit=limits.pids,
                restart_policy={"Name": "unless-stopped" if blueprint.identity.job is None else "no"},
                mounts=[
                    # Not a volume of the engine's: that would make the folder where it is missing.
                    {
                        "Type": "bind",
                        "Source": mount.source,
                        "Target": mount.target,
                        "BindOptions": {"Propagation": "private"},
                    }
                    for mount in blueprint.mounts
                ],
                tmpfs={"/tmp": f"rw,exec,nosuid,nodev,mode=1777,size={self._tmp_mb}m"},  # noqa: S108
                log_config={"type": "json-file", "config": {"max-size": "10m", "max-file": "3"}},
            ),
        )
        return config

    async def start(self, instance: str) -> None:
        await self._call(lambda client: client.start(self._name(instance)))

    async def stop(self, instance: str, grace_seconds: float) -> int | None:
        def stop(client: Any) -> int:
            client.stop(self._name(instance), timeout=math.ceil(grace_seconds))
            return int(client.inspect_container(self._name(instance))["State"]["ExitCode"])

        try:
            return await self._call(stop, self._stops)
        except NotFound:
            return None

    async def remove(self, instance: str) -> None:
        def remove(client: Any) -> None:
            client.remove_container(self._name(instance), v=True, force=True)
            self._groups.pop(instance, None)

        with contextlib.suppress(NotFound):
            await self._call(remove)

    async def instances(self, workload: str | None = None) -> tuple[Instance, ...]:
        more = () if workload is None else (f"{labels.WORKLOAD}={workload}",)
        found = await self._call(lambda client: self._containers(client, *more))
        return tuple(
            instance
            for one in found
            if (instance := _instance(one)) is not None and instance.identity.job is None
        )

    async def jobs(self) -> tuple[Instance, ...]:
        found = await self._call(lambda client: self._containers(client, labels.JOB))
        return tuple(
            instance
            for one in found
            if (instance := _instance(one)) is not None and instance.identity.job is not None
        )

    async def ending(self, instance: str) -> Ending | None:
        state = (await self._call(lambda client: client.inspect_container(self._name(instance))))["State"]
        if state["Status"] not in ("exited", "dead", "restarting"):
            return None
        return Ending(int(state["ExitCode"]), bool(state["OOMKilled"]))

    def _containers(self, client: Any, *more: str) -> list[dict[str, Any]]:
        found = client.containers(all=True, filters={"label": [*self._filters(), *more]})
        return [one for one in found if labels.ours(self._prefix, one)]

    async def lines(self, instance: str, after: int) -> DockerLog:
        found = await self._call(lambda client: client.inspect_container(self._name(instance)))
        path = Path(found["LogPath"])
        if not os.access(path.parent, os.R_OK | os.X_OK):
            raise ProviderFailed(f"what the engine has written of instances cannot be read at {path.parent}")
        return DockerLog(path, after)

    async def log_tail(self, instance: str, lines: int) -> tuple[str, ...]:
        text = await self._call(
            lambda client: client.logs(self._name(instance), stdout=True, stderr=True, tail=lines)
        )
        said = text[-_LOG_TAIL_BYTES:].decode(errors="replace").replace("\0", "\ufffd")
        return tuple(said.splitlines()[-lines:])

    # --- streams -----------------------------------------------------------------------------------

    async def output(self, instance: str) -> DockerSession:
        terminal = await self._call(
            lambda client: bool(client.inspect_container(self._name(instance))["Config"]["Tty"])
        )
        path = await self._path(f"/containers/{self._name(instance)}/logs?follow=1&stdout=1&stderr=1")
        return DockerSession(*await connect(self._url, "GET", path), terminal=terminal)

    async def attach(self, instance: str) -> DockerSession:
        name = self._name(instance)

        async def resize(rows: int, columns: int) -> None:
            await self._call(lambda client: client.resize(name, height=rows, width=columns))

        path = await self._path(f"/containers/{name}/attach?stream=1&stdin=1&stdout=1&stderr=1")
        return DockerSession(*await connect(self._url, "POST", path, {}), terminal=True, resizing=resize)

    async def execute(
        self, instance: str, command: tuple[str, ...], environment: dict[str, str], *, terminal: bool
    ) -> DockerSession:
        name = self._name(instance)
        made: str = await self._call(
            lambda client: client.exec_create(
                name, list(command), stdin=True, tty=terminal, environment=environment
            )["Id"]
        )

        async def resize(rows: int, columns: int) -> None:
            await self._call(lambda client: client.exec_resize(made, height=rows, width=columns))

        async def ending() -> int | None:
            code = (await self._call(lambda client: client.exec_inspect(made)))["ExitCode"]
            return None if code is None else int(code)

        path = await self._path(f"/exec/{made}/start")
        stream = await connect(self._url, "POST", path, {"Detach": False, "Tty": terminal})
        return DockerSession(*stream, terminal=terminal, resizing=resize, ending=ending)

    async def _path(self, path: str) -> str:
        version: str = await self._call(lambda client: client.api_version)
        return f"/v{version}{path}"

    async def usage(self, instance: str) -> Usage:
        found = gauges.read(self._groups[instance]) if instance in self._groups else None
        if found is None:
            found = await self._call(lambda client: self._read_anew(client, instance))
        return Usage(found.cpu_seconds, found.memory_bytes)

    def _read_anew(self, client: Any, instance: str) -> gauges.Reading:
        pid = client.inspect_container(self._name(instance))["State"]["Pid"]
        group = gauges.group_of(pid) if pid else None
        if group is not None and (found := gauges.read(group)) is not None:
            self._groups[instance] = group
            return found
        if not pid:
            return gauges.Reading(0.0, 0)
        # An engine on another machine, or behind a wall: it is asked itself.
        return gauges.told(client.stats(self._name(instance), stream=False, one_shot=True))

    async def written(self, instance: str, most: int) -> int:
        return await self._call(lambda client: docker_disk.written(client, self._name(instance), most))

    async def events(self) -> AsyncIterator[EngineEvent | None]:
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        stream = await self._call(
            lambda client: client.events(
                decode=True,
                filters={
                    "type": "container",
                    "event": [*_EVENTS, _OUT_OF_MEMORY],
                    "label": self._filters(),
                },
            )
        )

        def read() -> None:
            try:
                for event in stream:
                    loop.call_soon_threadsafe(queue.put_nowait, event)
            except Exception as error:
                log.debug("engine events ended", error=str(error))
            # The loop may have ended before this thread did.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(queue.put_nowait, None)

        reader = threading.Thread(target=read, name="engine-events", daemon=True)
        reader.start()
        try:
            yield None
            starved: set[str] = set()
            while (event := await queue.get()) is not None:
                attributes = event["Actor"]["Attributes"]
                instance = attributes.get(labels.INSTANCE, "")
                if attributes["name"] != self._name(instance) or attributes.get(labels.JOB):
                    continue
                if event["Action"] == _OUT_OF_MEMORY:
                    starved.add(instance)
                    continue
                kind = _EVENTS[event["Action"]]
                code = attributes.get("exitCode")
                # The kernel may have killed a child long before: only who dies of SIGKILL died of that.
                out_of_memory = kind == "died" and instance in starved and code == "137"
                starved.discard(instance)
                yield EngineEvent(
                    kind,  # type: ignore[arg-type]
                    instance,
                    attributes[labels.WORKLOAD],
                    None if code is None else int(code),
                    out_of_memory,
                )
        finally:
            stream.close()
        raise Unavailable("the container engine ended its stream of events")

    def _name(self, instance: str) -> str:
        return labels.name_of(self._prefix, instance)

    def _filters(self) -> list[str]:
        return [f"{key}={value}" for key, value in self._own.items()]


def _instance(found: dict[str, Any]) -> Instance | None:
    state = _STATES.get(found["State"])
    if state is None:
        return None
    try:
        identity = labels.identity_from(found["Labels"])
    except InvalidInput as error:
        log.warning("a container of ours has unreadable labels", container=found["Id"], error=error.message)
        return None
    code = _EXIT_CODE.search(found["Status"]) if state in ("exited", "restarting") else None
    return Instance(identity, state, found["Labels"][labels.ADDRESS], None if code is None else int(code[1]))


def _tagged(image: str) -> str:
    """Without a tag Docker would pull every one there is."""
    last = image.rpartition("/")[2]
    return image if ":" in last or "@" in last else f"{image}:latest"
