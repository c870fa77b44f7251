"""Which Git repositories the platform may be sent to fetch.

A URL is data of a stranger that the builder's machine will connect to: there is no way in it into the
operator's own networks. The builder looks again when it connects, for a name can change.
"""

import ipaddress
import socket

from contracts.errors import InvalidInput, Unavailable
from contracts.git_address import GitAddress, is_public, parse
from contracts.sources_api import ChooseGit
from contracts.workload import GitSource

from gateway.permissions import Speaker


async def checked(caller: Speaker, chosen: ChooseGit) -> GitSource:
    address = parse(chosen.url)
    if not caller.desk.settings.allow_private_git:
        await _require_public(caller, address)
    return GitSource(url=chosen.url, ref=chosen.ref, submodules=chosen.submodules)


async def _require_public(caller: Speaker, git: GitAddress) -> None:
    host = git.host
    try:
        addresses = await caller.desk.names.addresses(caller.organization, host, git.port)
    except socket.gaierror as error:
        if error.errno == socket.EAI_AGAIN:
            raise Unavailable(f"the name {host} cannot be looked up now; try again") from error
        raise InvalidInput(f"there is no host {host}; check the Git URL", host=host) from error
    except UnicodeError as error:
        raise InvalidInput(f"{host[:100]} is not a host name; check the Git URL", host=host[:100]) from error
    for address in addresses:
        if not is_public(ipaddress.ip_address(address.partition("%")[0])):
            raise InvalidInput(
                f"{host} has the address {address}, which is not public; use a repository on the internet, "
                "or ask the operator to set GATEWAY_ALLOW_PRIVATE_GIT",
                host=host,
                address=address,
            )
