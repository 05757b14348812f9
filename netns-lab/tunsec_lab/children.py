"""Long-running programs of the builder, which never outlive it."""

import contextlib
import ctypes
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from typing import IO, Final

PR_SET_PDEATHSIG: Final = 1
STOP_SECONDS: Final = 10.0


def die_with_parent(number: signal.Signals) -> None:
    """For a child between fork and exec: it gets this signal when its parent is gone."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)


@contextlib.contextmanager
def child(command: Sequence[str], *, stdout: int | IO[str]) -> Iterator[subprocess.Popen[str]]:
    """Runs a program with its errors in its output, and waits for its end. If the block is left
    by an exception (Ctrl-C, SIGTERM) the program and all it started are stopped first."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
        preexec_fn=lambda: die_with_parent(signal.SIGTERM),
    )
    try:
        yield process
        process.wait()
    except BaseException:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)
        raise
    finally:
        if process.stdout is not None:
            process.stdout.close()


def run_to_end(command: Sequence[str], *, output: IO[str]) -> int:
    with child(command, stdout=output) as process:
        process.wait()
    return process.returncode
