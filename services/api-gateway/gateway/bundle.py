"""What a joining machine is given of the platform: the agent's own packages as wheels, the list of what they
stand on with its digests, and the script that installs them.

Made of what is installed beside this gateway, so a node runs the same version; every replica makes the same
bytes, because the script names their digest.
"""

import base64
import functools
import gzip
import hashlib
import importlib.util
import io
import tarfile
import zipfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from contracts.errors import Unavailable

# Distribution -> its package. Found by name: this service imports none of them.
PACKAGES = {
    "berth-contracts": "contracts",
    "berth-runtime": "runtime",
    "berth-node-agent": "node_agent",
    "berth-node": "berth_node",
}
_WHEEL = "Wheel-Version: 1.0\nGenerator: berth\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Bundle:
    content: bytes
    script: str

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    def script_for(self, url: str) -> str:
        return self.script.replace("@URL@", url).replace("@SHA256@", self.digest)


@functools.cache
def bundle() -> Bundle:
    files = dict(wheel(name, package) for name, package in sorted(PACKAGES.items()))
    setup = _folder("berth_node")
    files["requirements.txt"] = (setup / "requirements.txt").read_bytes()
    return Bundle(_packed(files), (setup / "node.sh").read_text())


def wheel(name: str, package: str) -> tuple[str, bytes]:
    try:
        installed = distribution(name)
    except PackageNotFoundError:
        raise Unavailable(f"this gateway cannot give away {name}: install it beside the gateway") from None
    info = f"{name.replace('-', '_')}-{installed.version}.dist-info"
    root = _folder(package)
    files = {
        f"{package}/{path.relative_to(root)}": path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }
    files[f"{info}/METADATA"] = (installed.read_text("METADATA") or "").encode()
    files[f"{info}/WHEEL"] = _WHEEL.encode()
    files[f"{info}/entry_points.txt"] = (installed.read_text("entry_points.txt") or "").encode()
    records = [f"{path},sha256={_record(content)},{len(content)}" for path, content in files.items()]
    files[f"{info}/RECORD"] = "\n".join([*records, f"{info}/RECORD,,", ""]).encode()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in files.items():
            archive.writestr(zipfile.ZipInfo(path, _EPOCH), content, zipfile.ZIP_DEFLATED)
    return f"{name.replace('-', '_')}-{installed.version}-py3-none-any.whl", packed.getvalue()


def _packed(files: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=packed, mode="wb", mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w") as tar,
    ):
        for name, content in sorted(files.items()):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o644
            tar.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


def _folder(package: str) -> Path:
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise Unavailable(f"this gateway cannot give away {package}: install it beside the gateway")
    return Path(found.origin).parent


def _record(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
