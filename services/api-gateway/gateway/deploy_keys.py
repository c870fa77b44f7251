"""Keys of SSH: an app's own, made or brought, and those by which a Git server is known. Without I/O.

Whether the numbers of an RSA key are prime is not looked at: that takes a core for as long as the customer
likes, with the interpreter's lock held, and a key that is none merely opens nothing.
"""

import re

from contracts.errors import InvalidInput

_SHORTEST_RSA = 2048
_HOST_KEY = re.compile(
    r"(?:(?P<hosts>[^\s@#]\S*)\s+)?"
    r"(?P<type>ssh-ed25519|ssh-rsa|ecdsa-sha2-nistp(?:256|384|521))\s+(?P<key>[A-Za-z0-9+/]+={0,3})(?:\s.*)?"
)


def new_key() -> str:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return _openssh(Ed25519PrivateKey.generate())


def brought(text: str) -> str:
    """The customer's own key, in the one form it is kept in."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    data = text.replace("\r\n", "\n").strip().encode() + b"\n"
    load = serialization.load_pem_private_key
    if b"BEGIN OPENSSH PRIVATE KEY" in data:
        load = serialization.load_ssh_private_key
    try:
        key = load(data, password=None, unsafe_skip_rsa_key_validation=True)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        if "password" in str(error).lower() or b"ENCRYPTED" in data:
            raise InvalidInput(
                "the private key has a passphrase, which a build cannot enter; send one without"
            ) from None
        raise _no_key() from None
    if isinstance(key, rsa.RSAPrivateKey) and key.key_size < _SHORTEST_RSA:
        raise InvalidInput(f"the RSA key has less than {_SHORTEST_RSA} bits; use ed25519")
    if not isinstance(key, rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey):
        raise InvalidInput("the private key is of a kind SSH servers refuse; use ed25519")
    try:
        kept = _openssh(key)
        # Numbers that do not even fit each other are noticed by who reads them in this form.
        public_key(kept, "")
    except ValueError:
        raise _no_key() from None
    return kept


def _no_key() -> InvalidInput:
    return InvalidInput(
        "that is no private key for SSH; send the whole file, from -----BEGIN to END-----, or leave it out "
        "and the platform makes one"
    )


def public_key(private_key: str, comment: str) -> str:
    from cryptography.hazmat.primitives import serialization

    load = serialization.load_ssh_private_key
    key = load(private_key.encode(), password=None, unsafe_skip_rsa_key_validation=True).public_key()
    line = key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return f"{line.decode()} {comment}"


def host_key(line: str, place: str | None) -> str:
    """A line of known_hosts. `place` is the host of a line that names none."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_ssh_public_key

    match = _HOST_KEY.fullmatch(line.strip())
    try:
        if match is None:
            raise ValueError
        load_ssh_public_key(f"{match['type']} {match['key']}".encode())
    except (ValueError, UnsupportedAlgorithm):
        raise InvalidInput(
            "that is no host key; send a line such as `git.example.org ssh-ed25519 AAAA…`, which "
            "`ssh-keyscan git.example.org` prints",
            host_key=line[:200],
        ) from None
    hosts = match["hosts"] or place
    if hosts is None:
        raise InvalidInput(
            "the host key names no host, and the app has no repository over SSH; write the host before it",
            host_key=line[:200],
        )
    return f"{hosts} {match['type']} {match['key']}"


def _openssh(key: object) -> str:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    text: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())  # type: ignore[attr-defined]
    return text.decode()
