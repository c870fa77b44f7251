"""This node's certificate for its neighbours: asks the scheduler for it, and for the next one in good
time.

Invariant: the key never leaves the machine. It is made with the request and on disk before anybody is
asked, and a certificate is taken if it is for that key. Each is in files of its own name, so that the
ingress takes notice.
"""

import asyncio
import hashlib
import os
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

import structlog
from contracts.mesh import RENEW, Peer
from contracts.model import Model, Moment
from contracts.reports import NodePeer
from pydantic import ValidationError
from runtime.clock import Clock

from node_agent.certificate import request_with_key
from node_agent.mesh_file import Credentials
from node_agent.shelf import sync_folder

log = structlog.get_logger("node-agent.membership")

_REQUEST_ENDS = "-----END CERTIFICATE REQUEST-----\n"


class _Held(Model):
    certificate: str
    authority: str
    expires_at: Moment


class Membership:
    def __init__(
        self,
        node: str,
        folder: Path,
        at: tuple[str | None, int],
        clock: Clock,
        report: Callable[[NodePeer], Awaitable[None]],
    ) -> None:
        """`folder`: the ingress reads the files there, under the same path."""
        self._node = node
        self._folder = folder
        self._host, self._port = at
        self._clock = clock
        self._report = report
        self._wish_file, self._held_file = folder / "wish.pem", folder / "held.json"
        self._held: _Held | None = None

    def open(self) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            held = _Held.model_validate_json(self._held_file.read_text())
            _must_match(Path(held.certificate))
        except FileNotFoundError:
            return
        except (OSError, ValidationError) as error:
            # `ssl.SSLError` is an OSError.
            log.error("the certificate for other nodes cannot be read; asking for another", error=str(error))
            return
        self._held = held

    @property
    def credentials(self) -> Credentials | None:
        return None if self._held is None else Credentials(self._held.certificate, self._held.authority)

    async def keep(self, peer: Peer | None) -> bool:
        """`peer`: what all are told of us. True when there are new credentials."""
        taken = False
        if peer is not None and self._wish_file.exists():
            taken = await asyncio.to_thread(self._take, peer)
        if self._wishes(peer):
            request = await asyncio.to_thread(self._request)
            await self._report(NodePeer(node=self._node, host=self._host, port=self._port, request=request))
        return taken

    def _wishes(self, peer: Peer | None) -> bool:
        if self._held is None or peer is None or self._held.expires_at - self._clock.now() < RENEW:
            return True
        return peer.port != self._port or self._host not in (None, peer.host)

    def _request(self) -> str:
        if not self._wish_file.exists():
            _write(self._wish_file, request_with_key())
        return self._wish_file.read_text().partition(_REQUEST_ENDS)[0] + _REQUEST_ENDS

    def _take(self, peer: Peer) -> bool:
        key = self._wish_file.read_text().partition(_REQUEST_ENDS)[2]
        certificate = self._folder / f"{_digest(peer.certificate)}.pem"
        authority = self._folder / f"authority-{_digest(peer.authority)}.pem"
        _write(certificate, peer.certificate + key)
        try:
            _must_match(certificate)
        except ssl.SSLError:
            # For the key of a request before this one.
            certificate.unlink()
            return False
        _write(authority, peer.authority)
        before, self._held = (
            self._held,
            _Held(certificate=str(certificate), authority=str(authority), expires_at=peer.expires_at),
        )
        _write(self._held_file, self._held.model_dump_json())
        self._wish_file.unlink()
        log.info("known to other nodes", node=self._node, expires_at=peer.expires_at)
        # The one before this may be in use until the ingress has read of the new one; the one before that
        # is not.
        kept = {certificate, authority, self._held_file}
        if before is not None:
            kept |= {Path(before.certificate), Path(before.authority)}
        for path in set(self._folder.iterdir()) - kept:
            path.unlink()
        return True


def _must_match(certificate: Path) -> None:
    """The certificate in the file is for the key in the file."""
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _write(path: Path, text: str) -> None:
    """For the owner alone."""
    draft = path.with_suffix(".new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    sync_folder(path.parent)
