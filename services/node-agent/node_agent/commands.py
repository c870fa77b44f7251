"""Programs of this machine, by argv; what they say when they fail is the reason that is told. Blocking."""

import subprocess
from collections.abc import Container

from contracts.errors import ProviderFailed


def run(*argv: str, good: Container[int] = (0,), seconds: float = 120) -> str:
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
        )
    except FileNotFoundError as error:
        raise ProviderFailed(f"this node has no {argv[0]}: install it") from error
    except subprocess.TimeoutExpired as error:
        raise ProviderFailed(f"{argv[0]} did not end within {seconds:g} s") from error
    if done.returncode not in good:
        words = (done.stderr or done.stdout).strip().replace("\n", "; ")
        raise ProviderFailed(f"{argv[0]} failed: {words or f'exit code {done.returncode}'}")
    return done.stdout
