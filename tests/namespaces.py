"""Network namespaces for tests on a real kernel: made on the spot, gone with their last user."""

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CLONE_NEWNET = 0x4000_0000
_LIBC = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


@contextmanager
def private_namespace() -> Iterator[None]:
    """The calling thread and what it starts live in a new network namespace, lo up."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(_LIBC.unshare(CLONE_NEWNET), "unshare")
        try:
            run("ip link set lo up")
            yield
        finally:
            _check(_LIBC.setns(home, CLONE_NEWNET), "setns")
    finally:
        os.close(home)


@contextmanager
def inside(name: str) -> Iterator[None]:
    """The calling thread lives in the named namespace for a while."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    there = os.open(f"/run/netns/{name}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(_LIBC.setns(there, CLONE_NEWNET), "setns")
        try:
            yield
        finally:
            _check(_LIBC.setns(home, CLONE_NEWNET), "setns")
    finally:
        os.close(there)
        os.close(home)


@contextmanager
def named_namespaces(*names: str) -> Iterator[None]:
    """Namespaces under /run/netns, each with lo up; deleted at the end."""
    made: list[str] = []
    try:
        for name in names:
            run(f"ip netns add {name}")
            made.append(name)
            run(f"ip -n {name} link set lo up")
        yield
    finally:
        for name in made:
            run(f"ip netns del {name}")


def run(command: str, *, check: bool = True, stdin: str = "") -> str:
    """Standard output of a command line (split at blanks), in the namespace of the caller."""
    done = subprocess.run(
        command.split(), input=stdin, capture_output=True, text=True, check=False, timeout=60
    )
    if check and done.returncode:
        raise AssertionError(f"{command}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def missing_capability() -> str | None:
    """Why this process cannot make network namespaces, or None when it can."""
    if os.geteuid() != 0:
        return "needs root to make network namespaces"
    if not Path("/proc/thread-self/ns/net").exists():
        return "the kernel has no network namespaces"
    return None
