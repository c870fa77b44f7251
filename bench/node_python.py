"""The Python a node runs its agent with: of the bundle the gateway gives to joining machines, installed as
their script does it. The one of the tests has packages more, and some of those load where they are found.
"""

import io
import subprocess
import sys
import tarfile

from gateway.bundle import bundle

from bench.scratch import CACHE


def node_python() -> str:
    given = bundle()
    folder = CACHE / "node-python" / given.digest[:16]
    python = folder / "venv" / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "-qq"]
    done = folder / "complete"
    if not done.exists():
        with tarfile.open(fileobj=io.BytesIO(given.content)) as tar:
            tar.extractall(folder, filter="data")
        for command in (
            [sys.executable, "-m", "venv", "--clear", str(folder / "venv")],
            [*install, "--only-binary", ":all:", "--require-hashes", "-r", str(folder / "requirements.txt")],
            [*install, "--no-index", "--no-deps", *map(str, folder.glob("*.whl"))],
        ):
            subprocess.run(command, check=True)
        done.touch()
    return str(python)
