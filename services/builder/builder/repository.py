"""Where a repository may be fetched from, and with what: over TLS or SSH, from the internet.

The gateway has looked at the address before; what its name stands for is decided here, once, and the fetch is
held to that answer: a name that changes its mind in between gains nothing. The same goes for every submodule.
"""

import asyncio
import ipaddress
import re
import socket

from contracts.credentials import DeployKey, GitToken
from contracts.errors import InvalidInput, NotFound, Unavailable
from contracts.git_address import GitAddress, IpAddress, is_public, parse

from builder.image_builder import Repository, StepFailed

_REF = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/+-]{0,199}")


async def check(
    url: str, ref: str | None, *, allow_private: bool, credential: GitToken | DeployKey | None = None
) -> Repository:
    try:
        git = parse(url, allow_http=allow_private)
    except InvalidInput as error:
        raise StepFailed("source", error.message) from error
    if ref is not None and not _REF.fullmatch(ref):
        raise StepFailed("source", "the branch, tag or commit has characters it cannot have")
    try:
        address = await resolve(git.host, git.port)
    except NotFound as error:
        raise _refused(git, f"leads nowhere: {error.message}") from error
    if not is_public(address):
        if not allow_private:
            raise _refused(git, "leads to a private address")
    elif git.scheme == "http":
        raise _refused(git, "must begin with https:// outside of private networks")
    fitting = credential if _fits(credential, git) else None
    if git.scheme == "ssh" and fitting is None:
        raise StepFailed(
            "source",
            f"{git.url} is over SSH, and the app has no deploy key",
            hint='Make one with PUT …/credentials/git {"kind": "key"}, and add its public half there.',
        )
    return Repository(git, str(address), ref, fitting)


def _fits(credential: GitToken | DeployKey | None, git: GitAddress) -> bool:
    """A token is told to its own host and no other: a submodule may lie anywhere."""
    if isinstance(credential, GitToken):
        return git.scheme == "https" and git.place == credential.host
    return credential is not None and git.scheme == "ssh"


async def resolve(host: str, port: int) -> IpAddress:
    """One address, an IPv4 one where there is a choice; private if any of them is."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        if error.errno in (socket.EAI_NONAME, socket.EAI_NODATA):
            raise NotFound(f"the host {host} does not exist") from error
        raise Unavailable(f"the host {host} could not be looked up: {error.strerror}") from error
    except UnicodeError as error:
        raise NotFound(f"{host[:100]} is not a host name") from error
    addresses = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
    return min(addresses, key=lambda address: (is_public(address), address.version))


def _refused(git: GitAddress, why: str) -> StepFailed:
    return StepFailed("source", f"the repository's address {git.url} {why}")
