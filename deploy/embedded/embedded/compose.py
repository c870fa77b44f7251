"""What `deploy/compose/compose.yaml` needs before an `up`, and leaves behind after a `down`: the commands
`berth compose-env`, `compose-images` and `compose-clear`.

One master secret is made at the first call and kept; every password is derived from it, so calling again
changes nothing. What the operator wrote into `.env` or `settings.env` stays.
"""

import argparse
import os
import re
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import docker
from contracts.errors import BerthError, InvalidInput, Unavailable
from contracts.ids import NodeName
from pydantic import TypeAdapter, ValidationError
from runtime.issuer import Issuer, cutter_password
from runtime.permissions import CUTTER, SERVICES, nats_config, node_name
from runtime.registry_key import RegistryKey
from runtime.secrets import BadSecret, check_secret, derive, new_secret

from embedded import instances
from embedded.daemon import write_if_new
from embedded.engine import Engine, answers
from embedded.images import HUB, STACKS, Images, contents, reachable
from embedded.installation import build_ca_bundle

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "deploy" / "compose"
PLATFORM = "berth/platform:local"
# Setting -> the image made here where Docker Hub is out of reach, and its folder of `deploy/images`.
LOCAL = {
    "BERTH_POSTGRES_IMAGE": ("berth/postgres:15", "postgres"),
    "BERTH_REGISTRY_IMAGE": ("berth/registry:2", "registry"),
}
CA_BUNDLE = "BUILDER_CA_BUNDLE"

_HEADER = """\
# Written by `berth compose-env`, which keeps what is changed here. Every key is in it: show it to nobody.
"""
_SETTINGS = """\
# Settings of the services, NAME=value, a line each; .env.example lists them. Every service is told all of it.
"""
_SERVERS = """\
listen: "0.0.0.0:4222"
http: "127.0.0.1:8222"
server_name: "berth"
jetstream {
  store_dir: "/var/lib/nats"
  sync_interval: always
}
"""


def variable(kind: str, user: str) -> str:
    return f"{kind}_PASSWORD_{user.upper().replace('-', '_')}"


def derived(master: str, node: str) -> dict[str, str]:
    """What follows from the master secret, and is never chosen by hand."""
    keys = {
        "BERTH_POSTGRES_PASSWORD": derive(master, "database/postgres"),
        "BERTH_REGISTRY_SECRET": derive(master, "registry/http"),
        "BERTH_REGISTRY_KEY": derive(master, "registry/key"),
        "BERTH_GATEWAY_TOKEN_SECRET": derive(master, "gateway/tokens"),
        "BERTH_SEAL_KEY": derive(master, "seal"),
        "BERTH_NATS_ISSUER": derive(master, "nats/issuer"),
        variable("BERTH_NATS", CUTTER): cutter_password(derive(master, "nats/issuer")),
        "BERTH_NODE_SEAL_KEY": derive(derive(master, "seal"), f"node/{node}"),
        variable("BERTH_NATS", "node"): derive(master, f"nats/{node_name(node)}"),
    }
    for service in SERVICES:
        keys[variable("BERTH_DATABASE", service)] = derive(master, f"database/{service}")
        keys[variable("BERTH_NATS", service)] = derive(master, f"nats/{service}")
    return keys


def nats_conf(node: str, issuer: str) -> str:
    """Passwords by the names of variables: no secret is in it, and the server need not be root to read it."""

    def named(user: str) -> str:
        return "$" + variable("NATS", "node" if user == node_name(node) else user)

    # A variable in quotes would be the password itself.
    return _SERVERS + re.sub(r'"(\$\w+)"', r"\1", nats_config(named, nodes=[node], issuer=issuer))


def parse(text: str) -> dict[str, str]:
    lines = (line.strip() for line in text.splitlines())
    pairs = (line.partition("=") for line in lines if line and not line.startswith("#"))
    return {name.strip(): value.strip() for name, _, value in pairs}


def merge(text: str, values: Mapping[str, str]) -> str:
    """The text with these values: names in it where they stand, new ones at its end, all else as it was."""
    left = dict(values)
    lines = []
    for line in (text or _HEADER).splitlines():
        name = line.partition("=")[0].strip()
        lines.append(f"{name}={left.pop(name)}" if name in left else line)
    lines += [f"{name}={value}" for name, value in left.items()]
    return "\n".join(lines) + "\n"


def write(state: Path, chosen: Mapping[str, str], found: Mapping[str, str] | None = None) -> dict[str, str]:
    """Brings the files up to date; what `.env` says now. What it said before counts more than what was
    `found` on this machine, and less than what the operator has `chosen`."""
    state.mkdir(parents=True, exist_ok=True)
    env, settings = state / ".env", state / "settings.env"
    text = env.read_text() if env.exists() else ""
    known = {
        "BERTH_NODE": "local",
        "GATEWAY_ADMIN_EMAIL": "admin@berth.localhost",
        **(found or {}),
        **parse(text),
        **chosen,
    }
    for name in ("BERTH_SECRET", "GATEWAY_ADMIN_PASSWORD"):
        known.setdefault(name, new_secret())
    try:
        node = TypeAdapter(NodeName).validate_python(known["BERTH_NODE"])
    except ValidationError:
        raise InvalidInput(
            f"BERTH_NODE is {known['BERTH_NODE']!r}: use lower-case letters, digits and dashes"
        ) from None
    if state != FOLDER:
        known["BERTH_COMPOSE_STATE"] = str(state)
    known |= derived(check_secret(known["BERTH_SECRET"]), node)
    if known.get(CA_BUNDLE):
        known[CA_BUNDLE] = str(Path(known[CA_BUNDLE]).absolute())
    write_if_new(env, merge(text, known))
    if not settings.exists():
        write_if_new(settings, _SETTINGS)
    write_if_new(state / "nats.conf", nats_conf(node, Issuer(known["BERTH_NATS_ISSUER"]).public))
    write_if_new(state / "registry.pem", RegistryKey(known["BERTH_REGISTRY_KEY"]).certificate().decode())
    # Read by the servers' own users; there is no secret in them.
    for name in ("nats.conf", "registry.pem"):
        (state / name).chmod(0o644)
    return known


def compose_env(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser("berth compose-env", description="Write what compose.yaml is told.")
    parser.add_argument("--state", type=Path, default=FOLDER, help="folder of .env (deploy/compose)")
    parser.add_argument("--node", help="name of this machine's node (local)")
    parser.add_argument(
        "--ca-bundle", type=Path, help="certificates (PEM) that builds need to reach registries"
    )
    options = parser.parse_args(arguments)
    state = options.state.absolute()
    chosen = {"BERTH_NODE": options.node, CA_BUNDLE: options.ca_bundle}
    found: dict[str, object] = {CA_BUNDLE: build_ca_bundle(os.environ), "BERTH_PREFIX": "berth"}
    host = os.environ.get("DOCKER_HOST", "")
    if host.startswith("unix://"):
        found["BERTH_ENGINE_SOCKET"] = host.removeprefix("unix://")
    found["BERTH_ENGINE_DATA"] = engine_data()
    if not reachable(*HUB):
        found |= {name: image for name, (image, _) in LOCAL.items()}
    try:
        known = write(state, _set(chosen), _set(found))
    except (BadSecret, BerthError, OSError) as error:
        return _failed(error)
    _say(f"{state / '.env'} is ready; in it, how {known['GATEWAY_ADMIN_EMAIL']} logs in")
    return 0


def compose_images(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        "berth compose-images", description="Make the images compose.yaml names that no registry has."
    )
    parser.add_argument("--state", type=Path, default=FOLDER, help="folder of .env (deploy/compose)")
    options = parser.parse_args(arguments)
    try:
        known, host = _known(options.state.absolute()), _engine()
        bundle = Path(known[CA_BUNDLE]).read_bytes() if known.get(CA_BUNDLE) else None
        with closing(Images(host, ROOT / ".cache" / "images", _say)) as images:
            make(images, bundle, [LOCAL[name] for name in LOCAL if known.get(name) == LOCAL[name][0]])
    except (BerthError, OSError) as error:
        return _failed(error)
    return 0


def compose_clear(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        "berth compose-clear",
        description="After `docker compose down`: stop what still runs of the apps on this machine.",
    )
    parser.add_argument("--state", type=Path, default=FOLDER, help="folder of .env (deploy/compose)")
    options = parser.parse_args(arguments)
    try:
        known = _known(options.state.absolute())
        instances.remove(_engine(), known["BERTH_PREFIX"], known["BERTH_NODE"])
    except (BerthError, OSError) as error:
        return _failed(error)
    return 0


def make(images: Images, ca_bundle: bytes | None, local: list[tuple[str, str]]) -> None:
    base = images.ensure_base()
    stacks = [image for stack in STACKS for image in images.ensure_stack(stack)]
    orders = [(tag, images.recipe(recipe), base) for tag, recipe in local]
    orders += [(PLATFORM, platform_context(images.recipe("platform"), ca_bundle), "".join(stacks))]
    # Each spends most of its time waiting for packages.
    with ThreadPoolExecutor(len(orders)) as pool:
        list(pool.map(lambda order: images.ensure_image(*order), orders))


def platform_context(recipe: Mapping[str, bytes], ca_bundle: bytes | None) -> dict[str, bytes]:
    """The checkout, as far as it belongs into the image."""
    context = dict(recipe)
    for name in ("pyproject.toml", "uv.lock"):
        context[name] = (ROOT / name).read_bytes()
    for folder in ("libs", "services", "deploy/embedded", "deploy/node"):
        context |= {f"{folder}/{name}": content for name, content in contents(ROOT / folder).items()}
    if ca_bundle is not None:
        context["ca-bundle.pem"] = ca_bundle
    return context


def _known(state: Path) -> dict[str, str]:
    env = state / ".env"
    if not env.exists():
        raise Unavailable(f"{env} is missing: run `berth compose-env` first")
    return parse(env.read_text())


def _engine() -> str:
    host = Engine(ROOT / ".cache" / "engine").host
    if not answers(host):
        raise Unavailable(f"no container engine answers at {host}: start it, or set DOCKER_HOST")
    return host


def engine_data() -> str | None:
    """Where the engine keeps what it knows; None while it does not answer."""
    host = Engine(ROOT / ".cache" / "engine").host
    if not answers(host):
        return None
    with closing(docker.APIClient(base_url=host, timeout=10)) as client:
        return str(client.info()["DockerRootDir"])


def _set(values: Mapping[str, object]) -> dict[str, str]:
    return {name: str(value) for name, value in values.items() if value is not None}


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _failed(error: Exception) -> int:
    sys.stderr.write(f"berth: {getattr(error, 'message', error)}\n")
    return 1
