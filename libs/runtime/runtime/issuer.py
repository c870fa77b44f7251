"""Who a machine is on the bus, decided by the platform and not by the server's configuration.

nats-server asks (`auth_callout`) for every user its configuration does not list; an answer signed with this
key lets one in with exactly the given permissions. The server is told the public half. Used by the scheduler,
and where a server's configuration is written.
"""

import base64
import binascii
import hashlib
import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from contracts.errors import Poison
from nacl.signing import SigningKey
from pydantic import BaseModel, ValidationError

from runtime.secrets import derive

# The account of every user that is in none: the services' own.
ACCOUNT = "$G"
_ACCOUNT_KEY = 0
_HEADER = {"typ": "JWT", "alg": "ed25519-nkey"}


class _Server(BaseModel):
    id: str


class _Body(BaseModel):
    user_nkey: str
    server_id: _Server
    connect_opts: dict[str, Any] = {}


class _Claims(BaseModel):
    nats: _Body


@dataclass(frozen=True, slots=True)
class Request:
    """Somebody at the server's door, who says that he is `user`."""

    user: str
    password: str
    key: str
    server: str

    @classmethod
    def parse(cls, token: bytes) -> "Request":
        """The server signs it, and only the server can publish it: what it says is taken for true."""
        try:
            body = token.split(b".")[1]
            found = _Claims.model_validate_json(base64.urlsafe_b64decode(body + b"=" * (-len(body) % 4))).nats
        except (IndexError, ValueError, ValidationError) as error:
            raise Poison("not a request to authorize a user") from error
        options = found.connect_opts
        return cls(
            str(options.get("user", "")), str(options.get("pass", "")), found.user_nkey, found.server_id.id
        )


class Issuer:
    def __init__(self, key: str) -> None:
        self._key = SigningKey(hashlib.sha256(key.encode()).digest())
        self.public = _public(bytes(self._key.verify_key))

    def allow(self, request: Request, publish: list[str], subscribe: list[str], now: datetime) -> bytes:
        user = {
            "pub": {"allow": publish},
            "sub": {"allow": subscribe},
            "resp": {"max": 1, "ttl": 60_000_000_000},
            "subs": -1,
            "data": -1,
            "payload": -1,
            "type": "user",
            "version": 2,
        }
        token = self._token(
            {"sub": request.key, "aud": ACCOUNT, "name": request.user, "nats": user},
            now,
        )
        return self._answer(request, {"jwt": token}, now)

    def refuse(self, request: Request, now: datetime) -> bytes:
        return self._answer(request, {"error": "unknown user or wrong password"}, now)

    def _answer(self, request: Request, words: dict[str, str], now: datetime) -> bytes:
        answer = {**words, "type": "authorization_response", "version": 2}
        return self._token({"sub": request.key, "aud": request.server, "nats": answer}, now).encode()

    def _token(self, claims: dict[str, Any], now: datetime) -> str:
        claims = {**claims, "iss": self.public, "iat": int(now.timestamp())}
        digest = hashlib.sha256(json.dumps(claims, sort_keys=True).encode()).digest()
        claims["jti"] = base64.b32encode(digest).decode().rstrip("=")
        signed = f"{_part(_HEADER)}.{_part(claims)}"
        return f"{signed}.{_unpadded(self._key.sign(signed.encode()).signature)}"


def _part(claims: dict[str, Any]) -> str:
    return _unpadded(json.dumps(claims, separators=(",", ":")).encode())


def _unpadded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _public(key: bytes) -> str:
    """As NATS writes the public key of an account: a kind, the key, a check sum, in base 32."""
    raw = bytes([_ACCOUNT_KEY]) + key
    return base64.b32encode(raw + binascii.crc_hqx(raw, 0).to_bytes(2, "little")).decode().rstrip("=")


def cutter_password(key: str) -> str:
    """Of the user that ends connections: whoever may let everybody in may as well have it."""
    return derive(key, "cutter")
