"""Gives packets a VNI on their way into an `external` tunnel device, as routes with encapsulation,
bridges with VLAN tunnels and programs like Open vSwitch do; the lab's kernel has none of them.

An eBPF action on the device's own clsact, by the packet's destination: so it is also another
program's filter, which has to be left alone.
"""

import ctypes
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tunsec_lab.host import Host

SYS_BPF: Final = 321
"""x86-64."""
BPF_PROG_LOAD, BPF_OBJ_PIN = 5, 6
SCHED_ACT: Final = 4
SET_TUNNEL_KEY: Final = 21
ZERO_CHECKSUM: Final = 2
KEY_BYTES: Final = 28
"""struct bpf_tunnel_key up to tunnel_label: what every kernel takes."""
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


@contextmanager
def tunnel_keys(
    host: Host, device: str, folder: Path, *, remote: str, vnis: dict[str, int]
) -> Iterator[None]:
    """What goes to these networks by a device gets a VNI and the tunnel's other end.

    The clsact and the filters are made first, and outlive the block only with their device.
    """
    folder.mkdir()
    host.run(["mount", "-t", "bpf", "bpf", folder])
    try:
        host.run(["tc", "qdisc", "add", "dev", device, "clsact"])
        for pref, (network, vni) in enumerate(vnis.items(), start=1):
            pinned = folder / f"vni{vni}"
            pin(program(vni, remote), pinned)
            words = f"filter add dev {device} egress pref {pref} protocol ip flower"
            action = f"dst_ip {network} action bpf object-pinned {pinned} continue"
            host.run(["tc", *words.split(), *action.split()])
        yield
    finally:
        host.run(["umount", folder])


def program(vni: int, remote: str) -> bytes:
    """bpf_skb_set_tunnel_key with a key made on the stack; the filter's own verdict holds."""
    (to,) = struct.unpack("!i", socket.inet_aton(remote))
    key = -48
    return b"".join(
        (
            _line(0xBF, 6, 1),  # r6 = skb
            _line(0xB7, 0),
            *(_line(0x7B, 10, 0, at) for at in range(key, 0, 8)),
            _line(0x62, 10, 0, key, vni),  # tunnel_id
            _line(0x62, 10, 0, key + 4, to),  # remote_ipv4, in host order
            _line(0x72, 10, 0, key + 21, 64),  # tunnel_ttl
            _line(0xBF, 1, 6),
            _line(0xBF, 2, 10) + _line(0x07, 2, 0, 0, key),
            _line(0xB7, 3, 0, 0, KEY_BYTES),
            _line(0xB7, 4, 0, 0, ZERO_CHECKSUM),
            _line(0x85, 0, 0, 0, SET_TUNNEL_KEY),
            _line(0xB7, 0, 0, 0, -1),  # TC_ACT_UNSPEC
            _line(0x95),
        )
    )


def pin(code: bytes, path: Path) -> None:
    """Load a program of tc's actions and give it a name in a BPF file system."""
    text, licence = (
        ctypes.create_string_buffer(code, len(code)),
        ctypes.create_string_buffer(b"GPL"),
    )
    where = ctypes.create_string_buffer(os.fsencode(path))
    load = (SCHED_ACT, len(code) // 8, ctypes.addressof(text), ctypes.addressof(licence))
    loaded = _bpf(BPF_PROG_LOAD, struct.pack("=IIQQIIQII", *load, 0, 0, 0, 0, 0))
    try:
        _bpf(BPF_OBJ_PIN, struct.pack("=QII", ctypes.addressof(where), loaded, 0))
    finally:
        os.close(loaded)


def _line(code: int, dst: int = 0, src: int = 0, offset: int = 0, value: int = 0) -> bytes:
    """struct bpf_insn."""
    return struct.pack("=BBhi", code, dst | src << 4, offset, value)


def _bpf(command: int, attributes: bytes) -> int:
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    done = int(_LIBC.syscall(SYS_BPF, command, buffer, len(attributes)))
    if done < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"bpf command {command}: {os.strerror(number)}")
    return done
