"""Who may do what in the platform's image registry, decided by the platform and not by the registry.

A registry that is told the certificate (`auth.token.rootcertbundle`) lets in whoever has a token this key has
signed, for the repositories and actions it names and the few minutes it lasts. Used by the builder, which
signs its own, by the scheduler, which signs a node's, and where the registry's certificate is written.
"""

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from contracts.ids import new_id

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

# What the registry is set up with: `auth.token.issuer` and `auth.token.service`.
ISSUER, SERVICE = "berth", "berth-registry"
LASTS = timedelta(minutes=5)
# A registry whose clock is a little behind.
_LENIENCE = timedelta(minutes=1)
_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_BEGIN, _END = datetime(2020, 1, 1, tzinfo=UTC), datetime(2120, 1, 1, tzinfo=UTC)

Action = Literal["pull", "push", "delete"]


@dataclass(frozen=True)
class RegistryKey:
    """`secret`: the same text is the same key, in every process."""

    secret: str

    def token(self, who: str, repository: str, actions: Sequence[Action], now: datetime) -> str:
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

        header = {"typ": "JWT", "alg": "ES256", "x5c": [base64.b64encode(self._certificate).decode()]}
        claims = {
            "iss": ISSUER,
            "aud": SERVICE,
            "sub": who,
            "jti": new_id("tok"),
            "iat": int(now.timestamp()),
            "nbf": int((now - _LENIENCE).timestamp()),
            "exp": int((now + LASTS).timestamp()),
            "access": [{"type": "repository", "name": repository, "actions": list(actions)}],
        }
        said = f"{_part(header)}.{_part(claims)}"
        r, s = decode_dss_signature(self._key.sign(said.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{said}.{_text(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"

    def certificate(self) -> bytes:
        """PEM, with the public half alone."""
        lines = base64.encodebytes(self._certificate)
        return b"-----BEGIN CERTIFICATE-----\n" + lines + b"-----END CERTIFICATE-----\n"

    @cached_property
    def _key(self) -> "EllipticCurvePrivateKey":
        from cryptography.hazmat.primitives.asymmetric import ec

        number = int.from_bytes(hashlib.sha512(self.secret.encode()).digest(), "big")
        return ec.derive_private_key(number % (_ORDER - 1) + 1, ec.SECP256R1())

    @cached_property
    def _certificate(self) -> bytes:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization

        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, ISSUER)])
        made = (
            x509.CertificateBuilder(name, name, self._key.public_key(), 1, _BEGIN, _END)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            # Every process makes the same one.
            .sign(self._key, hashes.SHA256(), ecdsa_deterministic=True)
        )
        return made.public_bytes(serialization.Encoding.DER)


def _part(value: dict[str, Any]) -> str:
    return _text(json.dumps(value, separators=(",", ":")).encode())


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
