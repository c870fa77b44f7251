"""Secrets of customers at rest and on their way: readable only with the key, and only as what they are.

`context` says what a sealed text is ("variables of app_…"): moved to another place it does not open.
XChaCha20-Poly1305 of libsodium; a new nonce each time, so the same text is never sealed alike twice.
"""

import base64
import hashlib

from contracts.errors import InvalidInput


class Seal:
    def __init__(self, key: str) -> None:
        # Loaded where something is sealed, and only there.
        from nacl.secret import Aead

        self._key = hashlib.sha256(key.encode()).digest()
        self._box = Aead(self._key)

    def close(self, text: str, context: str) -> str:
        sealed: bytes = self._box.encrypt(text.encode(), context.encode())
        return base64.urlsafe_b64encode(sealed).decode()

    def open(self, sealed: str, context: str) -> str:
        from nacl.exceptions import CryptoError

        try:
            return self._box.decrypt(base64.urlsafe_b64decode(sealed), context.encode()).decode()
        except (CryptoError, ValueError) as error:
            raise InvalidInput(f"{context}: sealed with another key, or altered") from error

    def digest(self, text: str, context: str) -> str:
        """The same for the same text; without the key nobody can try texts against it."""
        salted = context.encode() + b"\0" + text.encode()
        return hashlib.blake2b(salted, key=self._key, digest_size=16).hexdigest()
