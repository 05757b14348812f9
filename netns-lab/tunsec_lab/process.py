"""A process in a host: its output in a file, its life in our hands."""

import contextlib
import ctypes
import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tunsec_lab.errors import LabError
from tunsec_lab.namespaces import LIBC

IN_MODIFY: Final = 0x2
IN_CLOEXEC: Final = 0o2000000
SHOWN_LINES: Final = 25


class CommandFailed(LabError):
    """A command in a host ended with another status than 0."""


@dataclass(frozen=True)
class Process:
    """Started by Host.spawn, in its own process group; killed with its host."""

    name: str
    popen: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        return self.popen.pid

    def alive(self) -> bool:
        return self.popen.poll() is None

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def signal(self, number: signal.Signals) -> None:
        """To the whole group."""
        if self.alive():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    def kill9(self) -> int:
        self.signal(signal.SIGKILL)
        return self.wait()

    def terminate(self, *, timeout: float = 10.0) -> int:
        self.signal(signal.SIGTERM)
        return self.wait(timeout=timeout)

    def freeze(self) -> None:
        """Returns when it has stopped."""
        self.signal(signal.SIGSTOP)
        if self.alive():
            os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def thaw(self) -> None:
        self.signal(signal.SIGCONT)

    def wait(self, *, timeout: float = 10.0) -> int:
        """The exit status; negative for a signal. (Popen.wait with a timeout polls.)"""
        with self._end() as ended:
            if ended and not select.select(ended, [], [], timeout)[0]:
                raise LabError(f"{self.name} still runs after {timeout:g} s{self.tail()}")
        return self.popen.wait()

    def wait_for_line(self, pattern: str, *, timeout: float = 10.0) -> re.Match[str]:
        """Returns as soon as a line of the output matches. Wakes on writes, never polls."""
        wanted = re.compile(pattern, re.MULTILINE)
        until = time.monotonic() + timeout
        with changes_of(self.log) as changed, self._end() as ended:
            while True:
                gone = not self.alive()  # asked first: output may come right before the end
                if found := wanted.search(self.output()):
                    return found
                if gone:
                    raise LabError(
                        f"{self.name} ended ({self.popen.returncode}) without a line "
                        f"like {pattern!r}{self.tail()}"
                    )
                left = until - time.monotonic()
                if left <= 0:
                    raise LabError(
                        f"{self.name}: no line like {pattern!r} in {timeout:g} s{self.tail()}"
                    )
                if changed in select.select([changed, *ended], [], [], left)[0]:
                    os.read(changed, 4096)

    @contextlib.contextmanager
    def _end(self) -> Iterator[list[int]]:
        """A descriptor that is readable when the process has ended; none when it has already."""
        try:
            ended = os.pidfd_open(self.pid)
        except ProcessLookupError:
            yield []
            return
        try:
            yield [ended]
        finally:
            os.close(ended)

    def tail(self) -> str:
        lines = self.output().splitlines()[-SHOWN_LINES:]
        return "".join(f"\n  | {line}" for line in lines) or "\n  | (no output)"


@contextlib.contextmanager
def changes_of(path: Path) -> Iterator[int]:
    """A descriptor that is readable after each write to the file."""
    watch = LIBC.inotify_init1(IN_CLOEXEC)
    if watch < 0 or LIBC.inotify_add_watch(watch, os.fsencode(path), IN_MODIFY) < 0:
        raise LabError(f"inotify on {path}: {os.strerror(ctypes.get_errno())}")
    try:
        yield watch
    finally:
        os.close(watch)


@dataclass(frozen=True)
class Completed:
    """What a command in a host said."""

    argv: tuple[str, ...]
    status: int
    stdout: str
    stderr: str

    def checked(self, host: str) -> "Completed":
        if self.status:
            said = "\n".join(
                f"  | {line}" for line in (self.stdout + self.stderr).splitlines()[-25:]
            )
            raise CommandFailed(
                f"host {host}: {' '.join(self.argv)} ended with status {self.status}\n{said}"
            )
        return self


def private_run(argv: Sequence[str]) -> list[str]:
    """The command with a /run of its own; it still sees mounts made elsewhere later."""
    script = 'mount -t tmpfs -o mode=755 run /run && exec "$@"'
    return ["unshare", "--mount", "--propagation", "slave", "sh", "-c", script, "sh", *argv]
