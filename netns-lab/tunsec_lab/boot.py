"""One run of the lab kernel: a command in, its output and exit status out.

The guest is an ordinary process group of this user. It talks through pipes (consoles 0, 1, 2 are
the kernel's messages, the command's output and its errors) and a folder of the host that holds
what it shall do and, at the end, the exit status.
"""

import contextlib
import fcntl
import os
import selectors
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from tunsec_lab.children import die_with_parent
from tunsec_lab.errors import LabError
from tunsec_lab.image import BOOT_PROGRAM, GUEST
from tunsec_lab.kernel import Clock

EXIT_TIMEOUT: Final = 124
EXIT_LAB_FAILED: Final = 125
CHUNK_BYTES: Final = 65536
CONSOLE_LINES: Final = 40
KERNEL_TIME: Final = {
    Clock.REAL: (),
    Clock.VIRTUAL: ("time-travel=inf-cpu",),
    Clock.VIRTUAL_CPU: ("time-travel",),
}
GUEST_PATH: Final = (
    "/tunsec/netns-lab/guest/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)
GUEST_ENVIRONMENT: Final = {
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "LC_ALL": "C.UTF-8",
    "LOGNAME": "root",
    "PATH": GUEST_PATH,
    # A cache would go to the view of the checkout, in which a folder of the host cannot be renamed.
    "PYTEST_ADDOPTS": "-p no:cacheprovider",
    "PYTHONHASHSEED": "0",
    "PYTHONPATH": "/tunsec:/tunsec/netns-lab:/opt/site",
    "PYTHONUNBUFFERED": "1",
    "SHELL": "/bin/bash",
    "TERM": "dumb",
    "TUNSEC_IN_LAB": "1",
    "TZ": "UTC",
    "USER": "root",
}


@dataclass(frozen=True)
class Mount:
    """A folder of the host in the guest. `view`: the guest's changes stay in the guest."""

    host: Path
    guest: str
    kind: Literal["ro", "rw", "view"] = "rw"

    def __post_init__(self) -> None:
        if not self.guest.startswith("/"):
            raise LabError(f"{self.guest!r} is no absolute path of the guest")
        for path in (str(self.host), self.guest):
            if set(path) & set(",\t\n\\"):
                raise LabError(
                    f"cannot mount {path!r}: the lab takes no comma, tab or backslash in a path",
                    remedy="mount a link with a plain name instead",
                )

    def line(self) -> str:
        return f"{self.kind}\t{self.host}\t{self.guest}\n"


@dataclass(frozen=True)
class GuestRun:
    """What to boot and what to run in it."""

    kernel: Path
    root: Path
    command: tuple[str, ...]
    mounts: tuple[Mount, ...] = ()
    cpus: int = 2
    memory: str = "2G"
    timeout_seconds: float | None = None
    clock: Clock = Clock.REAL
    terminal: bool = False
    workdir: str = "/tunsec"
    environment: Mapping[str, str] = field(default_factory=dict)

    def kernel_arguments(self, run_dir: Path) -> list[str]:
        return [
            f"mem={self.memory}",
            *([] if self.clock.is_virtual else [f"ncpus={self.cpus}"]),
            *KERNEL_TIME[self.clock],
            "root=/dev/root",
            "rootfstype=hostfs",
            f"rootflags={run_dir / 'root'}",
            "ro",
            f"init=/{BOOT_PROGRAM}",
            f"LAB_RUN={run_dir}",
            "seccomp=on",
            "quiet",
            "panic=1",
            f"uml_dir={run_dir / 'uml'}/",
            "umid=lab",
            "ssl=null",
            "con=null",
        ]

    def environment_lines(self) -> str:
        values = GUEST_ENVIRONMENT | {"TUNSEC_LAB_CLOCK": self.clock.value} | dict(self.environment)
        return "".join(f"export {name}={shlex.quote(text)}\n" for name, text in values.items())

    def write_orders(self, run_dir: Path) -> None:
        """Fills the run's folder with what guest/init reads."""
        rows, columns = terminal_size() if self.terminal else (24, 80)
        settings = {
            "LAB_TERMINAL": "yes" if self.terminal else "no",
            "LAB_ROWS": str(rows),
            "LAB_COLUMNS": str(columns),
            "LAB_WORKDIR": self.workdir,
        }
        (run_dir / "settings").write_text(
            "".join(f"{name}={shlex.quote(value)}\n" for name, value in settings.items())
        )
        (run_dir / "mounts").write_text("".join(mount.line() for mount in self.mounts))
        (run_dir / "command").write_bytes(
            f"unset LAB_RUN ssl OLDPWD SHLVL\n{self.environment_lines()}".encode()
            + os.fsencode(f"exec {shlex.join(self.command)}\n")
        )
        shutil.copyfile(GUEST / "init", run_dir / "init")
        (run_dir / "init").chmod(0o755)
        (run_dir / "uml").mkdir()
        # The kernel's command line knows no quotes: the root gets a plain name.
        (run_dir / "root").symlink_to(self.root.resolve())


def terminal_size() -> tuple[int, int]:
    try:
        packed = fcntl.ioctl(0, termios.TIOCGWINSZ, bytes(8))
    except OSError:
        return 24, 80
    rows, columns, _, _ = struct.unpack("HHHH", packed)
    return rows or 24, columns or 80


class Stopped(Exception):
    """The run was ended from outside; says by what, with the exit status that stands for it."""

    def __init__(self, reason: str, status: int) -> None:
        super().__init__(reason)
        self.status = status


def run_guest(run: GuestRun) -> int:
    """Boots, passes the output through, and returns the command's exit status."""
    with run_folder() as run_dir:
        run.write_orders(run_dir)
        console: deque[str] = deque(maxlen=CONSOLE_LINES)
        try:
            if run.terminal:
                run_on_terminal(run, run_dir)
            else:
                run_on_pipes(run, run_dir, console)
        except Stopped as stopped:
            print(f"lab: {stopped}; the guest and all in it were killed", file=sys.stderr)
            return stopped.status
        return exit_status(run_dir, console)


@contextlib.contextmanager
def run_folder() -> Iterator[Path]:
    parent = tempfile.gettempdir()
    if shlex.quote(parent) != parent:  # it goes on the kernel's command line
        parent = "/tmp"
    with tempfile.TemporaryDirectory(prefix="tunsec-lab-", dir=parent) as name:
        yield Path(name)


def exit_status(run_dir: Path, console: deque[str]) -> int:
    try:
        return int((run_dir / "status").read_text())
    except (FileNotFoundError, ValueError):
        said = "\n".join(f"  {line}" for line in console) or "  (nothing)"
        raise LabError(
            f"the lab kernel ended before the command did; its last messages:\n{said}",
            remedy="give it more --memory if it ran out of that; otherwise `lab doctor`",
        ) from None


def start(run: GuestRun, run_dir: Path, *, consoles: list[str], fds: tuple[int, ...],
          stdin: int | None) -> subprocess.Popen[bytes]:  # fmt: skip
    return subprocess.Popen(
        [str(run.kernel), *run.kernel_arguments(run_dir), *consoles],
        stdin=stdin,
        stdout=None if run.terminal else subprocess.DEVNULL,
        stderr=None if run.terminal else subprocess.DEVNULL,
        pass_fds=fds,
        # Without a HOME the kernel dies at its first user process.
        env={"PATH": "/usr/bin:/bin", "HOME": str(run_dir), **memory_folder(run.memory)},
        start_new_session=True,
        preexec_fn=lambda: die_with_parent(signal.SIGKILL),
    )


def memory_folder(memory: str) -> dict[str, str]:
    """The kernel keeps guest memory in a file in /dev/shm, unless that is too small for it."""
    factor = {"K": 10, "M": 20, "G": 30}[memory[-1].upper()]
    try:
        room = os.statvfs("/dev/shm")
        enough = room.f_bavail * room.f_frsize > int(memory[:-1]) << factor
    except OSError:
        enough = False
    return {} if enough else {"TMPDIR": tempfile.gettempdir()}


def run_on_terminal(run: GuestRun, run_dir: Path) -> None:
    saved = termios.tcgetattr(0)
    try:
        guest = start(run, run_dir, consoles=["con0=fd:0,fd:1"], fds=(), stdin=None)
        with Watch(guest, run.timeout_seconds) as watch:
            watch.until_gone({})
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, saved)


def run_on_pipes(run: GuestRun, run_dir: Path, console: deque[str]) -> None:
    """Console 0 is kept for error messages, 1 and 2 are passed through."""
    ends = [os.pipe() for _ in range(3)]
    for _, write_end in ends:
        fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, 1 << 20)
    consoles = [f"con{number}=null,fd:{ends[number][1]}" for number in range(3)]
    fds = tuple(write_end for _, write_end in ends)
    guest = start(run, run_dir, consoles=consoles, fds=fds, stdin=subprocess.DEVNULL)
    for write_end in fds:
        os.close(write_end)
    messages = bytearray()
    sinks: dict[int, bytearray | int] = {ends[0][0]: messages, ends[1][0]: 1, ends[2][0]: 2}
    with Watch(guest, run.timeout_seconds) as watch:
        watch.until_gone(sinks)
    console.extend(messages.decode(errors="replace").splitlines())


class Watch:
    """Forwards output until the guest is gone; ends the guest on a signal or a timeout."""

    def __init__(self, guest: subprocess.Popen[bytes], timeout_seconds: float | None) -> None:
        self.guest = guest
        self.timeout_seconds = timeout_seconds
        self.deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        self.wake_read, self.wake_write = os.pipe()
        os.set_blocking(self.wake_write, False)
        self.handlers: dict[int, object] = {}

    def __enter__(self) -> "Watch":
        self.previous_fd = signal.set_wakeup_fd(self.wake_write)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            self.handlers[number] = signal.signal(number, lambda *_: None)
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.guest.pid, signal.SIGKILL)
        self.guest.wait()
        signal.set_wakeup_fd(self.previous_fd)
        for number, handler in self.handlers.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        os.close(self.wake_read)
        os.close(self.wake_write)

    def until_gone(self, sinks: dict[int, bytearray | int]) -> None:
        with selectors.DefaultSelector() as selector:
            gone = os.pidfd_open(self.guest.pid)
            selector.register(gone, selectors.EVENT_READ)
            selector.register(self.wake_read, selectors.EVENT_READ)
            for source in sinks:
                selector.register(source, selectors.EVENT_READ)
            try:
                self._forward(selector, gone, sinks)
            finally:
                os.close(gone)
                for source in sinks:
                    os.close(source)

    def _forward(
        self, selector: selectors.BaseSelector, gone: int, sinks: dict[int, bytearray | int]
    ) -> None:
        ended = False
        while True:
            ready = {key.fd for key, _ in selector.select(0 if ended else self._time_left())}
            if self.wake_read in ready:
                number = os.read(self.wake_read, 1)[0]
                if number != signal.SIGWINCH:
                    raise Stopped(f"stopped by {signal.Signals(number).name}", 128 + number)
            flowing = [source for source in sinks if source in ready]
            for source in flowing:
                if not pass_on(source, sinks[source]):
                    selector.unregister(source)
            # What was in the pipes when the guest ended is still read.
            if ended and not flowing:
                return
            ended = ended or gone in ready
            if not ended and self._time_left() == 0:
                raise Stopped(f"timeout after {self.timeout_seconds:g} s", EXIT_TIMEOUT)

    def _time_left(self) -> float | None:
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())


def pass_on(source: int, sink: bytearray | int) -> bool:
    """Moves what there is; false at the end of the stream."""
    chunk = os.read(source, CHUNK_BYTES)
    if isinstance(sink, bytearray):
        sink += chunk
        return bool(chunk)
    view = memoryview(chunk)
    while view:
        try:
            view = view[os.write(sink, view) :]
        except BrokenPipeError:
            raise Stopped("nobody reads the output any more", 128 + signal.SIGPIPE) from None
    return bool(chunk)
