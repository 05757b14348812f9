"""sock_diag: the TCP connections of a host, and the news that one was destroyed.

Sources: include/uapi/linux/sock_diag.h, inet_diag.h, tcp.h (struct tcp_info). Ports and addresses
travel in network order, all else in host order. Sockets of the kernel itself (RDS) are told of like
those of programs; connections that a dual-stack socket took bear IPv4-mapped addresses.
"""

import ipaddress
import struct
from enum import IntEnum
from typing import Final

from tunsec.model.connection import Connection, Ends
from tunsec.model.names import Address
from tunsec.model.selector import TCP
from tunsec.wire.netlink import (
    Buffer,
    Flag,
    Malformed,
    Message,
    attribute_type,
    attributes,
    encode_attribute,
    encode_message,
)

NETLINK_SOCK_DIAG: Final = 4
DESTROY_GROUPS: Final = (1, 3)
"""SKNLGRP_INET_TCP_DESTROY and SKNLGRP_INET6_TCP_DESTROY."""
SOCK_DIAG_BY_FAMILY: Final = 20
IPV4: Final = 2
IPV6: Final = 10
"""AF_INET and AF_INET6."""

_REQUEST: Final = struct.Struct("=BBBxI48x")  # struct inet_diag_req_v2
_SOCKET: Final = struct.Struct("=BBBB2s2s16s16sI8s20x")  # struct inet_diag_msg
_OPERATION: Final = struct.Struct("=BBH")  # struct inet_diag_bc_op
_ANY_STATE: Final = 0xFFFF_FFFF
_INFO: Final = 2  # INET_DIAG_INFO
_BYTECODE: Final = 1  # INET_DIAG_REQ_BYTECODE
_JUMP: Final = 1  # INET_DIAG_BC_JMP
_SPORT_IS: Final = 11  # INET_DIAG_BC_S_EQ
_DPORT_IS: Final = 12  # INET_DIAG_BC_D_EQ
_DATA_SEGMENTS: Final = struct.Struct("=II")
_DATA_SEGMENTS_AT: Final = 152
"""tcpi_data_segs_in and tcpi_data_segs_out in struct tcp_info."""


class State(IntEnum):
    """TCP_*, those that a new or an open connection passes."""

    ESTABLISHED = 1
    SYN_SENT = 2
    SYN_RECV = 3
    NEW_SYN_RECV = 12


_ALIVE: Final = frozenset(State)


def encode_dump(port: int, family: int, *, seq: int) -> bytes:
    """Ask for all TCP connections of a family with this port at either end."""
    body = _REQUEST.pack(family, TCP, 1 << (_INFO - 1), _ANY_STATE)
    # Where to go on yes and on no, in bytes; past the end is no. "a or b" needs a jump over b, for
    # the kernel takes no program that has a part which no chain of yes leads through.
    code = _OPERATION.pack(_SPORT_IS, 8, 12) + _OPERATION.pack(0, 0, port)
    code += _OPERATION.pack(_JUMP, 4, 12)
    code += _OPERATION.pack(_DPORT_IS, 8, 12) + _OPERATION.pack(0, 0, port)
    body += encode_attribute(_BYTECODE, code)
    return encode_message(SOCK_DIAG_BY_FAMILY, body, flags=Flag.REQUEST | Flag.DUMP, seq=seq)


def decode_connection(buffer: Buffer, message: Message) -> Connection:
    """A socket of a dump, or of the news that it was destroyed; raises Malformed."""
    if message.end - message.start < _SOCKET.size:
        raise Malformed(f"inet_diag message of {message.end - message.start} bytes")
    family, state, _, _, sport, dport, src, dst, _, _ = _SOCKET.unpack_from(buffer, message.start)
    ends = Ends(
        _address(family, src),
        int.from_bytes(sport),
        _address(family, dst),
        int.from_bytes(dport),
    )
    carried = True  # unless the kernel says that it has not
    for kind, first, last in attributes(buffer, message.start + _SOCKET.size, message.end):
        if attribute_type(kind) == _INFO and last - first >= _DATA_SEGMENTS_AT + 8:
            carried = any(_DATA_SEGMENTS.unpack_from(buffer, first + _DATA_SEGMENTS_AT))
    return Connection(ends, state in _ALIVE, carried)


def _address(family: int, raw: bytes) -> Address:
    if family == IPV4:
        return ipaddress.IPv4Address(raw[:4])
    if family != IPV6:
        raise Malformed(f"inet_diag message of family {family}")
    found = ipaddress.IPv6Address(raw)
    return found.ipv4_mapped or found
