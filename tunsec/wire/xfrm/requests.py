"""Requests and answers that name an SA or SP rather than carry one: DELSA, GETSA, DELPOLICY,
GETPOLICY, ALLOCSPI, FLUSHSA, FLUSHPOLICY, GETSADINFO and GETSPDINFO."""

import struct
from dataclasses import dataclass
from typing import Final

from tunsec.model.names import Address, IfId, Mark, Proto, Spi
from tunsec.model.sa import SaId
from tunsec.model.sp import SpId
from tunsec.wire.netlink import Buffer, Malformed, encode_attribute
from tunsec.wire.xfrm.consts import Attr
from tunsec.wire.xfrm.sa import (
    USERSA_SIZE,
    Found,
    SaMessage,
    encode_sa,
    find_attributes,
    read_sa_message,
)
from tunsec.wire.xfrm.sp import SP_DIRECTION_NUMBER, sp_direction
from tunsec.wire.xfrm.structs import (
    PROTO_NUMBER,
    PROTO_OF,
    SELECTOR_SIZE,
    Reader,
    decode_mark,
    decode_u32,
    encode_mark,
    encode_selector,
    encode_u32,
    family_of,
    need,
    proto_of,
)

SA_ID: Final = struct.Struct("=16s4sHBx")
"""struct xfrm_usersa_id."""
_SP_ID_TAIL: Final = struct.Struct("=IB3x")
SP_ID_SIZE: Final = SELECTOR_SIZE + _SP_ID_TAIL.size
"""sizeof(struct xfrm_userpolicy_id)."""
_SPI_RANGE: Final = struct.Struct("=II")
_SPI_REQUEST_SIZE: Final = USERSA_SIZE + _SPI_RANGE.size
_ANY_PROTO: Final = 255  # IPSEC_PROTO_ANY
_SAD_COUNT: Final = 1
_SAD_TABLE: Final = 2
_SPD_COUNT: Final = 1
_SPD_TABLE: Final = 2


def encode_sa_id(sa_id: SaId, *, src: Address | None = None) -> bytes:
    """Payload of DELSA or GETSA; `src` only for the Mobile IPv6 protocols, which have no SPI."""
    body = SA_ID.pack(
        sa_id.dst.packed,
        sa_id.spi.to_bytes(4, "big"),
        family_of(sa_id.dst),
        PROTO_NUMBER[sa_id.proto],
    )
    if src is not None:
        body += encode_attribute(Attr.SRCADDR, src.packed + bytes(16 - len(src.packed)))
    return body + encode_mark(sa_id.mark)


def decode_sa_id(buffer: Buffer, start: int, end: int, *, reader: Reader) -> SaId:
    """Payload of DELSA or GETSA; raises Malformed."""
    need(start, end, SA_ID.size, "xfrm_usersa_id")
    return read_sa_id(buffer, start, find_attributes(buffer, start + SA_ID.size, end), reader)


def read_sa_id(buffer: Buffer, start: int, found: Found, reader: Reader) -> SaId:
    """struct xfrm_usersa_id at `start` and the mark among the attributes found."""
    dst, spi, family, proto = SA_ID.unpack_from(buffer, start)
    return SaId(
        reader.address(dst, family),
        Spi(int.from_bytes(spi, "big")),
        PROTO_OF.get(proto) or proto_of(proto),
        read_mark(buffer, found),
    )


def read_mark(buffer: Buffer, found: Found) -> Mark | None:
    """XFRMA_MARK among the attributes found."""
    place = found.get(Attr.MARK)
    return None if place is None else decode_mark(buffer, *place)


def encode_sp_id(sp_id: SpId, *, index: int = 0) -> bytes:
    """Payload of DELPOLICY or GETPOLICY; an `index` above 0 goes before the selector."""
    tail = _SP_ID_TAIL.pack(index, SP_DIRECTION_NUMBER[sp_id.direction])
    return (
        encode_selector(sp_id.selector)
        + tail
        + encode_mark(sp_id.mark)
        + encode_u32(Attr.IF_ID, sp_id.if_id)
    )


def decode_sp_id(
    buffer: Buffer, start: int, end: int, *, reader: Reader
) -> tuple[SpId | None, int]:
    """Id and index in a DELPOLICY or GETPOLICY payload; raises Malformed.

    The id is None when the SP is named by its index alone.
    """
    need(start, end, SP_ID_SIZE, "xfrm_userpolicy_id")
    found = find_attributes(buffer, start + SP_ID_SIZE, end)
    index, direction = _SP_ID_TAIL.unpack_from(buffer, start + SELECTOR_SIZE)
    selector = reader.selector(bytes(buffer[start : start + SELECTOR_SIZE]))
    if selector is None:
        return None, index
    place = found.get(Attr.IF_ID)
    if_id = None if place is None else IfId(decode_u32(buffer, *place))
    mark = read_mark(buffer, found)
    return SpId(selector, sp_direction(direction), mark, if_id), index


@dataclass(frozen=True, slots=True)
class SpiRequest:
    """XFRM_MSG_ALLOCSPI: give a larval SA an SPI between two bounds, both included."""

    message: SaMessage
    lowest: int
    highest: int


def encode_spi_request(request: SpiRequest) -> bytes:
    """Payload of ALLOCSPI."""
    body = encode_sa(request.message)
    span = _SPI_RANGE.pack(request.lowest, request.highest)
    return body[:USERSA_SIZE] + span + body[USERSA_SIZE:]


def decode_spi_request(buffer: Buffer, start: int, end: int, *, reader: Reader) -> SpiRequest:
    """Payload of ALLOCSPI; the kernel answers with NEWSA. Raises Malformed."""
    need(start, end, _SPI_REQUEST_SIZE, "xfrm_userspi_info")
    lowest, highest = _SPI_RANGE.unpack_from(buffer, start + USERSA_SIZE)
    span = (start + _SPI_REQUEST_SIZE, end)
    return SpiRequest(read_sa_message(buffer, start, span, reader=reader), lowest, highest)


def decode_sa_flush(buffer: Buffer, start: int, end: int) -> Proto | None:
    """Protocol in a FLUSHSA payload, None for every one; raises Malformed."""
    need(start, end, 1, "xfrm_usersa_flush")
    number = buffer[start]
    return None if number in (0, _ANY_PROTO) else proto_of(number)


def decode_sp_flush(buffer: Buffer, start: int, end: int) -> int:
    """XFRM_POLICY_TYPE_* in a FLUSHPOLICY payload, 0 main and 1 sub; raises Malformed."""
    place = find_attributes(buffer, start, end).get(Attr.POLICY_TYPE)
    if place is None:
        return 0
    need(*place, 1, "XFRMA_POLICY_TYPE")
    return int(buffer[place[0]])


@dataclass(frozen=True, slots=True)
class SadCounts:
    """XFRM_MSG_NEWSADINFO: SAs, and hash buckets now and at most."""

    sas: int
    buckets: int
    max_buckets: int


@dataclass(frozen=True, slots=True)
class SpdCounts:
    """XFRM_MSG_NEWSPDINFO: SPs by direction, per-socket ones apart, and hash buckets."""

    inbound: int
    outbound: int
    forward: int
    socket_inbound: int
    socket_outbound: int
    socket_forward: int
    buckets: int
    max_buckets: int


def encode_counts_request() -> bytes:
    """Payload of GETSADINFO or GETSPDINFO: flags, of which none is known."""
    return bytes(4)


def decode_sad_counts(buffer: Buffer, start: int, end: int) -> SadCounts:
    """Payload of NEWSADINFO; raises Malformed."""
    found = find_attributes(buffer, start + 4, end)
    (sas,) = _numbers(buffer, found, _SAD_COUNT, 1)
    buckets, most = _numbers(buffer, found, _SAD_TABLE, 2)
    return SadCounts(sas, buckets, most)


def decode_spd_counts(buffer: Buffer, start: int, end: int) -> SpdCounts:
    """Payload of NEWSPDINFO; raises Malformed."""
    found = find_attributes(buffer, start + 4, end)
    return SpdCounts(
        *_numbers(buffer, found, _SPD_COUNT, 6), *_numbers(buffer, found, _SPD_TABLE, 2)
    )


def _numbers(buffer: Buffer, found: Found, attr: int, count: int) -> tuple[int, ...]:
    place = found.get(attr)
    if place is None:
        raise Malformed(f"the kernel's counts lack attribute {attr}")
    need(*place, 4 * count, f"attribute {attr}")
    return struct.unpack_from(f"={count}I", buffer, place[0])
