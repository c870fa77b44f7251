"""How much an app may say of itself: every word about it travels whole, in one message of the bus. PURE.

A message holds a megabyte; what is measured here leaves room for what else stands in it.
"""

from contracts.errors import TooLarge
from contracts.model import Model
from contracts.workload import WorkloadSpec

LARGEST_SPEC = 600_000
LARGEST_PAGE = 800_000


def require_sendable(spec: WorkloadSpec) -> None:
    size = len(spec.model_dump_json().encode())
    if size > LARGEST_SPEC:
        raise TooLarge(
            f"the app's variables, commands and volumes take {size} bytes together, and may take "
            f"{LARGEST_SPEC}; shorten them, or keep large values in a file of the source",
            app=spec.id,
            limit=LARGEST_SPEC,
        )


class Page:
    """As many as fit into one answer; always one, if there is one."""

    def __init__(self) -> None:
        self._bytes = 0

    def takes(self, one: Model) -> bool:
        empty = not self._bytes
        self._bytes += len(one.model_dump_json().encode())
        return empty or self._bytes <= LARGEST_PAGE
