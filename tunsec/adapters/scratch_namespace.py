"""A network namespace to try things in: empty, and gone with everything in it afterwards."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tunsec.model.errors import Bug, Unavailable

CLONE_NEWNET: Final = 0x4000_0000
"""include/uapi/linux/sched.h."""
_OWN: Final = Path("/proc/thread-self/ns/net")


@contextmanager
def scratch_namespace() -> Iterator[None]:
    """The calling thread, and what it starts, live in a new network namespace meanwhile.

    Raises Unavailable when this process may not make one.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        home = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise Unavailable(f"no network namespaces here: {error.strerror}") from error
    try:
        if libc.unshare(CLONE_NEWNET):
            reason = os.strerror(ctypes.get_errno())
            raise Unavailable(f"cannot make a network namespace: {reason}")
        try:
            yield
        finally:
            if libc.setns(home, CLONE_NEWNET):
                # Nothing may go on in the wrong namespace.
                raise Bug(f"no way back from a namespace: {os.strerror(ctypes.get_errno())}")
    finally:
        os.close(home)
