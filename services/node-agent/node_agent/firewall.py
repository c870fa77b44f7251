"""Keeps the host's packet filter at the policy. Blocking: the engine calls it from its own threads.

Rules are written again at every reconcile: what is set only at boot is gone after a network restart.
"""

import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import replace
from ipaddress import AddressValueError, IPv4Address
from pathlib import Path

import structlog
from contracts.errors import BerthError, Unavailable

from node_agent.firewall_rules import Policy, render, render_ipv6

log = structlog.get_logger("node-agent.firewall")

_PATIENCE = 30
_RESTORING = ("--noflush", "--wait", "10")
# There, where the kernel has IPv6.
_IPV6 = Path("/proc/net/if_inet6")
# What systemd-resolved asks itself is in the second, where the first names nothing but resolved: the engine
# reads them in this order, too, and instances ask from a network of their own, where there is no resolved.
_RESOLV_CONF = (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf"))
_TRUST = "set NODE_AGENT_FIREWALL=off if everybody who deploys to this machine is trusted with it"


class CannotIsolate(BerthError):
    """Instances would reach this machine and each other's networks: nothing is started like that."""


class Firewall:
    def __init__(self, policy: Policy, resolv_conf: Sequence[Path] = _RESOLV_CONF) -> None:
        self._policy = policy
        self._resolv_conf = resolv_conf
        self._told = False

    def reassert(self, bridges: Iterable[str]) -> None:
        policy = replace(self._policy, resolvers=self.resolvers())
        _run(["iptables-restore", *_RESTORING], render(policy, bridges, _run(["iptables-save"])))
        lacking = self._reassert_ipv6()
        if lacking is not None and not self._told:
            log.warning("no packet rules for IPv6", why=lacking)
        self._told = lacking is not None

    def _reassert_ipv6(self) -> str | None:
        """Why there are none: that is no reason to run nothing, for no network of ours has IPv6."""
        if not _IPV6.exists():
            return "this machine has no IPv6"
        try:
            saved = _run(["ip6tables-save"])
        except BerthError as error:
            return error.message
        try:
            _run(["ip6tables-restore", *_RESTORING], render_ipv6(self._policy, saved))
        except BerthError:
            # Where the kernel has no such table, or has it for `nft` alone, there is nothing to save, and no
            # error in that.
            try:
                _run(["ip6tables", "--wait", "10", "-S", "INPUT"])
            except BerthError as error:
                return error.message
            raise
        return None

    def resolvers(self) -> tuple[IPv4Address, ...]:
        """The name servers this machine uses: the engine hands the same ones to instances."""
        named = (resolvers_in(file.read_text()) for file in self._resolv_conf if file.exists())
        return next(filter(None, named), ())


def resolvers_in(resolv_conf: str) -> tuple[IPv4Address, ...]:
    found = []
    for line in resolv_conf.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            try:
                address = IPv4Address(words[1])
            except AddressValueError:
                continue
            if not address.is_loopback:
                found.append(address)
    return tuple(found)


def _run(argv: list[str], text: str | None = None) -> str:
    try:
        done = subprocess.run(
            argv, input=text, capture_output=True, text=True, timeout=_PATIENCE, check=False
        )
    except FileNotFoundError:
        raise CannotIsolate(
            f"instances cannot be kept apart: {argv[0]} is missing. Install it (apt-get install iptables), "
            f"or {_TRUST}"
        ) from None
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"{argv[0]} did not finish within {_PATIENCE} s") from error
    if done.returncode == 0:
        return done.stdout
    words = " ".join(done.stderr.split())
    if "ermission denied" in words or "must be root" in words or "not permitted" in words:
        raise CannotIsolate(
            f"instances cannot be kept apart: packet rules need root. Start the agent as root, or {_TRUST}"
        )
    raise Unavailable(f"{argv[0]} failed: {words}")
