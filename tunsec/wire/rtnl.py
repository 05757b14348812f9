"""rtnetlink, as much as tunsec asks of it: tunnel devices, addresses, the route to a peer.

Sources: include/uapi/linux/rtnetlink.h, if_link.h, if_addr.h. Integers are in host order; ports
travel in network order.
"""

import ipaddress
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from tunsec.model.flow import Kind
from tunsec.model.names import Address, Vni
from tunsec.wire.netlink import (
    Buffer,
    Flag,
    Malformed,
    Message,
    attribute_type,
    attributes,
    encode_attribute,
    encode_message,
    messages,
)

NETLINK_ROUTE: Final = 0
RTNLGRP_LINK: Final = 1
RTNLGRP_IPV4_IFADDR: Final = 5
RTNLGRP_IPV6_IFADDR: Final = 9

OVERLAY_KINDS: Final = (Kind.VXLAN, Kind.GENEVE)
"""Kinds of flow that a network device sends; their names are the kernel's (rtnl_link_ops.kind)."""


class Rtm(IntEnum):
    """RTM_*."""

    NEWLINK = 16
    DELLINK = 17
    GETLINK = 18
    NEWADDR = 20
    DELADDR = 21
    GETADDR = 22
    NEWROUTE = 24
    GETROUTE = 26


class _Ifla(IntEnum):
    IFNAME = 3
    MTU = 4
    LINKINFO = 18
    STATS64 = 23
    EXT_MASK = 29
    LINK_NETNSID = 37


class _Ifa(IntEnum):
    ADDRESS = 1
    LOCAL = 2
    FLAGS = 8


class _Rta(IntEnum):
    DST = 1
    SRC = 2
    OIF = 4
    METRICS = 8


class _Vxlan(IntEnum):
    ID = 1
    GROUP = 2
    LINK = 3
    LOCAL = 4
    PORT = 15
    GROUP6 = 16
    LOCAL6 = 17
    COLLECT_METADATA = 25


class _Geneve(IntEnum):
    ID = 1
    REMOTE = 2
    PORT = 5
    COLLECT_METADATA = 6
    REMOTE6 = 7


_IFINFOMSG: Final = struct.Struct("=BxHiII")
_IFADDRMSG: Final = struct.Struct("=BBBBI")
_RTMSG: Final = struct.Struct("=BBBBBBBBI")

_INFO_KIND: Final = 1
_INFO_DATA: Final = 2
_RTAX_MTU: Final = 2
_RTEXT_FILTER_SKIP_STATS: Final = 1 << 3
_IFA_F_DADFAILED: Final = 0x08
_RTN_UNICAST: Final = 1
_RTM_F_LOOKUP_TABLE: Final = 0x1000
_AF_INET: Final = 2
_AF_INET6: Final = 10

_IFF_UP: Final = 0x1
_IFF_NOARP: Final = 0x80
_IFA_F_NODAD: Final = 0x02
_STATS64: Final = struct.Struct("=18Q")  # struct rtnl_link_stats64 up to tx_carrier_errors
_TX_PACKETS, _COLLISIONS, _TX_CARRIER_ERRORS = 1, 9, 17

_VNI: Final = 1  # of both kinds
_NEW_OVERLAY: Final = {
    Kind.VXLAN: (_Vxlan.GROUP, _Vxlan.GROUP6, _Vxlan.PORT),
    Kind.GENEVE: (_Geneve.REMOTE, _Geneve.REMOTE6, _Geneve.PORT),
}

Found = Mapping[int, bytes]


@dataclass(frozen=True, slots=True)
class Link:
    """A network device; the tunnel's fields are given for OVERLAY_KINDS only.

    `elsewhere` is true when the device sends from another network namespace than it stands in.
    `bound_ifindex` is the underlay device that it was tied to.
    """

    ifindex: int
    name: str
    mtu: int
    kind: Kind | None
    elsewhere: bool
    port: int = 0
    vni: Vni | None = None
    local: Address | None = None
    remote: Address | None = None
    group: Address | None = None
    external: bool = False
    bound_ifindex: int | None = None


@dataclass(frozen=True, slots=True)
class Sent:
    """What became of the packets that a tunnel device was given: sent on, without a way to its
    remote, or with a way that leads back into the device itself."""

    packets: int
    no_way: int
    circular: int


@dataclass(frozen=True, slots=True)
class Route:
    """The answer to a route look-up: the device that a packet would leave by, and an MTU if the
    route names one."""

    ifindex: int | None
    mtu: int | None


@dataclass(frozen=True, slots=True)
class LinkNotice:
    """A device, or an address of it, changed; the name is not told for addresses."""

    ifindex: int
    name: str | None


def encode_dump_links(kind: Kind, *, seq: int) -> bytes:
    """Ask for all devices of a kind; older kernels answer with devices of every kind."""
    info = encode_attribute(_INFO_KIND, kind.value.encode() + b"\0")
    body = (
        _IFINFOMSG.pack(0, 0, 0, 0, 0)
        + encode_attribute(_Ifla.EXT_MASK, struct.pack("=I", _RTEXT_FILTER_SKIP_STATS))
        + encode_attribute(_Ifla.LINKINFO, info)
    )
    return encode_message(Rtm.GETLINK, body, flags=Flag.REQUEST | Flag.DUMP, seq=seq)


def encode_get_link(ifindex: int, *, stats: bool = False, seq: int) -> bytes:
    """Ask for one device, with or without its counters."""
    wanted = 0 if stats else _RTEXT_FILTER_SKIP_STATS
    mask = encode_attribute(_Ifla.EXT_MASK, struct.pack("=I", wanted))
    body = _IFINFOMSG.pack(0, 0, ifindex, 0, 0) + mask
    return encode_message(Rtm.GETLINK, body, flags=Flag.REQUEST, seq=seq)


def encode_dump_addresses(*, seq: int) -> bytes:
    """Ask for all addresses of both families."""
    body = _IFADDRMSG.pack(0, 0, 0, 0, 0)
    return encode_message(Rtm.GETADDR, body, flags=Flag.REQUEST | Flag.DUMP, seq=seq)


def encode_get_route(to: Address, *, seq: int, source: Address | None = None) -> bytes:
    """Ask which way a packet to an address would go, sent from `source` if that is given."""
    family = _AF_INET if to.version == 4 else _AF_INET6
    source_bits = 0 if source is None else source.max_prefixlen
    body = _RTMSG.pack(family, to.max_prefixlen, source_bits, 0, 0, 0, 0, 0, _RTM_F_LOOKUP_TABLE)
    body += encode_attribute(_Rta.DST, to.packed)
    if source is not None:
        body += encode_attribute(_Rta.SRC, source.packed)
    return encode_message(Rtm.GETROUTE, body, flags=Flag.REQUEST, seq=seq)


def encode_new_overlay(
    kind: Kind, *, name: str, vni: Vni, remote: Address, port: int, up: bool = False, seq: int
) -> bytes:
    """Make a tunnel device of one of OVERLAY_KINDS; raises Malformed for another.

    One that is `up` at once looks for no neighbours: what it is given, it sends.
    """
    if kind not in _NEW_OVERLAY:
        raise Malformed(f"{kind} has no device")
    to, to6, port_kind = _NEW_OVERLAY[kind]
    details = (
        encode_attribute(_VNI, struct.pack("=I", vni))
        + encode_attribute(to if remote.version == 4 else to6, remote.packed)
        + encode_attribute(port_kind, struct.pack("!H", port))
    )
    info = encode_attribute(_INFO_KIND, kind.value.encode() + b"\0")
    info += encode_attribute(_INFO_DATA, details)
    state = _IFF_UP | _IFF_NOARP if up else 0
    body = (
        _IFINFOMSG.pack(0, 0, 0, state, state)
        + encode_attribute(_Ifla.IFNAME, name.encode() + b"\0")
        + encode_attribute(_Ifla.LINKINFO, info)
    )
    flags = Flag.REQUEST | Flag.ACK | Flag.CREATE | Flag.EXCL
    return encode_message(Rtm.NEWLINK, body, flags=flags, seq=seq)


def encode_remove_link(name: str, *, seq: int) -> bytes:
    """Remove a device."""
    body = _IFINFOMSG.pack(0, 0, 0, 0, 0)
    body += encode_attribute(_Ifla.IFNAME, name.encode() + b"\0")
    return encode_message(Rtm.DELLINK, body, flags=Flag.REQUEST | Flag.ACK, seq=seq)


def encode_new_address(ifindex: int, address: Address, *, prefix: int, seq: int) -> bytes:
    """Give a device an address, in use at once, and a route to its neighbours."""
    family = _AF_INET if address.version == 4 else _AF_INET6
    body = _IFADDRMSG.pack(family, prefix, _IFA_F_NODAD, 0, ifindex)
    body += encode_attribute(_Ifa.LOCAL, address.packed)
    body += encode_attribute(_Ifa.ADDRESS, address.packed)
    flags = Flag.REQUEST | Flag.ACK | Flag.CREATE | Flag.EXCL
    return encode_message(Rtm.NEWADDR, body, flags=flags, seq=seq)


def decode_sent(buffer: Buffer, message: Message) -> Sent:
    """The counters of an RTM_NEWLINK message that was asked for with them; raises Malformed.

    Tunnels count a packet without a way to the remote as an error of the carrier, and one whose
    way is circular as a collision (geneve_xmit, vxlan_xmit_one).
    """
    found = _found(buffer, message.start + _IFINFOMSG.size, message.end)
    raw = found.get(_Ifla.STATS64, b"")
    if len(raw) < _STATS64.size:
        raise Malformed(f"counters have {len(raw)} bytes")
    counts = _STATS64.unpack_from(raw)
    return Sent(counts[_TX_PACKETS], counts[_TX_CARRIER_ERRORS], counts[_COLLISIONS])


def decode_link(buffer: Buffer, message: Message) -> Link:
    """An RTM_NEWLINK message; raises Malformed."""
    _, _, ifindex, _, _ = _fixed(_IFINFOMSG, buffer, message)
    found = _found(buffer, message.start + _IFINFOMSG.size, message.end)
    info = _nested(found.get(_Ifla.LINKINFO, b""))
    name = info.get(_INFO_KIND, b"").split(b"\0")[0].decode(errors="replace")
    kind = next((kind for kind in OVERLAY_KINDS if kind.value == name), None)
    link = Link(
        ifindex=ifindex,
        name=found.get(_Ifla.IFNAME, b"").split(b"\0")[0].decode(errors="surrogateescape"),
        mtu=_u32(found.get(_Ifla.MTU)) or 0,
        kind=kind,
        elsewhere=_Ifla.LINK_NETNSID in found,
    )
    data = _nested(info.get(_INFO_DATA, b""))
    match kind:
        case Kind.VXLAN:
            return _vxlan(link, data)
        case Kind.GENEVE:
            return _geneve(link, data)
        case _:
            return link


def decode_address(buffer: Buffer, message: Message) -> tuple[Address, int] | None:
    """The address of an RTM_NEWADDR message and its device's ifindex, None when it is unusable;
    raises Malformed.

    IFA_LOCAL is this host's end; IPv6 and broadcast links without a peer have IFA_ADDRESS alone.
    """
    _, _, short_flags, _, ifindex = _fixed(_IFADDRMSG, buffer, message)
    found = _found(buffer, message.start + _IFADDRMSG.size, message.end)
    flags = _u32(found.get(_Ifa.FLAGS)) or short_flags
    raw = found.get(_Ifa.LOCAL) or found.get(_Ifa.ADDRESS)
    if raw is None or flags & _IFA_F_DADFAILED:
        return None
    return _address(raw), ifindex


def decode_route(buffer: Buffer, message: Message) -> Route:
    """An RTM_NEWROUTE message; raises Malformed. A route that leads nowhere has no device."""
    kind = _fixed(_RTMSG, buffer, message)[7]
    found = _found(buffer, message.start + _RTMSG.size, message.end)
    if kind != _RTN_UNICAST:
        return Route(None, None)
    metrics = _nested(found.get(_Rta.METRICS, b""))
    return Route(_u32(found.get(_Rta.OIF)), _u32(metrics.get(_RTAX_MTU)) or None)


def decode_link_notices(datagram: bytes) -> tuple[LinkNotice, ...]:
    """What changed, each device once, in order; raises Malformed."""
    notices: dict[int, str | None] = {}
    for message in messages(datagram):
        if message.kind in (Rtm.NEWLINK, Rtm.DELLINK):
            _, _, ifindex, _, _ = _fixed(_IFINFOMSG, datagram, message)
            found = _found(datagram, message.start + _IFINFOMSG.size, message.end)
            name = found.get(_Ifla.IFNAME, b"").split(b"\0")[0].decode(errors="surrogateescape")
            notices[ifindex] = name or notices.get(ifindex)
        elif message.kind in (Rtm.NEWADDR, Rtm.DELADDR):
            ifindex = _fixed(_IFADDRMSG, datagram, message)[4]
            notices.setdefault(ifindex, None)
    return tuple(LinkNotice(ifindex, name) for ifindex, name in notices.items())


def _vxlan(link: Link, data: Found) -> Link:
    external = any(data.get(_Vxlan.COLLECT_METADATA, b""))
    return Link(
        ifindex=link.ifindex,
        name=link.name,
        mtu=link.mtu,
        kind=link.kind,
        elsewhere=link.elsewhere,
        port=_port(data.get(_Vxlan.PORT)),
        vni=None if external else _vni(data.get(_Vxlan.ID)),
        local=_unicast(data.get(_Vxlan.LOCAL) or data.get(_Vxlan.LOCAL6)),
        remote=_unicast(data.get(_Vxlan.GROUP) or data.get(_Vxlan.GROUP6)),
        group=_group(data.get(_Vxlan.GROUP) or data.get(_Vxlan.GROUP6)),
        external=external,
        bound_ifindex=_u32(data.get(_Vxlan.LINK)) or None,
    )


def _geneve(link: Link, data: Found) -> Link:
    external = _Geneve.COLLECT_METADATA in data
    return Link(
        ifindex=link.ifindex,
        name=link.name,
        mtu=link.mtu,
        kind=link.kind,
        elsewhere=link.elsewhere,
        port=_port(data.get(_Geneve.PORT)),
        vni=None if external else _vni(data.get(_Geneve.ID)),
        remote=_unicast(data.get(_Geneve.REMOTE) or data.get(_Geneve.REMOTE6)),
        external=external,
    )


def _fixed(shape: struct.Struct, buffer: Buffer, message: Message) -> tuple[int, ...]:
    if message.end - message.start < shape.size:
        raise Malformed(f"message {message.kind} has {message.end - message.start} bytes")
    return shape.unpack_from(buffer, message.start)


def _found(buffer: Buffer, start: int, end: int) -> Found:
    return {
        attribute_type(kind): bytes(buffer[first:last])
        for kind, first, last in attributes(buffer, start, end)
    }


def _nested(payload: bytes) -> Found:
    return _found(payload, 0, len(payload))


def _u32(raw: bytes | None) -> int | None:
    return None if raw is None else int(_exactly(raw, "=I"))


def _port(raw: bytes | None) -> int:
    return 0 if raw is None else int(_exactly(raw, "!H"))


def _vni(raw: bytes | None) -> Vni | None:
    return None if raw is None else Vni(int(_exactly(raw, "=I")))


def _exactly(raw: bytes, shape: str) -> int:
    if len(raw) != struct.calcsize(shape):
        raise Malformed(f"attribute has {len(raw)} bytes, {struct.calcsize(shape)} fit")
    return int(struct.unpack(shape, raw)[0])


def _address(raw: bytes) -> Address:
    if len(raw) not in (4, 16):
        raise Malformed(f"address has {len(raw)} bytes")
    return ipaddress.ip_address(raw)


def _unicast(raw: bytes | None) -> Address | None:
    """The address, or None for none, the unspecified one and groups."""
    address = None if raw is None else _address(raw)
    if address is None or address.is_unspecified or address.is_multicast:
        return None
    return address


def _group(raw: bytes | None) -> Address | None:
    """The address if it is a group."""
    address = None if raw is None else _address(raw)
    return address if address is not None and address.is_multicast else None
