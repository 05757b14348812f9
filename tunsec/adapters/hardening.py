"""What a process that holds keys asks of the kernel for itself."""

import ctypes
import os
import resource
from typing import Final

_PR_SET_DUMPABLE: Final = 4


def harden_process() -> None:
    """No core dumps, no ptrace by others of the same user, files private (law 10)."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_DUMPABLE)")
    os.umask(0o077)
