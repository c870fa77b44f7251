"""One row of many, in a loop: what goes wrong with it is logged, and stops no other (I3)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import structlog
from contracts.errors import Unavailable

log = structlog.get_logger("runtime.sparing")


@contextmanager
def sparing(event: str, **about: Any) -> Iterator[None]:
    try:
        yield
    except Unavailable:
        # Of all of them.
        raise
    except Exception:
        log.exception(event, **about)
