"""Takes away at the engine what the node agent ran, once the agent itself has gone; `berth down` calls it.

Only what carries this node's labels; the agent makes it all again from its desired state.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from http import HTTPStatus

import docker
from contracts.errors import ProviderFailed
from docker.errors import APIError, DockerException, NotFound
from docker.models.containers import Container

from embedded import leftovers

_PATIENCE = 10


def remove(host: str, prefix: str, node: str) -> None:
    labels: list[str] = [f"berth.prefix={prefix}", f"berth.node={node}"]
    try:
        with closing(docker.DockerClient(base_url=host, timeout=60)) as client:
            found = client.containers.list(all=True, filters={"label": labels})
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(_remove, found))
            for network in client.networks.list(filters={"label": labels}):
                with suppress(NotFound):
                    network.remove()
    except (DockerException, OSError) as error:
        raise ProviderFailed(f"the container engine at {host} failed: {error}") from error
    if os.geteuid() == 0:
        leftovers.remove_firewall((f"{prefix.upper()}-",))


def _remove(container: Container) -> None:
    with suppress(NotFound):
        container.stop(timeout=_PATIENCE)
        try:
            container.remove(v=True, force=True)
        except APIError as error:
            # Somebody else is removing it at this moment.
            if error.status_code != HTTPStatus.CONFLICT:
                raise
