"""What an external (collect-metadata) tunnel device needs: VNI and remote of each packet.

On a cluster's host the CNI's eBPF program or a route with `encap` gives them. The lab kernel has no
lightweight tunnels, so a program of the first sort is put on the device's egress by tc.
"""

import ctypes
import os
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tunsec_lab.errors import LabError
from tunsec_lab.host import Host
from tunsec_lab.namespaces import LIBC
from tunsec_lab.topology import Address

BPF: Final = 321  # the system call, on x86-64
PROG_LOAD, OBJ_PIN = 5, 6
SCHED_CLS: Final = 3
SET_TUNNEL_KEY: Final = 21
ZERO_CSUM_TX, TUNINFO_IPV6 = 2, 1  # BPF_F_*
KEY_BYTES: Final = 28  # struct bpf_tunnel_key up to tunnel_label
STACK: Final = -32  # of the key, from the frame pointer
GO_ON: Final = -1  # TC_ACT_UNSPEC


def send_all_to(
    host: Host, device: str, *, vni: int, remote: Address, protocols: tuple[str, ...]
) -> None:
    """What leaves an external device and is of these ethertypes (tc's names) goes to one remote."""
    with _pins(host) as folder:
        pin = folder / "program"
        _pin(_load(_program(vni, remote)), pin)
        host.run(["tc", "qdisc", "replace", "dev", device, "clsact"])
        for protocol in protocols:
            where = ["dev", device, "egress", "protocol", protocol]
            what = ["bpf", "direct-action", "object-pinned", str(pin)]
            host.run(["tc", "filter", "add", *where, *what])


@contextmanager
def _pins(host: Host) -> Iterator[Path]:
    """A folder in which tc finds programs by name."""
    folder = host.folder / "bpf"
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "bpf", "bpf", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def _program(vni: int, remote: Address) -> bytes:
    """Builds the key on the stack and gives it to bpf_skb_set_tunnel_key."""
    store, store_byte, move, move_value, add = 0x62, 0x72, 0xBF, 0xB7, 0x07
    if remote.version == 4:  # this family in host order, the other one as on the wire
        values, flags = [vni, int(remote), 0, 0, 0, 0, 0], ZERO_CSUM_TX
    else:
        wire = struct.unpack("=IIII", remote.packed)
        values, flags = [vni, *wire, 0, 0], TUNINFO_IPV6
    stores = [_op(store, 10, off=STACK + 4 * at, value=value) for at, value in enumerate(values)]
    return b"".join(
        (
            *stores,
            _op(store_byte, 10, off=STACK + 21, value=64),  # tunnel_ttl
            _op(move, 2, 10),
            _op(add, 2, value=STACK),
            _op(move_value, 3, value=KEY_BYTES),
            _op(move_value, 4, value=flags),
            _op(0x85, value=SET_TUNNEL_KEY),  # call; register 1 is the packet still
            _op(move_value, value=GO_ON),
            _op(0x95),  # exit
        )
    )


def _op(code: int, to: int = 0, source: int = 0, *, off: int = 0, value: int = 0) -> bytes:
    """struct bpf_insn."""
    return struct.pack("=BBhI", code, to | source << 4, off, value & 0xFFFF_FFFF)


def _load(program: bytes) -> int:
    code, licence = ctypes.create_string_buffer(program), ctypes.create_string_buffer(b"GPL")
    log = ctypes.create_string_buffer(65536)
    where = (ctypes.addressof(code), ctypes.addressof(licence), 1, len(log), ctypes.addressof(log))
    shape = "=IIQQIIQII"
    attributes = struct.pack(shape, SCHED_CLS, len(program) // 8, *where, 0, 0)
    return _bpf(PROG_LOAD, attributes, lambda: log.value.decode())


def _pin(descriptor: int, path: Path) -> None:
    name = ctypes.create_string_buffer(os.fsencode(path))
    try:
        _bpf(OBJ_PIN, struct.pack("=QII", ctypes.addressof(name), descriptor, 0), lambda: str(path))
    finally:
        os.close(descriptor)


def _bpf(command: int, attributes: bytes, said: Callable[[], str]) -> int:
    buffer = ctypes.create_string_buffer(attributes)
    done = LIBC.syscall(BPF, command, buffer, len(attributes))
    if done < 0:
        raise LabError(f"bpf: {os.strerror(ctypes.get_errno())}: {said()}")
    return int(done)
