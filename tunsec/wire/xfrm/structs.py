"""Building blocks of XFRM messages: addresses, selectors, lifetimes, marks, offload, encap.

Encoders take model types; decoders live in `Reader`, which makes one object of equal bytes, so
that a dump of thousands of SAs builds few addresses. Padding is zero, as the kernel's own.
"""

import ipaddress
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tunsec.model.aead import Aead
from tunsec.model.names import Address, Mark, Network, Proto
from tunsec.model.sa import IpsecMode, Lifetimes, Offload, OffloadKind, SaDirection
from tunsec.model.selector import ANY_PORT, PortMatch, Selector
from tunsec.wire.netlink import Buffer, Malformed, encode_attribute
from tunsec.wire.xfrm.consts import AF_INET, AF_INET6, AF_UNSPEC, INFINITE, Attr, OffloadFlag

SELECTOR_SIZE: Final = 56
MEMORY: Final = 1 << 16
"""Addresses, selectors and lifetimes that a Reader remembers, of each."""
LIFETIME: Final = struct.Struct("=8Q")
USAGE: Final = struct.Struct("=4Q")
MARK: Final = struct.Struct("=II")
U32: Final = struct.Struct("=I")
PORTS: Final = struct.Struct("!4H")
_SELECTOR_HEAD: Final = struct.Struct("!16s16s4H")
_SELECTOR_TAIL: Final = struct.Struct("=HBBB3xiI")
_OFFLOAD: Final = struct.Struct("=iB3x")
_ENCAP: Final = struct.Struct("!2x2H2x16s")

PROTO_NUMBER: Final[dict[Proto, int]] = {
    Proto.ESP: 50,
    Proto.AH: 51,
    Proto.COMP: 108,
    Proto.ROUTE2: 43,
    Proto.HAO: 60,
}
PROTO_OF: Final = {number: proto for proto, number in PROTO_NUMBER.items()}
MODE_NUMBER: Final[dict[IpsecMode, int]] = {
    IpsecMode.TRANSPORT: 0,
    IpsecMode.TUNNEL: 1,
    IpsecMode.ROUTEOPTIMIZATION: 2,
    IpsecMode.IN_TRIGGER: 3,
    IpsecMode.BEET: 4,
    IpsecMode.IPTFS: 5,
}
MODE_OF: Final = {number: mode for mode, number in MODE_NUMBER.items()}
SA_DIRECTION_NUMBER: Final[dict[SaDirection, int]] = {
    SaDirection.INBOUND: 1,
    SaDirection.OUTBOUND: 2,
}
SA_DIRECTION_OF: Final = {number: way for way, number in SA_DIRECTION_NUMBER.items()}


@dataclass(frozen=True, slots=True)
class Encap:
    """struct xfrm_encap_tmpl: ESP in UDP (`kind` 2, RFC 3948) or TCP (7, RFC 8229)."""

    kind: int
    sport: int
    dport: int
    original: bytes = bytes(16)
    """encap_oa, which the kernel stores and never reads."""


def family_of(address: Address | Network) -> int:
    """AF_INET or AF_INET6."""
    return AF_INET if address.version == 4 else AF_INET6


def encode_selector(selector: Selector) -> bytes:
    """struct xfrm_selector, 56 bytes."""
    head = _SELECTOR_HEAD.pack(
        selector.dst.network_address.packed,
        selector.src.network_address.packed,
        selector.dport.port,
        selector.dport.mask,
        selector.sport.port,
        selector.sport.mask,
    )
    if selector.src.version != selector.dst.version:
        raise Malformed(f"selector {selector} mixes IP versions")
    return head + _SELECTOR_TAIL.pack(
        family_of(selector.dst),
        selector.dst.prefixlen,
        selector.src.prefixlen,
        selector.proto,
        selector.ifindex,
        selector.user,
    )


def empty_selector(family: int) -> bytes:
    """A selector that covers everything of a family."""
    return bytes(40) + _SELECTOR_TAIL.pack(family, 0, 0, 0, 0, 0)


def encode_lifetimes(lifetimes: Lifetimes) -> bytes:
    """struct xfrm_lifetime_cfg, 64 bytes."""
    return LIFETIME.pack(
        *(
            INFINITE if limit is None else limit
            for limit in (
                lifetimes.soft_bytes,
                lifetimes.hard_bytes,
                lifetimes.soft_packets,
                lifetimes.hard_packets,
            )
        ),
        lifetimes.soft_seconds or 0,
        lifetimes.hard_seconds or 0,
        lifetimes.soft_use_seconds or 0,
        lifetimes.hard_use_seconds or 0,
    )


def encode_mark(mark: Mark | None) -> bytes:
    """XFRMA_MARK, or nothing; raises Malformed for a mark that could match no packet."""
    if mark is None:
        return b""
    if mark.value & ~mark.mask or not mark.mask:
        raise Malformed(f"mark {mark} matches nothing: its value has bits outside its mask")
    return encode_attribute(Attr.MARK, MARK.pack(mark.value, mark.mask))


def encode_u32(kind: Attr, number: int | None) -> bytes:
    """A 32-bit attribute, or nothing."""
    return b"" if number is None else encode_attribute(kind, U32.pack(number))


def encode_offload(offload: Offload | None) -> bytes:
    """XFRMA_OFFLOAD_DEV, or nothing."""
    if offload is None:
        return b""
    flags = OffloadFlag.INBOUND if offload.inbound else OffloadFlag(0)
    if offload.kind is OffloadKind.PACKET:
        flags |= OffloadFlag.PACKET
    return encode_attribute(Attr.OFFLOAD_DEV, _OFFLOAD.pack(offload.ifindex, flags))


def encode_encap(encap: Encap | None) -> bytes:
    """XFRMA_ENCAP, or nothing."""
    if encap is None:
        return b""
    body = _ENCAP.pack(encap.sport, encap.dport, encap.original)
    return encode_attribute(Attr.ENCAP, struct.pack("=H", encap.kind) + body[2:])


def decode_mark(buffer: Buffer, start: int, end: int) -> Mark | None:
    """XFRMA_MARK; value and mask 0 is no mark, as the kernel has it."""
    need(start, end, MARK.size, "XFRMA_MARK")
    value, mask = MARK.unpack_from(buffer, start)
    return Mark(value, mask) if value or mask else None


def decode_u32(buffer: Buffer, start: int, end: int) -> int:
    """A 32-bit attribute."""
    need(start, end, U32.size, "32-bit attribute")
    return int(U32.unpack_from(buffer, start)[0])


def decode_offload(buffer: Buffer, start: int, end: int) -> Offload:
    """XFRMA_OFFLOAD_DEV."""
    need(start, end, 5, "XFRMA_OFFLOAD_DEV")
    ifindex, flags = struct.unpack_from("=iB", buffer, start)
    kind = OffloadKind.PACKET if flags & OffloadFlag.PACKET else OffloadKind.CRYPTO
    return Offload(kind, ifindex, bool(flags & OffloadFlag.INBOUND))


def decode_encap(buffer: Buffer, start: int, end: int) -> Encap:
    """XFRMA_ENCAP."""
    need(start, end, _ENCAP.size, "XFRMA_ENCAP")
    (kind,) = struct.unpack_from("=H", buffer, start)
    sport, dport, original = _ENCAP.unpack_from(buffer, start)
    return Encap(kind, sport, dport, original)


def need(start: int, end: int, size: int, what: str) -> None:
    """Raise Malformed unless `size` bytes lie between `start` and `end`."""
    if end - start < size:
        raise Malformed(f"{what} has {end - start} bytes, {size} are needed")


def proto_of(number: int) -> Proto:
    """The IPsec protocol of a number; raises Malformed."""
    proto = PROTO_OF.get(number)
    if proto is None:
        raise Malformed(f"IPsec protocol {number} is unknown")
    return proto


def mode_of(number: int) -> IpsecMode:
    """The mode of an XFRM_MODE_* number; raises Malformed."""
    mode = MODE_OF.get(number)
    if mode is None:
        raise Malformed(f"IPsec mode {number} is unknown")
    return mode


class Reader:
    """Decodes building blocks, equal bytes to the same object.

    One that is kept makes the next dump of the same SAs and SPs quicker; it forgets everything
    before it holds more than MEMORY of a kind.
    """

    __slots__ = ("_addresses", "_aeads", "_lifetimes", "_networks", "_selectors")

    def __init__(self) -> None:
        self._addresses: dict[tuple[bytes, int], Address] = {}
        self._networks: dict[tuple[bytes, int, int], Network] = {}
        self._selectors: dict[bytes, Selector | None] = {}
        self._lifetimes: dict[bytes, Lifetimes] = {}
        self._aeads: dict[bytes, Aead | None] = {}

    def address(self, raw: bytes, family: int) -> Address:
        """xfrm_address_t (16 bytes) under a family; raises Malformed."""
        found = self._addresses.get((raw, family))
        if found is None:
            if len(self._addresses) >= MEMORY:
                self.forget()
            found = _address(raw, family)
            self._addresses[raw, family] = found
        return found

    def selector(self, raw: bytes) -> Selector | None:
        """struct xfrm_selector (56 bytes); None has no family (AF_UNSPEC). Raises Malformed.

        Address bits beyond the prefix are dropped: they match nothing.
        """
        try:
            return self._selectors[raw]
        except KeyError:
            if len(self._selectors) >= MEMORY:
                self.forget()
            found = self._selectors[raw] = self._selector(raw)
            return found

    def forget(self) -> None:
        """Drop everything remembered."""
        self._addresses.clear()
        self._networks.clear()
        self._selectors.clear()
        self._lifetimes.clear()
        self._aeads.clear()

    def _selector(self, raw: bytes) -> Selector | None:
        dst, src, dport, dport_mask, sport, sport_mask = _SELECTOR_HEAD.unpack_from(raw)
        family, dst_bits, src_bits, proto, ifindex, user = _SELECTOR_TAIL.unpack_from(raw, 40)
        if family == AF_UNSPEC:
            return None
        return Selector(
            self._network(src, family, src_bits),
            self._network(dst, family, dst_bits),
            proto,
            PortMatch(sport, sport_mask) if sport_mask or sport else ANY_PORT,
            PortMatch(dport, dport_mask) if dport_mask or dport else ANY_PORT,
            ifindex,
            user,
        )

    def _network(self, raw: bytes, family: int, bits: int) -> Network:
        found = self._networks.get((raw, family, bits))
        if found is None:
            found = _network(raw, family, bits)
            self._networks[raw, family, bits] = found
        return found

    def lifetimes(self, raw: bytes) -> Lifetimes:
        """struct xfrm_lifetime_cfg (64 bytes)."""
        found = self._lifetimes.get(raw)
        if found is None:
            if len(self._lifetimes) >= MEMORY:
                self.forget()
            limits = LIFETIME.unpack(raw)
            counts = [None if limit == INFINITE else limit for limit in limits[:4]]
            spans = [limit or None for limit in limits[4:]]
            found = self._lifetimes[raw] = Lifetimes(*counts, *spans)
        return found

    def aead(self, head: bytes, parse: Callable[[bytes], Aead | None]) -> Aead | None:
        """What `parse` makes of struct xfrm_algo_aead up to its key."""
        try:
            return self._aeads[head]
        except KeyError:
            found = self._aeads[head] = parse(head)
            return found


def _address(raw: bytes, family: int) -> Address:
    if family == AF_INET:
        return ipaddress.IPv4Address(raw[:4])
    if family == AF_INET6:
        return ipaddress.IPv6Address(raw)
    raise Malformed(f"address family {family} is neither AF_INET nor AF_INET6")


def _network(raw: bytes, family: int, bits: int) -> Network:
    if family == AF_INET and bits <= 32:
        return ipaddress.IPv4Network((raw[:4], bits), strict=False)
    if family == AF_INET6 and bits <= 128:
        return ipaddress.IPv6Network((raw, bits), strict=False)
    raise Malformed(f"prefix length {bits} does not fit address family {family}")
