"""A terminal between a customer and a process on a node: subjects of that node and session only, and frames.

The gateway opens a session with a question whose answer says whether it stands; from then on both sides send
frames: one letter, then what it carries. Each side is told how much of what it sent has arrived, and sends no
more than that allows. A side that hears nothing for a while takes the other for gone.
"""

from typing import Literal

from contracts.ids import AppId, JobId, OrganizationId
from contracts.model import Model
from contracts.workload import Slot

# From the customer.
INPUT, RESIZE, END_OF_INPUT, HANG_UP = b"i", b"z", b"e", b"c"
# From the process.
OUTPUT, ERRORS, ENDED = b"o", b"r", b"x"
# From both.
ALIVE, ARRIVED = b"k", b"a"

# What may be on its way to one who does not read.
WINDOW = 256 * 1024
CHUNK = 32 * 1024
ALIVE_SECONDS = 10.0
SILENT_SECONDS = 35.0


def to_node(node: str, session: str) -> str:
    return f"session.in.{node}.{session}"


def from_node(node: str, session: str) -> str:
    return f"session.out.{node}.{session}"


class Open(Model):
    verb: Literal["run", "exec"]
    workload: AppId
    organization: OrganizationId
    # The job that waits for it; or the place of the instance, and what to execute there.
    job: JobId | None = None
    slot: Slot | None = None
    command: tuple[str, ...] = ()
    terminal: bool = True


class Opened(Model):
    """`error`: why it does not stand. `tells`: it says how much input has arrived."""

    error: str | None = None
    tells: bool = False


class Ended(Model):
    exit_code: int | None = None
    words: str | None = None


def weight(frame: bytes) -> int:
    """What it takes of a window on its way to a process: one that carries nothing takes room, too."""
    return 64 + len(frame)


def arrived(count: int) -> bytes:
    return ARRIVED + count.to_bytes(4, "big")


def size(rows: int, columns: int) -> bytes:
    return RESIZE + rows.to_bytes(2, "big") + columns.to_bytes(2, "big")


def read_size(payload: bytes) -> tuple[int, int] | None:
    """Rows and columns."""
    if len(payload) != 4:
        return None
    rows, columns = int.from_bytes(payload[:2], "big"), int.from_bytes(payload[2:], "big")
    return (rows, columns) if rows and columns else None
