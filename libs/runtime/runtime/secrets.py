"""One generated master secret; every other key is derived from it for one purpose (I8).

A process that holds only its own password (a node's agent, a container in compose) is given that and
not the master.
"""

import base64
import hashlib
import hmac
import os
import secrets
from pathlib import Path

KNOWN = {"changeme", "change-me", "secret", "password", "berth", "test"}
MINIMUM_LENGTH = 32


class BadSecret(Exception):
    """The start is refused: no default stands in for a secret."""


def check_secret(secret: str) -> str:
    if len(secret) < MINIMUM_LENGTH or secret.lower() in KNOWN or len(set(secret)) < 10:
        raise BadSecret(
            f"BERTH_SECRET must be at least {MINIMUM_LENGTH} random characters; make one with: berth secret"
        )
    return secret


def new_secret() -> str:
    return secrets.token_urlsafe(48)


def derive(master: str, purpose: str) -> str:
    digest = hmac.new(master.encode(), f"berth/{purpose}".encode(), hashlib.sha256).digest()
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")


def read_or_create(path: Path) -> str:
    """The secret in `path`; at the first start a new one, readable by its owner only."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return check_secret(path.read_text().strip())
    secret = new_secret()
    with os.fdopen(descriptor, "w") as file:
        file.write(secret + "\n")
    return secret
