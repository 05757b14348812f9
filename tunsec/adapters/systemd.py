"""The service manager: readiness, watchdog and credentials (sd_notify(3), sd_watchdog_enabled(3)).

Without a service manager everything here does nothing, so the daemon runs alike in a shell.
"""

import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Self

from tunsec.model.clock import Seconds
from tunsec.model.errors import Unavailable

STATUS_CHARACTERS: Final = 400


class Notifier:
    """Tells the service manager how the daemon fares; silent when there is none."""

    def __init__(self, address: str | None) -> None:
        """`address` as in NOTIFY_SOCKET: an absolute path, or `@name` for an abstract socket.

        Raises Unavailable for an address that is neither (vsock is for whole machines).
        """
        if address and address[0] not in "/@":
            raise Unavailable(f"NOTIFY_SOCKET={address!r} is neither a path nor an abstract name")
        self._address = f"\0{address[1:]}" if address and address[0] == "@" else address or None
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.setblocking(False)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """A notifier for what the service manager set."""
        return cls(environment.get("NOTIFY_SOCKET"))

    @property
    def connected(self) -> bool:
        """Whether a service manager listens."""
        return self._address is not None

    def ready(self, status: str = "") -> None:
        """Start-up, or a reload, is over."""
        self._send("READY=1", *_status(status))

    def reloading(self) -> None:
        """A reload begins; ready() ends it."""
        microseconds = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send("RELOADING=1", f"MONOTONIC_USEC={microseconds}")

    def stopping(self, status: str = "") -> None:
        """The daemon is about to end."""
        self._send("STOPPING=1", *_status(status))

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._send(*_status(text))

    def alive(self) -> None:
        """Feed the watchdog."""
        self._send("WATCHDOG=1")

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self, *assignments: str) -> None:
        if self._address is None or not assignments:
            return
        try:
            self._socket.sendto("\n".join(assignments).encode(), self._address)
        except OSError:
            # A service manager that is being re-executed misses one message; the watchdog's next
            # one comes soon, and no message is worth stopping the daemon for.
            return


def watchdog_interval(environment: Mapping[str, str], *, pid: int) -> Seconds | None:
    """How often to call alive(): half of what the service manager grants; None without watchdog."""
    for_pid = environment.get("WATCHDOG_PID", "")
    try:
        microseconds = int(environment.get("WATCHDOG_USEC", ""))
        meant = not for_pid or int(for_pid) == pid
    except ValueError:
        return None
    if microseconds <= 0 or not meant:
        return None
    return Seconds(microseconds / 2_000_000)


def credentials_directory(environment: Mapping[str, str]) -> Path | None:
    """Where the service manager put credentials (LoadCredential=), or None."""
    path = environment.get("CREDENTIALS_DIRECTORY", "")
    return Path(path) if path.startswith("/") else None


def _status(text: str) -> tuple[str, ...]:
    line = " ".join(text.split())[:STATUS_CHARACTERS]
    return (f"STATUS={line}",) if line else ()
