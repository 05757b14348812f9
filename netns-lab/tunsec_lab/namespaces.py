"""System calls and commands that make and enter network namespaces.

In the lab guest a fork costs some 10 ms, so commands go to `ip` in batches, and a thread enters a
namespace by setns instead of starting `ip netns exec`.
"""

import ctypes
import os
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tunsec_lab.errors import LabError

CLONE_NEWNET: Final = 0x40000000
NAMES: Final = Path("/run/netns")
BATCH_TIMEOUT_SECONDS: Final = 60.0
LIBC: Final = ctypes.CDLL(None, use_errno=True)


@contextmanager
def inside(netns: str) -> Iterator[None]:
    """This thread is in the namespace; sockets and processes it makes there stay there."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        there = os.open(NAMES / netns, os.O_RDONLY | os.O_CLOEXEC)
        try:
            enter(there)
        finally:
            os.close(there)
        try:
            yield
        finally:
            enter(home)
    finally:
        os.close(home)


def enter(namespace: int) -> None:
    if LIBC.setns(namespace, CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise LabError(
            f"setns failed: {os.strerror(number)}",
            remedy="labs need root: run as root or in the lab",
        )


def ip(*lines: str, netns: str | None = None, program: str = "ip") -> None:
    """Runs many commands of ip (or bridge, tc, rdma) at the cost of one process."""
    if not lines:
        return
    where = [] if netns is None else ["-n", netns]
    done = subprocess.run(
        [program, *where, "-b", "-"],
        input="".join(f"{line}\n" for line in lines),
        check=False, capture_output=True, text=True, timeout=BATCH_TIMEOUT_SECONDS,
    )  # fmt: skip
    if done.returncode:
        shown = "\n".join(f"  {number}: {line}" for number, line in enumerate(lines, start=1))
        raise LabError(f"{program} in {netns or 'this namespace'}: {done.stderr.strip()}\n{shown}")


def set_sysctls(values: Iterable[tuple[str, str]]) -> None:
    """In the namespace this thread is in."""
    for name, value in values:
        Path("/proc/sys", name).write_text(value)


def processes_in(netns: Iterable[str]) -> list[int]:
    """Ids of all processes in these namespaces, daemons too."""
    wanted = {(NAMES / name).stat().st_ino for name in netns if (NAMES / name).exists()}
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            inode = (entry / "ns/net").stat().st_ino
        except OSError:
            continue  # gone meanwhile, or a zombie
        if inode in wanted:
            found.append(int(entry.name))
    return found
