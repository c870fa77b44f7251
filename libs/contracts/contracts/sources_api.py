"""The API's models of where an app comes from, and of what lets the platform in there."""

from typing import Annotated, Literal

from pydantic import Field, SecretStr, StringConstraints

from contracts.credentials import Purpose
from contracts.model import Model, Moment, Strict
from contracts.shapes import shaped


class ChooseGit(Strict):
    kind: Literal["git"] = "git"
    url: Annotated[str, StringConstraints(min_length=1, max_length=2000)]
    # A branch, a tag or a whole commit.
    ref: (
        Annotated[str, shaped(r"^[A-Za-z0-9][A-Za-z0-9._/+-]{0,199}$", "a branch, a tag or a commit")] | None
    ) = None
    submodules: bool = False


class ChooseImage(Strict):
    reference: Annotated[str, StringConstraints(min_length=1, max_length=255)]


class ChooseDockerfile(Strict):
    """One that needs no file beside it."""

    text: Annotated[str, StringConstraints(min_length=1, max_length=16 * 1024)]


class ChooseToken(Strict):
    """For a Git server over HTTPS. The host is that of the app's repository where none is named, and no other
    is told the token; the user matters to few servers."""

    kind: Literal["token"] = "token"
    token: Annotated[SecretStr, Field(min_length=1, max_length=4096)]
    user: Annotated[str, shaped(r"^[^:\s\x00-\x1f]{1,200}$", "without colons and spaces")] | None = None
    host: Annotated[str, shaped(r"^[A-Za-z0-9.:\[\]-]{1,260}$", "a host such as git.example.org")] | None = (
        None
    )


class ChooseKey(Strict):
    """For a Git server over SSH. Without a private key the app keeps the one it has, or the platform makes
    one. `host_keys` are the server's own, as known_hosts has them; the host may be left out."""

    kind: Literal["key"] = "key"
    private_key: Annotated[SecretStr, Field(min_length=1, max_length=4096)] | None = None
    host_keys: Annotated[
        tuple[Annotated[str, StringConstraints(min_length=1, max_length=2000)], ...], Field(max_length=20)
    ] = ()


ChooseGitCredential = Annotated[ChooseToken | ChooseKey, Field(discriminator="kind")]


class ChooseRegistryLogin(Strict):
    """The registry is that of the app's image where none is named."""

    host: Annotated[str, shaped(r"^[A-Za-z0-9.:-]{1,260}$", "a host such as registry.example.org")] | None = (
        None
    )
    user: Annotated[str, shaped(r"^[^:\x00-\x1f]{1,200}$", "without colons and control characters")]
    password: Annotated[SecretStr, Field(min_length=1, max_length=4096)]


class CredentialView(Model):
    """What may be seen of it. The public key is to be added to the repository as a deploy key."""

    purpose: Purpose
    kind: Literal["token", "key", "registry"]
    host: str | None = None
    user: str | None = None
    public_key: str | None = None
    host_keys: tuple[str, ...] = ()
    made_at: Moment


class CredentialList(Model):
    credentials: tuple[CredentialView, ...]


class CustomImages(Strict):
    """Whether apps may be made of images that the platform has not built."""

    enabled: bool
