"""A folder for what a measurement writes: beside the code, because `/tmp` may be memory, where a flush to
disk costs nothing."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CACHE = Path(__file__).parent.parent / ".cache"


@contextmanager
def scratch() -> Iterator[Path]:
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=CACHE) as folder:
        yield Path(folder)
