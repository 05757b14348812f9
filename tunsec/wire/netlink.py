"""Netlink framing: message headers, attributes and the kernel's answers to a request.

Strict: every length is checked before it is believed, and bytes that do not fit raise Malformed.
Sources: include/uapi/linux/netlink.h, net/netlink/af_netlink.c (netlink_ack).
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Final, NamedTuple

from tunsec.model.errors import TunsecError

Buffer = bytes | bytearray | memoryview

HEADER: Final = struct.Struct("=IHHII")
"""struct nlmsghdr: length, type, flags, sequence, port id."""

ATTRIBUTE: Final = struct.Struct("=HH")
"""struct nlattr: length, type."""

_FIRST_OWN_TYPE: Final = 0x10  # NLMSG_MIN_TYPE
_ATTRIBUTE_TYPE_MASK: Final = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER


class Malformed(TunsecError):
    """Bytes that do not parse, or a value that has no place on the wire."""


class Control(IntEnum):
    """Message types below NLMSG_MIN_TYPE (0x10)."""

    NOOP = 1
    ERROR = 2
    DONE = 3
    OVERRUN = 4


class Flag(IntFlag):
    """NLM_F_*; some bits have one meaning in a request and another in an answer."""

    REQUEST = 0x01
    MULTI = 0x02
    ACK = 0x04
    DUMP_INTR = 0x10
    REPLACE = 0x100
    CAPPED = 0x100
    EXCL = 0x200
    ACK_TLVS = 0x200
    DUMP = 0x300
    CREATE = 0x400


class AckAttribute(IntEnum):
    """NLMSGERR_ATTR_*."""

    TEXT = 1
    OFFSET = 2


_INTERRUPTED: Final = Flag.DUMP_INTR.value


class Message(NamedTuple):
    """One message in a buffer: `start` and `end` bound its payload."""

    kind: int
    flags: int
    seq: int
    portid: int
    start: int
    end: int


class RawAttribute(NamedTuple):
    """An attribute as it came: full type field and payload."""

    kind: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """What NLMSG_ERROR or NLMSG_DONE says about request `seq`; errno 0 is success.

    `text` is the extended ack's words, `offset` where in the request the fault lies.
    """

    seq: int
    errno: int
    text: str = ""
    offset: int | None = None


def messages(buffer: Buffer, size: int | None = None) -> Iterator[Message]:
    """The messages in the first `size` bytes of a datagram; raises Malformed."""
    end = len(buffer) if size is None else size
    if end > len(buffer):
        raise Malformed(f"netlink datagram of {end} bytes in a buffer of {len(buffer)}")
    at = 0
    while at < end:
        if end - at < HEADER.size:
            raise Malformed(f"netlink header cut off at byte {at} of {end}")
        length, kind, flags, seq, portid = HEADER.unpack_from(buffer, at)
        if length < HEADER.size or at + length > end:
            raise Malformed(f"netlink message at byte {at} claims {length} of {end - at} bytes")
        yield Message(kind, flags, seq, portid, at + HEADER.size, at + length)
        at += align(length)


def attributes(buffer: Buffer, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(full type, payload start, payload end) of each attribute; raises Malformed."""
    at = start
    while at < end:
        if end - at < ATTRIBUTE.size:
            raise Malformed(f"attribute header cut off at byte {at} of {end}")
        length, kind = ATTRIBUTE.unpack_from(buffer, at)
        if length < ATTRIBUTE.size or at + length > end:
            raise Malformed(f"attribute {kind} at byte {at} claims {length} of {end - at} bytes")
        yield kind, at + ATTRIBUTE.size, at + length
        at += (length + 3) & ~3


class Dump:
    """The answer to one dump request, datagram by datagram.

    `answer` is None until the dump has ended; `interrupted` says that it changed under way, so
    that some objects may be missing and others told twice (NLM_F_DUMP_INTR).
    """

    __slots__ = ("answer", "interrupted", "seq")

    def __init__(self, seq: int) -> None:
        self.seq = seq
        self.answer: Answer | None = None
        self.interrupted = False

    def feed(self, datagram: Buffer) -> Iterator[Message]:
        """The objects in the next datagram; what belongs to other requests is passed over."""
        for message in messages(datagram):
            if message.seq != self.seq:
                continue
            if message.flags & _INTERRUPTED:
                self.interrupted = True
            if message.kind >= _FIRST_OWN_TYPE:
                yield message
            elif message.kind in (Control.ERROR, Control.DONE):
                self.answer = decode_answer(datagram, message)
                return


def attribute_type(kind: int) -> int:
    """The type without its two flag bits."""
    return kind & _ATTRIBUTE_TYPE_MASK


def align(length: int) -> int:
    """NLMSG_ALIGN: up to four bytes."""
    return (length + 3) & ~3


def encode_message(kind: int, payload: bytes, *, flags: int, seq: int, portid: int = 0) -> bytes:
    """Header and payload; the kernel repeats `seq` and `portid` in what it notifies."""
    return HEADER.pack(HEADER.size + len(payload), kind, flags, seq, portid) + payload


def encode_attribute(kind: int, payload: bytes) -> bytes:
    """Header, payload and padding; raises Malformed when the payload is too long."""
    length = ATTRIBUTE.size + len(payload)
    if length > 0xFFFF:
        raise Malformed(f"attribute {kind} of {length} bytes: at most 65535 fit")
    return ATTRIBUTE.pack(length, kind) + payload + bytes(-length % 4)


def decode_answer(buffer: Buffer, message: Message) -> Answer:
    """An NLMSG_ERROR or NLMSG_DONE message; raises Malformed.

    NLMSG_ERROR repeats the request's header, and all of the request unless the socket has
    NETLINK_CAP_ACK; extended ack attributes follow when ACK_TLVS is set. NLMSG_DONE carries the
    number alone.
    """
    start, end = message.start, message.end
    if end - start < 4:
        if message.kind == Control.DONE and start == end:
            return Answer(message.seq, 0)
        raise Malformed(f"answer to request {message.seq} has {end - start} bytes, at least 4 fit")
    (number,) = struct.unpack_from("=i", buffer, start)
    if number > 0:
        # A DONE may carry a positive length (netlink_dump_done): no error.
        number = 0
    at = start + 4
    if message.kind == Control.ERROR:
        at = _skip_request(buffer, message)
    text, offset = "", None
    if message.flags & Flag.ACK_TLVS:
        for kind, first, last in attributes(buffer, at, end):
            match attribute_type(kind):
                case AckAttribute.TEXT:
                    text = bytes(buffer[first:last]).split(b"\0", 1)[0].decode(errors="replace")
                case AckAttribute.OFFSET if last - first == 4:
                    (offset,) = struct.unpack_from("=I", buffer, first)
    return Answer(message.seq, -number, text, offset)


def _skip_request(buffer: Buffer, message: Message) -> int:
    """Where the extended ack attributes of an NLMSG_ERROR start."""
    at = message.start + 4
    if message.end - at < HEADER.size:
        raise Malformed(f"answer to request {message.seq} repeats no request header")
    if message.flags & Flag.CAPPED:
        return at + HEADER.size
    (length,) = struct.unpack_from("=I", buffer, at)
    if length < HEADER.size or at + length > message.end:
        raise Malformed(f"answer to request {message.seq} repeats {length} bytes of request")
    return at + align(int(length))
