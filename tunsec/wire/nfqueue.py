"""nfnetlink_queue: packets that a rule holds, and the verdicts that release or drop them.

Sources: include/uapi/linux/netfilter/nfnetlink_queue.h, nfnetlink.h, netfilter.h. Integers of
attributes travel in network order. Only TCP SYNs are ever queued; of each packet the headers alone
are copied.

The guard table sets the mark of an inbound SYN, which has none, to the SPI that it came by: nothing
else would tell it.
"""

import ipaddress
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from tunsec.model.connection import Ends, Syn
from tunsec.model.names import Address, Spi
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

NETLINK_NETFILTER: Final = 12
QUEUE: Final = 21587
"""The number of tunsec's queue; each network namespace has numbers of its own."""
OUTBOUND_BIT: Final = 1 << 31
"""Flipped in the mark of an outbound packet before it is held, and flipped back by the verdict: a
mark that a verdict changes makes the kernel ask for route and SP anew (nf_ip_reroute)."""

_SUBSYSTEM: Final = 3 << 8  # NFNL_SUBSYS_QUEUE
PACKET: Final = _SUBSYSTEM | 0
_VERDICT: Final = _SUBSYSTEM | 1
_CONFIG: Final = _SUBSYSTEM | 2

_GENERIC: Final = struct.Struct("!BBH")  # struct nfgenmsg: family, version, queue number
_COMMAND: Final = struct.Struct("!BxH")  # struct nfqnl_msg_config_cmd
_PARAMETERS: Final = struct.Struct("!IB")  # struct nfqnl_msg_config_params
_PACKET_HEADER: Final = struct.Struct("!IHB")  # struct nfqnl_msg_packet_hdr
_VERDICT_HEADER: Final = struct.Struct("!II")  # struct nfqnl_msg_verdict_hdr
_WORD: Final = struct.Struct("!I")
_BIND: Final = 1
_COPY_PACKET: Final = 2
_COPY_BYTES: Final = 128
"""IP and TCP headers; options of TCP may be cut off."""

_IPV6_HEADER: Final = 40
_TCP_FLAGS: Final = 13
_SYN_ACK: Final = 0x12
_SYN: Final = 0x02


class Verdict(IntEnum):
    """NF_*."""

    DROP = 0
    ACCEPT = 1


class _Hook(IntEnum):
    LOCAL_IN = 1
    LOCAL_OUT = 3


class _Attribute(IntEnum):
    PACKET_HEADER = 1
    VERDICT_HEADER = 2
    MARK = 3
    PAYLOAD = 10


class _Config(IntEnum):
    COMMAND = 1
    PARAMETERS = 2
    LENGTH = 3


@dataclass(frozen=True, slots=True)
class Queued:
    """A packet as the queue holds it; `syn` is None for what is no TCP SYN."""

    id: int
    syn: Syn | None


def encode_bind(*, length: int, seq: int) -> bytes:
    """Take the queue over, with room for `length` packets; each of the two requests is answered."""
    command = encode_attribute(_Config.COMMAND, _COMMAND.pack(_BIND, 0))
    parameters = encode_attribute(_Config.PARAMETERS, _PARAMETERS.pack(_COPY_BYTES, _COPY_PACKET))
    room = encode_attribute(_Config.LENGTH, _WORD.pack(length))
    flags = Flag.REQUEST | Flag.ACK
    generic = _GENERIC.pack(0, 0, QUEUE)
    return encode_message(_CONFIG, generic + command, flags=flags, seq=seq) + encode_message(
        _CONFIG, generic + parameters + room, flags=flags, seq=seq + 1
    )


def encode_verdict(syn: Syn, verdict: Verdict, *, seq: int) -> bytes:
    """Let a packet go on with the mark that it had, or drop it."""
    body = _GENERIC.pack(0, 0, QUEUE)
    body += encode_attribute(_Attribute.VERDICT_HEADER, _VERDICT_HEADER.pack(verdict, syn.id))
    if verdict is Verdict.ACCEPT:
        body += encode_attribute(_Attribute.MARK, _WORD.pack(syn.mark))
    return encode_message(_VERDICT, body, flags=Flag.REQUEST, seq=seq)


def encode_drop(packet: int, *, seq: int) -> bytes:
    """Drop a packet that could not be read."""
    body = _GENERIC.pack(0, 0, QUEUE)
    body += encode_attribute(_Attribute.VERDICT_HEADER, _VERDICT_HEADER.pack(Verdict.DROP, packet))
    return encode_message(_VERDICT, body, flags=Flag.REQUEST, seq=seq)


def decode_packet(buffer: Buffer, message: Message) -> Queued:
    """An NFQNL_MSG_PACKET; raises Malformed."""
    if message.end - message.start < _GENERIC.size:
        raise Malformed("a queued packet without its header")
    header: tuple[int, int, int] | None = None
    mark = 0
    payload = b""
    for kind, first, last in attributes(buffer, message.start + _GENERIC.size, message.end):
        match attribute_type(kind):
            case _Attribute.PACKET_HEADER:
                if last - first < _PACKET_HEADER.size:
                    raise Malformed(f"packet header of {last - first} bytes")
                header = _PACKET_HEADER.unpack_from(buffer, first)
            case _Attribute.MARK:
                if last - first != _WORD.size:
                    raise Malformed(f"mark of {last - first} bytes")
                (mark,) = _WORD.unpack_from(buffer, first)
            case _Attribute.PAYLOAD:
                payload = bytes(buffer[first:last])
    if header is None:
        raise Malformed("a queued packet without its id")
    packet, _, hook = header
    return Queued(packet, _syn(packet, hook, mark, payload))


def _syn(packet: int, hook: int, mark: int, payload: bytes) -> Syn | None:
    """What the guard's rules queue: a SYN that leaves, or one that has just come through ESP."""
    if hook not in (_Hook.LOCAL_IN, _Hook.LOCAL_OUT):
        return None
    ip = _addresses(payload)
    if ip is None:
        return None
    src, dst, at = ip
    if len(payload) < at + _TCP_FLAGS + 1:
        return None
    sport, dport, sequence = struct.unpack_from("!HHI", payload, at)
    if payload[at + _TCP_FLAGS] & _SYN_ACK != _SYN:
        return None
    if hook == _Hook.LOCAL_OUT:
        return Syn(packet, Ends(src, sport, dst, dport), True, sequence, mark ^ OUTBOUND_BIT)
    return Syn(packet, Ends(dst, dport, src, sport), False, sequence, 0, Spi(mark))


def _addresses(payload: bytes) -> tuple[Address, Address, int] | None:
    """Source, destination, and where TCP begins; IPv6 extension headers no SYN of ours has."""
    if not payload:
        return None
    if payload[0] >> 4 == 4:
        at = 4 * (payload[0] & 0x0F)
        if at < 20 or len(payload) < at or payload[9] != TCP:
            return None
        return ipaddress.IPv4Address(payload[12:16]), ipaddress.IPv4Address(payload[16:20]), at
    if payload[0] >> 4 == 6 and len(payload) >= _IPV6_HEADER and payload[6] == TCP:
        src, dst = ipaddress.IPv6Address(payload[8:24]), ipaddress.IPv6Address(payload[24:40])
        return src, dst, _IPV6_HEADER
    return None
