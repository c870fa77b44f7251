"""The platform's own registry: where the images of apps go, and from where they are taken away again.

Each app has a repository of its own, `<organization>/<app>`, and each request a token for that one alone.
Where an operator's registry knows nothing of tokens, its log-in is used. Used by `docker_builder`.
"""

import asyncio
import base64
import http.client
import json
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

from contracts.credentials import RegistryLogin
from contracts.errors import ProviderFailed, Unavailable
from runtime.clock import Clock
from runtime.registry_key import Action, RegistryKey

_SECONDS = 15.0
_LOOPBACK = ("127.", "localhost", "[::1]")


@dataclass(frozen=True, slots=True)
class OwnRegistry:
    # `host[:port][/path]`, as engines name it.
    address: str
    clock: Clock
    login: RegistryLogin | None = None
    key: RegistryKey | None = None
    # Where the builder itself reaches it; none: where engines do.
    url: str | None = None

    def repository(self, organization: str, workload: str) -> str:
        return f"{self.address}/{organization}/{workload}"

    def push_header(self, repository: str) -> list[tuple[str, str]]:
        """What the engine is told, to push there."""
        said = {}
        if self.login is not None:
            said = {"username": self.login.user, "password": self.login.password}
        elif self.key is not None:
            said = {"registrytoken": self._token(self.key, repository, ("pull", "push"))}
        return [("X-Registry-Auth", base64.urlsafe_b64encode(json.dumps(said).encode()).decode())]

    async def remove(self, reference: str) -> None:
        """One that is not there any more is none to remove. The registry gives the room back when it collects
        its garbage."""
        repository, _, digest = reference.partition("@")
        headers = {}
        if self.login is not None:
            both = f"{self.login.user}:{self.login.password}".encode()
            headers["Authorization"] = f"Basic {base64.b64encode(both).decode()}"
        elif self.key is not None:
            headers["Authorization"] = f"Bearer {self._token(self.key, repository, ('delete',))}"
        path = f"/v2/{quote(_name(repository))}/manifests/{quote(digest, safe=':')}"
        try:
            status = await asyncio.to_thread(self._delete, path, headers)
        except (OSError, http.client.HTTPException) as error:
            raise Unavailable(f"the registry {self.address} does not answer: {error}") from error
        if status not in (200, 202, 404):
            raise ProviderFailed(f"the registry {self.address} does not remove {reference}: {status}")

    def _delete(self, path: str, headers: dict[str, str]) -> int:
        host = self.address.partition("/")[0]
        scheme = "http" if host.startswith(_LOOPBACK) else "https"
        url = urlsplit(self.url or f"{scheme}://{host}")
        kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
        connection = kind(url.hostname or "", url.port, timeout=_SECONDS)
        try:
            connection.request("DELETE", path, headers=headers)
            return connection.getresponse().status
        finally:
            connection.close()

    def _token(self, key: RegistryKey, repository: str, actions: Sequence[Action]) -> str:
        return key.token("builder", _name(repository), actions, self.clock.now())


def _name(repository: str) -> str:
    """As the registry itself calls it."""
    return repository.partition("/")[2]
