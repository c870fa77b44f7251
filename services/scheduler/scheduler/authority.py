"""Vouches for nodes to each other: the platform's own authority, derived from its key, and kept nowhere.

Every scheduler is the same one. A certificate is short-lived, because no ingress asks whether one was
revoked: a removed node is refused when its own ends, and nobody sends to it any more long before.
`cryptography` is loaded when it is needed: most schedulers never hear of a second node.
"""

import hashlib
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from contracts.errors import Poison
from contracts.mesh import MESH, RENEW, name_of

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

LIFE = 2 * RENEW
# Clocks of nodes differ a little.
BEFORE = timedelta(hours=1)
# The same in every process: the authority is made again, bit for bit, wherever it is needed.
_BEGINS, _ENDS = datetime(2025, 1, 1, tzinfo=UTC), datetime(2125, 1, 1, tzinfo=UTC)


class Authority:
    def __init__(self, key: str) -> None:
        self._secret = hashlib.sha256(key.encode()).digest()
        self._made: tuple[Ed25519PrivateKey, x509.Certificate, str] | None = None

    @property
    def pem(self) -> str:
        """What every node is shown, to know the others by."""
        return self._own()[2]

    def certify(self, node: str, request: str, now: datetime) -> tuple[str, datetime]:
        """A certificate (PEM) for the key in the request, whatever name stands there, and when it ends."""
        from cryptography import x509
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

        try:
            asked = x509.load_pem_x509_csr(request.encode())
            key = asked.public_key()
            proven = asked.is_signature_valid
        except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
            raise Poison(f"not a certificate signing request: {error}") from error
        if not proven or not isinstance(key, ec.EllipticCurvePublicKey):
            raise Poison("the request does not prove that its sender has the key")
        secret, own, _ = self._own()
        ends = (now + LIFE).replace(microsecond=0)
        made = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, node)]))
            .issuer_name(own.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - BEFORE)
            .not_valid_after(ends)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(
                x509.SubjectAlternativeName([x509.DNSName(MESH), x509.DNSName(name_of(node))]), critical=False
            )
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .sign(secret, None)
        )
        return made.public_bytes(serialization.Encoding.PEM).decode(), ends

    def _own(self) -> tuple["Ed25519PrivateKey", "x509.Certificate", str]:
        if self._made is None:
            from cryptography import x509
            from cryptography.hazmat.primitives import serialization
            from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
            from cryptography.x509.oid import NameOID

            secret = Ed25519PrivateKey.from_private_bytes(self._secret)
            name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, MESH)])
            own = (
                x509.CertificateBuilder()
                .subject_name(name)
                .issuer_name(name)
                .public_key(secret.public_key())
                .serial_number(int.from_bytes(self._secret[:8], "big") >> 1 | 1)
                .not_valid_before(_BEGINS)
                .not_valid_after(_ENDS)
                .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
                .add_extension(x509.SubjectKeyIdentifier.from_public_key(secret.public_key()), critical=False)
                .sign(secret, None)
            )
            self._made = secret, own, own.public_bytes(serialization.Encoding.PEM).decode()
        return self._made
