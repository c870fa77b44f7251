"""One installation of the platform on one machine: its state folder, its servers, its processes.

Everything it makes can be found again from the folder alone; starting it twice is the same as once.
"""

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from functools import cached_property
from http import HTTPStatus
from ipaddress import ip_address
from pathlib import Path

from contracts.errors import Unavailable
from pydantic import BaseModel
from runtime.issuer import Issuer, cutter_password
from runtime.permissions import CUTTER, nats_config
from runtime.secrets import derive, new_secret, read_or_create
from runtime.settings import RuntimeSettings

from embedded import instances, leftovers
from embedded.daemon import Daemon, environment, write_if_new
from embedded.engine import Engine, answers
from embedded.images import Images, stacks_of, trusted
from embedded.nats import Nats
from embedded.ports import Ports, settle
from embedded.postgres import Postgres
from embedded.settings import EmbeddedSettings
from embedded.traefik import MeshPorts, Traefik
from embedded.web import get

LEAST_FREE_MB = 1024
ADMIN_URL = "BERTH_DATABASE_ADMIN_URL"
# What an operator sets for any part of the platform reaches it, and so does his way to the network.
_PASSED = ("BERTH_", "GATEWAY_", "BUILDER_", "SCHEDULER_", "NODE_AGENT_", "DOMAINS_", "BILLING_")
_NETWORK = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR")

Say = Callable[[str], None]


class Administrator(BaseModel, frozen=True):
    email: str
    password: str


class Installation:
    def __init__(self, say: Say, settings: EmbeddedSettings, runtime: RuntimeSettings) -> None:
        self._say = say
        self.settings = settings
        self.runtime = runtime
        self.state = runtime.state.absolute()
        self.platform = Daemon("berth", self.state)
        # Makes the images of further runtimes, and ends.
        self.images = Daemon("images", self.state)
        self.engine = Engine(self.state / "engine", say=say)
        self._ports_file = self.state / "ports.json"
        # A server that was named by its address is somebody else's.
        self.own_database = "database_url" not in runtime.model_fields_set
        self.own_bus = "nats_url" not in runtime.model_fields_set
        self.ports = self._wanted_ports()

    @property
    def exists(self) -> bool:
        return self._ports_file.exists()

    @property
    def api_url(self) -> str:
        return f"http://127.0.0.1:{self.ports.api}"

    @property
    def ingress_url(self) -> str:
        host = self.settings.ingress_host
        return f"http://{'127.0.0.1' if ip_address(host).is_unspecified else host}:{self.ports.http}"

    # --- the folder --------------------------------------------------------------------------------------

    def prepare(self) -> None:
        try:
            # The database's own user has to pass through it; every secret in it is closed by itself.
            self.state.mkdir(mode=0o711, parents=True, exist_ok=True)
            (self.state / "lock").touch()
        except OSError as error:
            raise Unavailable(
                f"{self.state} cannot be written ({error.strerror}): choose another folder with BERTH_STATE"
            ) from error
        free = shutil.disk_usage(self.state).free // 1024**2
        if free < LEAST_FREE_MB:
            raise Unavailable(
                f"{self.state} has {free} MB free and needs {LEAST_FREE_MB}: make room, "
                "or choose another folder with BERTH_STATE"
            )

    @contextmanager
    def alone(self) -> Iterator[None]:
        """One command at a time changes an installation."""
        with (self.state / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Unavailable("another `berth up` or `berth down` is at work here: wait for it") from None
            yield

    @cached_property
    def secret(self) -> str:
        return self.runtime.master() or read_or_create(self.state / "secret")

    @cached_property
    def administrator(self) -> Administrator:
        email = os.environ.get("GATEWAY_ADMIN_EMAIL", "admin@berth.localhost")
        password = os.environ.get("GATEWAY_ADMIN_PASSWORD")
        if password:
            return Administrator(email=email, password=password)
        file = self.state / "administrator.json"
        with suppress(FileNotFoundError):
            return Administrator.model_validate_json(file.read_text())
        made = Administrator(email=email, password=new_secret()[:24])
        write_if_new(file, made.model_dump_json())
        return made

    def _wanted_ports(self) -> Ports:
        """As in the last start, but for those that are set now."""
        given = {"http": self.settings.http_port, "api": self.runtime.api_port, "ops": self.runtime.ops_port}
        set_now = self.settings.model_fields_set | self.runtime.model_fields_set
        kept = Ports.kept(self._ports_file)
        if kept is None:
            return Ports(**given)
        return kept.model_copy(update={name: given[name] for name in given if f"{name}_port" in set_now})

    def _settle_ports(self) -> None:
        kept = Ports.kept(self._ports_file)
        runs = {
            "http": self.traefik.daemon,
            "api": self.platform,
            "ops": self.platform,
            "postgres": self.postgres.daemon,
            "nats": self.nats.daemon,
            "ping": self.traefik.daemon,
            "mesh": self.traefik.daemon,
            "here": self.traefik.daemon,
        }

        def ours(name: str) -> bool:
            same = kept is not None and getattr(kept, name) == getattr(self.ports, name)
            return same and runs[name].pid() is not None

        variables = {"http": "BERTH_HTTP_PORT", "api": "BERTH_API_PORT"}
        self.ports = settle(self.ports, ours, variables, self.settings.ingress_host)
        self.ports.keep(self._ports_file)

    # --- the servers -------------------------------------------------------------------------------------

    @property
    def postgres(self) -> Postgres:
        password = derive(self.secret, "database/postgres")
        return Postgres(self.state / "postgres", self.ports.postgres, password)

    @property
    def nats(self) -> Nats:
        issuer = derive(self.secret, "nats/issuer")

        def password(user: str) -> str:
            return cutter_password(issuer) if user == CUTTER else derive(self.secret, f"nats/{user}")

        config = nats_config(password, nodes=[self.runtime.node], issuer=Issuer(issuer).public)
        return Nats(self.state / "nats", self.ports.nats, config, self.settings.public_host)

    @property
    def traefik(self) -> Traefik:
        alone = self.settings.public_host is None
        return Traefik(
            self.state / "traefik",
            self.ports.http,
            self.ports.ping,
            host=self.settings.ingress_host,
            mesh=None if alone else MeshPorts("0.0.0.0", self.ports.mesh, self.ports.here),  # noqa: S104
        )

    def start(self) -> None:
        """Returns when the platform is ready."""
        self._settle_ports()
        if self.platform.pid() is None:
            self._say("starting Postgres, NATS, Traefik and the container engine")
        _all_at_once(self._start_database, self._start_nats, self._start_traefik, self._start_engine)
        self._start_platform()
        self._make_further_images()

    def _start_database(self) -> None:
        if self.own_database:
            server = self.postgres
            server.start()
            server.wait_ready()
        if self.own_database or self.runtime.database_admin_url is not None:
            self._migrate()

    def _start_nats(self) -> None:
        if self.own_bus:
            server = self.nats
            server.start()
            server.wait_ready()

    def _start_traefik(self) -> None:
        server = self.traefik
        server.start()
        server.wait_ready()

    def _start_engine(self) -> None:
        with closing(self.images_of(self.engine.ensure(), self._say)) as images:
            images.ensure()

    def images_of(self, host: str, say: Say) -> Images:
        return Images(host, self.state / "images", say, ca_bundle=trusted())

    def _make_further_images(self) -> None:
        """Beside the platform: an app that needs one before it is made waits for it in its build."""
        with closing(self.images_of(self.engine.host, self._say)) as images:
            missing = images.missing(stacks_of(self.settings.images))
        if missing and self.images.pid() is None:
            names = ", ".join(stack.name for stack in missing)
            self._say(f"making the images of further runtimes beside it: {names}")
            self.images.start(self.berth("images", *(stack.name for stack in missing)), self.environment())

    def _migrate(self) -> None:
        done = subprocess.run(
            self.berth("migrate"),
            env=self.operator_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
            raise Unavailable(f"the migration failed: {said[-1] if said else f'exit {done.returncode}'}")

    def _start_platform(self) -> None:
        env = self.environment()
        if write_if_new(self.state / "environment", "".join(f"{k}={v}\n" for k, v in sorted(env.items()))):
            self.platform.stop(seconds=60)
        self.platform.start(self.berth("run"), env)
        self.platform.wait_ready(lambda: self.readiness()[0], seconds=90)

    def readiness(self) -> tuple[bool, str]:
        """Whether all of the platform is ready, and its own words, service by service."""
        try:
            status, body = get(f"http://127.0.0.1:{self.ports.ops}/readyz")
        except OSError:
            return False, ""
        return status == HTTPStatus.OK, body.decode(errors="replace")

    def stop(self) -> None:
        """Afterwards nothing of this installation runs; what it knows is in the folder."""
        self._say("stopping")
        self.images.stop()
        self.platform.stop(seconds=60)
        if answers(self.engine.host):
            prefix = os.environ.get("NODE_AGENT_PREFIX", "berth")
            instances.remove(self.engine.host, prefix, self.runtime.node)
            # Their addresses are free now, and may be somebody else's at the next start.
            for route in self.traefik.routes.glob("*"):
                route.unlink()
        # Volumes of apps: their files stay, and are mounted again at the next start.
        leftovers.unmount_below(self.state / "nodes")
        _all_at_once(self.traefik.stop, self.nats.stop, self.postgres.stop, self.engine.stop)

    # --- what its processes are told ---------------------------------------------------------------------

    def berth(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "runtime.cli", *words]

    def environment(self) -> dict[str, str]:
        network = (*_NETWORK, *map(str.lower, _NETWORK))
        passed = {k: v for k, v in os.environ.items() if k.startswith(_PASSED) or k in network}
        told = {
            "BERTH_STATE": str(self.state),
            "BERTH_API_PORT": str(self.ports.api),
            "BERTH_OPS_PORT": str(self.ports.ops),
            "BERTH_NODE": self.runtime.node,
            "GATEWAY_ADMIN_EMAIL": self.administrator.email,
            "GATEWAY_ADMIN_PASSWORD": self.administrator.password,
            "DOMAINS_PUBLIC_PORT": str(self.ports.http),
            "BUILDER_ENGINE": self.engine.host,
            "NODE_AGENT_ENGINE": self.engine.host,
            "NODE_AGENT_ROUTES": str(self.traefik.routes),
            "NODE_AGENT_INGRESS_URL": self.ingress_url,
        }
        if self.runtime.secret is None:
            told["BERTH_SECRET_FILE"] = str(self.runtime.secret_file or self.state / "secret")
        if self.own_database:
            told["BERTH_DATABASE_URL"] = f"postgresql://127.0.0.1:{self.ports.postgres}/berth"
        if self.own_bus:
            told["BERTH_NATS_URL"] = self.nats.url
        if self.own_bus and (certificate := self.nats.certificate) is not None:
            told["GATEWAY_NODE_NATS_URL"] = str(self.nats.public_url)
            told["GATEWAY_NODE_NATS_CA"] = str(certificate.public)
        if self.settings.public_host is not None:
            told["NODE_AGENT_MESH_PORT"] = str(self.ports.mesh)
            told["NODE_AGENT_MESH_HOST"] = self.settings.public_host
            told["NODE_AGENT_MESH_HERE_PORT"] = str(self.ports.here)
        bundle = build_ca_bundle(os.environ)
        if bundle is not None and "BUILDER_CA_BUNDLE" not in passed:
            told["BUILDER_CA_BUNDLE"] = str(bundle)
        # What only `up` needs is no reason to start the services anew.
        for name in (ADMIN_URL, *(f"BERTH_{field.upper()}" for field in EmbeddedSettings.model_fields)):
            passed.pop(name, None)
        return environment(**(passed | told))

    def operator_environment(self) -> dict[str, str]:
        """The same with the right to change schemas and roles, which no running service has."""
        if self.own_database:
            return self.environment() | {ADMIN_URL: self.postgres.url()}
        url = self.runtime.database_admin_url
        return self.environment() | ({} if url is None else {ADMIN_URL: url.get_secret_value()})


def build_ca_bundle(ours: Mapping[str, str]) -> Path | None:
    """The operator's certificates, where his machine is told to trust others than everybody does."""
    named = [ours[name] for name in ("SSL_CERT_FILE", "PIP_CERT") if name in ours]
    files = (Path(name) for name in [*named, "/etc/ssl/certs/ca-certificates.crt"])
    return next((file.absolute() for file in files if file.is_file()), None) if named else None


def _all_at_once(*steps: Callable[[], None]) -> None:
    with ThreadPoolExecutor(len(steps)) as pool:
        for begun in [pool.submit(step) for step in steps]:
            begun.result()
