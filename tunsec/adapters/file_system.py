"""Which kind of file system a folder is on, and so whether inotify tells of every change."""

import ctypes
import os
import sys
from pathlib import Path
from typing import Final

STATFS_BYTES: Final = 512
"""Room for struct statfs of any architecture (120 bytes on x86-64); f_type is its first word."""

LOCAL: Final = {
    0xEF53: "ext4",
    0x58465342: "xfs",
    0x9123683E: "btrfs",
    0xF2F52010: "f2fs",
    0x2FC12FC1: "zfs",
    0xCA451A4E: "bcachefs",
    0x01021994: "tmpfs",
    0x858458F6: "ramfs",
    0x794C7630: "overlay",
}
"""include/uapi/linux/magic.h; zfs: its own zfs_vfsops.c.

All who write there are on this kernel, so inotify sees them; on NFS, CIFS, 9p, virtiofs or FUSE it
does not see what other machines write (inotify(7))."""


def is_local(path: Path) -> bool:
    """Whether every change below a folder passes through this kernel; raises OSError."""
    buffer = ctypes.create_string_buffer(STATFS_BYTES)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.statfs(os.fsencode(path), buffer) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(path))
    word = buffer.raw[: ctypes.sizeof(ctypes.c_long)]
    return int.from_bytes(word, sys.byteorder) & 0xFFFF_FFFF in LOCAL
