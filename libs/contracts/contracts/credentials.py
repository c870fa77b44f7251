"""What lets the platform into a customer's repository or registry, as gateway and builder hand it on.

Only ever as sealed text, asked for when a build needs it: it is in no event, no row of the builder's and no
log, and one that was taken away is gone with the next build.
"""

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from contracts.ids import AppId
from contracts.model import Model

Purpose = Literal["git", "registry"]


class GitToken(Model):
    """For HTTPS. Told to the one `host` it is for, with its port where that is not the usual one."""

    kind: Literal["token"] = "token"
    host: str
    user: str
    token: Annotated[str, Field(repr=False)]


class DeployKey(Model):
    """For SSH: an OpenSSH private key, and lines of known_hosts beside those the platform knows."""

    kind: Literal["key"] = "key"
    private_key: Annotated[str, Field(repr=False)]
    host_keys: tuple[str, ...] = ()


class RegistryLogin(Model):
    """Told to the one registry it is for."""

    kind: Literal["registry"] = "registry"
    host: str
    user: str
    password: Annotated[str, Field(repr=False)]


GitCredential = Annotated[GitToken | DeployKey, Field(discriminator="kind")]

_GIT: TypeAdapter[GitToken | DeployKey] = TypeAdapter(GitCredential)


def context(workload: AppId, purpose: Purpose) -> str:
    return f"{purpose} credential of {workload}"


def read_git(text: str) -> GitToken | DeployKey:
    return _GIT.validate_json(text)


def read_registry(text: str) -> RegistryLogin:
    return RegistryLogin.model_validate_json(text)
