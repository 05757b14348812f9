"""Who runs tunsecd, and doing as that user may: what root can read says nothing of what it can."""

import os
import pwd
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

SERVICE_USER: Final = "tunsec"
"""systemd/tunsec.sysusers.conf."""
_CREDENTIALS: Final = struct.Struct("@iII")  # struct ucred


@dataclass(frozen=True, slots=True)
class User:
    """A user with all groups."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]


def daemon_user(control: Path, service_user: str = SERVICE_USER) -> User:
    """The user of the tunsecd that listens there, else of its unit, else who asks."""
    uid = _listener(control)
    try:
        entry = pwd.getpwnam(service_user) if uid is None else pwd.getpwuid(uid)
    except KeyError:
        own = os.geteuid()
        uid = own if uid is None else uid
        return User(f"user {uid}", uid, os.getegid(), tuple(os.getgroups()))
    groups = os.getgrouplist(entry.pw_name, entry.pw_gid)
    return User(entry.pw_name, entry.pw_uid, entry.pw_gid, tuple(groups))


@contextmanager
def acting_as(user: User) -> Iterator[None]:
    """Files are opened as that user meanwhile. Who is not root stays who he is."""
    own = os.geteuid()
    if own != 0 or user.uid == own:
        yield
        return
    gid, groups = os.getegid(), os.getgroups()
    os.setgroups(user.groups)
    os.setegid(user.gid)
    os.seteuid(user.uid)
    try:
        yield
    finally:
        os.seteuid(own)
        os.setegid(gid)
        os.setgroups(groups)


def _listener(path: Path) -> int | None:
    """User id of who listens on a Unix socket (unix(7), SO_PEERCRED)."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as opened:
        opened.settimeout(1.0)
        try:
            opened.connect(str(path))
            raw = opened.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        except OSError:
            return None
    _, uid, _ = _CREDENTIALS.unpack(raw)
    return int(uid)
