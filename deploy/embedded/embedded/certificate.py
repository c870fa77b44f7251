"""The certificate of NATS where other machines come to it: signed by itself, for one name, trusted by those
who are given it when they join. Made once and kept, with its key, in one folder; for another name anew.
"""

from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from runtime.clock import SystemClock

from embedded.daemon import write_if_new

_LIFE = timedelta(days=3650)


class Certificate:
    def __init__(self, folder: Path, host: str) -> None:
        self.host = host
        self.public = folder / "nats-certificate.pem"
        self.key = folder / "nats-key.pem"

    def ensure(self) -> bool:
        """True when it is a new one."""
        if self.public.exists() and self.key.exists() and self._names() == [self.host]:
            return False
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Berth NATS")])
        begins = SystemClock().now() - timedelta(days=1)
        made = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(begins)
            .not_valid_after(begins + _LIFE)
            .add_extension(x509.SubjectAlternativeName([_general(self.host)]), critical=False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(key, hashes.SHA256())
        )
        secret = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        write_if_new(self.key, secret.decode())
        write_if_new(self.public, made.public_bytes(serialization.Encoding.PEM).decode())
        return True

    def _names(self) -> list[str]:
        found = x509.load_pem_x509_certificate(self.public.read_bytes())
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return [str(name.value) for name in names]


def _general(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)
