"""PURE. Which hostnames an app may get, the best first, and what its address then is."""

from collections.abc import Iterator
from hashlib import sha256

PRODUCTION = "production"
HTTP = 80


def candidates(app: str, environment: str, workload: str, base_domain: str) -> Iterator[str]:
    """`<app>.<base>`, off production `<app>-<environment>.<base>`; when that is somebody else's, the same
    with a suffix made of the workload's id: whoever asks again gets the same answer."""
    label = app if environment == PRODUCTION else f"{app}-{environment}"
    yield f"{label}.{base_domain}"
    digest = sha256(workload.encode()).hexdigest()
    for length in (6, 12, 24):
        yield f"{label[: 62 - length]}-{digest[:length]}.{base_domain}"


def address(hostname: str, port: int) -> str:
    return f"http://{hostname}" if port == HTTP else f"http://{hostname}:{port}"
