"""Makes `.venv` out of the lock file, with nothing but Python: `make` calls it before everything else.

It reads on any Python 3.6, so that one which is too old can say so. An unchanged lock file costs one look.
A package mirror that is configured for pip is used for everything: uv alone would not know of it.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

UV = "0.13.8"
LEAST = (3, 11)
OTHERS = ("python3.13", "python3.12", "python3.11", "python3.14")
ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / ".venv"
TOOLS = ROOT / ".cache" / "uv-bootstrap"
STAMP = VENV / "berth-lock"


def main() -> None:
    if sys.version_info < LEAST:
        start_again_with_a_newer_python()
    stamp = wanted()
    if STAMP.exists() and STAMP.read_text() == stamp and os.access(str(VENV / "bin" / "python"), os.X_OK):
        return
    make_uv()
    env = uv_environment(pip_settings())
    if "UV_DEFAULT_INDEX" in env:
        sync_from_mirror(env)
    else:
        uv("sync", "--frozen", "--quiet", env=env)
    STAMP.write_text(stamp)


def start_again_with_a_newer_python() -> None:
    for name in OTHERS:
        found = shutil.which(name)
        # A version manager's shim may stand for a version that is not installed.
        if found and subprocess.call([found, "-c", "import venv"], stderr=subprocess.DEVNULL) == 0:
            sys.exit(subprocess.call([found, *sys.argv]))
    give_up(f"Python 3.11 or newer is needed, this is {sys.version.split()[0]}: install python3.11 or newer")


def wanted() -> str:
    """Changes with everything that decides what belongs into `.venv`."""
    digest = hashlib.sha256((UV + str(ROOT) + sys.version).encode())
    for file in [ROOT / "uv.lock", *projects()]:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def projects() -> "list[Path]":
    return sorted(file for part in (".", "*/*") for file in ROOT.glob(part + "/pyproject.toml"))


def make_uv() -> None:
    mark = TOOLS / "version"
    if mark.exists() and mark.read_text() == UV:
        return
    sys.stdout.write(f"installing uv {UV}\n")
    sys.stdout.flush()
    made = subprocess.call([sys.executable, "-m", "venv", "--clear", str(TOOLS)], stdout=subprocess.DEVNULL)
    if made != 0:
        give_up("Python has no venv module: install it (Debian and Ubuntu: apt-get install python3-venv)")
    if subprocess.call([str(TOOLS / "bin" / "pip"), "install", "--quiet", f"uv=={UV}"]) != 0:
        give_up("uv could not be installed: see pip's words above; a mirror is set with `pip config`")
    mark.write_text(UV)


def pip_settings() -> "dict[str, str]":
    """What the machine's operator told pip, by file or by environment."""
    listed = subprocess.check_output([str(TOOLS / "bin" / "pip"), "config", "list"]).decode()
    # Files come as `global.` or `install.`, the environment as `:env:.`, and the environment wins.
    pairs = [line.partition("=")[::2] for line in listed.splitlines() if "=" in line]
    pairs.sort(key=lambda pair: pair[0].startswith(":env:"))
    return {name.rpartition(".")[2]: value.strip("'\"") for name, value in pairs}


def uv_environment(pip: "dict[str, str]") -> "dict[str, str]":
    env = dict(os.environ, UV_PYTHON=sys.executable, UV_PYTHON_DOWNLOADS="never")
    env.pop("VIRTUAL_ENV", None)
    if pip.get("cert"):
        env.setdefault("SSL_CERT_FILE", pip["cert"])
    if pip.get("trusted-host"):
        env.setdefault("UV_INSECURE_HOST", pip["trusted-host"])
    index = env.get("UV_INDEX_URL") or pip.get("index-url")
    if index:
        env.setdefault("UV_DEFAULT_INDEX", index)
    return env


def sync_from_mirror(env: "dict[str, str]") -> None:
    """The lock file knows where PyPI keeps each file; only the versions and hashes in it are used here."""
    requirements = str(ROOT / ".cache" / "requirements.txt")
    uv("export", "--frozen", "--quiet", "--no-emit-workspace", "--output-file", requirements, env=env)
    uv("venv", "--quiet", "--allow-existing", str(VENV), env=env)
    into = ("--quiet", "--python", str(VENV))
    uv("pip", "sync", *into, "--require-hashes", requirements, env=env)
    ours = [word for file in projects() if file.parent != ROOT for word in ("--editable", str(file.parent))]
    uv("pip", "install", *into, "--no-deps", *ours, env=env)


def uv(*words: str, env: "dict[str, str]") -> None:
    command = [str(TOOLS / "bin" / "uv"), *words]
    if subprocess.call(command, cwd=str(ROOT), env=env, stdout=subprocess.DEVNULL) != 0:
        give_up("the project could not be installed: see uv's words above")


def give_up(line: str) -> None:
    sys.exit(f"berth: {line}")


if __name__ == "__main__":
    main()
