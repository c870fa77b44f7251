"""A process of its own that lets file systems stand still, and lets go of them whatever becomes of the agent.

It freezes the mounts it is given, says so, and thaws them when its input ends: because the agent is done, or
because it is dead; and by itself after the time it was given, since instances wait for every write meanwhile.
"""

import contextlib
import fcntl
import os
import select
import signal
import sys

FIFREEZE, FITHAW = 0xC0045877, 0xC0045878
DONE, TOO_LONG = 0, 3


def thaw(mount: str) -> None:
    """One that is not frozen stays as it is."""
    with contextlib.suppress(OSError):
        descriptor = os.open(mount, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(descriptor, FITHAW, 0)
        finally:
            os.close(descriptor)


def main(seconds: float, mounts: list[str]) -> int:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    frozen: list[int] = []
    try:
        for mount in mounts:
            descriptor = os.open(mount, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.ioctl(descriptor, FIFREEZE, 0)
            frozen.append(descriptor)
        with contextlib.suppress(BrokenPipeError):
            os.write(1, b"frozen\n")
        ended, _, _ = select.select([0], [], [], seconds)
    except OSError as error:
        os.write(2, str(error).encode())
        return 1
    finally:
        for descriptor in frozen:
            with contextlib.suppress(OSError):
                fcntl.ioctl(descriptor, FITHAW, 0)
    return DONE if ended else TOO_LONG


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2:]))
