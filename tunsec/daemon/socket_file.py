"""A listening Unix socket that one daemon owns, and that a killed daemon does not leave blocked."""

import contextlib
import errno
import fcntl
import os
import socket
import stat
from pathlib import Path
from typing import Final

from tunsec.model.errors import Refused, Unavailable

BACKLOG: Final = 64


class SocketFile:
    """The socket, its file and the lock beside it (`PATH.lock`), which the kernel gives back when
    its holder dies."""

    def __init__(self, path: Path, *, mode: int, gid: int | None) -> None:
        """Listens at once; the file has its mode and group before anybody can connect.

        Raises Refused when another daemon listens or the path is no socket, Unavailable when it
        cannot be used.
        """
        self._path = path
        self._lock = _lock(path)
        try:
            self.listener = _listen(path, mode=mode, gid=gid)
        except BaseException:
            os.close(self._lock)
            raise
        self._inode = path.lstat().st_ino

    def close(self) -> None:
        """Stop listening and take the file away, if it is still ours."""
        self.listener.close()
        with contextlib.suppress(OSError):
            if self._path.lstat().st_ino == self._inode:
                self._path.unlink()
        os.close(self._lock)


def _lock(path: Path) -> int:
    """Hold the lock that makes one daemon the owner of a socket path, for life."""
    lock = path.with_name(f"{path.name}.lock")
    try:
        held = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise Unavailable(f"cannot use {lock}: {error.strerror}") from error
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(held)
        raise Refused(
            f"listen on {path}",
            errno=errno.EADDRINUSE,
            reason="another tunsecd runs here: stop it first (systemctl stop tunsecd)",
        ) from None
    return held


def _listen(path: Path, *, mode: int, gid: int | None) -> socket.socket:
    """A listening socket with its mode set before anybody can connect."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        listener.setblocking(False)
        _clear_away(path)
        old = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(old)
        if gid is not None:
            os.chown(path, -1, gid)
        path.chmod(mode)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise Unavailable(f"cannot listen on {path}: {error.strerror or error}") from error
    except BaseException:
        listener.close()
        raise
    return listener


def _clear_away(path: Path) -> None:
    """Remove the socket that a killed daemon left, never one that somebody listens on, never a
    file of another kind."""
    try:
        kind = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise Refused(f"listen on {path}", reason="it is there and is no socket: move it away")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        answer = probe.connect_ex(str(path))
    if answer not in (errno.ECONNREFUSED, errno.ENOENT):
        raise Refused(f"listen on {path}", errno=errno.EADDRINUSE, reason="somebody listens there")
    path.unlink(missing_ok=True)
