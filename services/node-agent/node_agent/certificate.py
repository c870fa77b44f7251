"""The certificate the proxy has for hostnames without one: nobody's, signed by itself, of this node alone.

Without it Traefik makes itself an RSA key at every change of a route, a tenth of a second of a core before
the change is live. It is made by a program of its own, whose library would stay in the agent's memory; so is
the request for the one that other nodes know this one by.
"""

import subprocess
import sys
from datetime import timedelta
from pathlib import Path

from contracts.errors import Unavailable
from runtime.clock import SystemClock

from node_agent.shelf import write_durably

_NAME = "berth.invalid"
_LIFE = timedelta(days=3650)


def certificate(path: Path, drafts: Path) -> str:
    """The certificate and its key, as one PEM text; made when there is none yet. Blocking."""
    try:
        return path.read_text()
    except FileNotFoundError:
        made = _in_another_process("make")
    (drafts / path.name).touch(mode=0o600)
    write_durably(path, made, drafts)
    return made


def request_with_key() -> str:
    """A certificate signing request and its key, as one PEM text. Blocking."""
    return _in_another_process("ask")


def _in_another_process(what: str) -> str:
    made = subprocess.run(
        [sys.executable, "-m", "node_agent.certificate", what], capture_output=True, text=True, check=False
    )
    if made.returncode != 0:
        raise Unavailable(f"no certificate could be made for the ingress: {made.stderr.strip()}")
    return made.stdout


def ask() -> str:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    made = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return (made.public_bytes(serialization.Encoding.PEM) + secret).decode()


def make() -> str:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, _NAME)])
    # Clocks of nodes differ a little.
    begins = SystemClock().now() - timedelta(days=1)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(begins + _LIFE)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(_NAME)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return (made.public_bytes(serialization.Encoding.PEM) + secret).decode()


if __name__ == "__main__":
    sys.stdout.write(ask() if sys.argv[1:] == ["ask"] else make())
