"""rtnetlink and nf_tables notices: built by hand, cut anywhere, fuzzed."""

import contextlib
import ipaddress
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunsec.model.flow import Kind
from tunsec.model.names import Vni
from tunsec.wire import rtnl
from tunsec.wire.netlink import Malformed, encode_attribute, encode_message, messages
from tunsec.wire.nft_notices import decode_touched_tables
from tunsec.wire.rtnl import Link, LinkNotice, Route, Rtm


def u32(kind: int, value: int) -> bytes:
    return encode_attribute(kind, struct.pack("=I", value))


def link_message(kind: str, data: bytes, *, more: bytes = b"", name: str = "tun0") -> bytes:
    info = encode_attribute(1, kind.encode() + b"\0") + encode_attribute(2 | 0x8000, data)
    body = struct.pack("=BxHiII", 0, 1, 7, 0, 0)
    body += encode_attribute(3, name.encode() + b"\0") + u32(4, 1450)
    return encode_message(Rtm.NEWLINK, body + encode_attribute(18, info) + more, flags=2, seq=1)


def decoded(raw: bytes) -> Link:
    message = next(messages(raw), None)
    if message is None:
        raise Malformed("no message")
    return rtnl.decode_link(raw, message)


VXLAN = u32(1, 41) + encode_attribute(2, bytes([192, 0, 2, 2])) + u32(3, 3)
VXLAN += encode_attribute(15, struct.pack("!H", 4789)) + encode_attribute(25, b"\0")
GENEVE = u32(1, 42) + encode_attribute(7, ipaddress.ip_address("2001:db8::2").packed)
GENEVE += encode_attribute(5, struct.pack("!H", 6081))


def test_a_vxlan_device() -> None:
    assert decoded(link_message("vxlan", VXLAN)) == Link(
        *(7, "tun0", 1450, Kind.VXLAN, False),
        port=4789, vni=Vni(41), remote=ipaddress.ip_address("192.0.2.2"), bound_ifindex=3,
    )  # fmt: skip


def test_a_geneve_device() -> None:
    assert decoded(link_message("geneve", GENEVE)) == Link(
        *(7, "tun0", 1450, Kind.GENEVE, False),
        port=6081, vni=Vni(42), remote=ipaddress.ip_address("2001:db8::2"),
    )  # fmt: skip


@pytest.mark.parametrize("kind", rtnl.OVERLAY_KINDS)
@pytest.mark.parametrize("remote", ["192.0.2.2", "2001:db8::2"])
def test_a_device_that_is_made_is_the_one_that_is_read(kind: Kind, remote: str) -> None:
    to = ipaddress.ip_address(remote)
    raw = rtnl.encode_new_overlay(kind, name="tun9", vni=Vni(7), remote=to, port=4799, seq=5)
    assert decoded(raw) == Link(0, "tun9", 0, kind, False, port=4799, vni=Vni(7), remote=to)


def test_other_kinds_have_no_device() -> None:
    to = ipaddress.ip_address("192.0.2.2")
    with pytest.raises(Malformed, match="rds-tcp has no device"):
        rtnl.encode_new_overlay(Kind.RDS_TCP, name="x", vni=Vni(7), remote=to, port=1, seq=5)


def test_an_external_device_has_no_vni_of_its_own() -> None:
    assert decoded(link_message("vxlan", VXLAN + encode_attribute(25, b"\1"))).vni is None
    external = decoded(link_message("geneve", GENEVE + encode_attribute(6, b"")))
    assert (external.external, external.vni) == (True, None)


def test_other_devices_are_just_devices() -> None:
    found = decoded(link_message("veth", b"", more=u32(37, 0)))
    assert found == Link(7, "tun0", 1450, None, True)


def test_a_group_is_no_peer() -> None:
    data = VXLAN + encode_attribute(2, bytes([239, 1, 1, 1]))
    found = decoded(link_message("vxlan", data))
    assert (found.remote, found.group) == (None, ipaddress.ip_address("239.1.1.1"))


def test_a_route_that_leads_nowhere_has_no_device() -> None:
    def route(kind: int) -> Route:
        body = struct.pack("=BBBBBBBBI", 2, 32, 0, 0, 254, 0, 0, kind, 0)
        body += u32(4, 3) + encode_attribute(8, u32(2, 1300))
        raw = encode_message(Rtm.NEWROUTE, body, flags=0, seq=1)
        return rtnl.decode_route(raw, next(messages(raw)))

    assert route(1) == Route(3, 1300)
    assert route(6) == Route(None, None)


def test_notices_name_each_device_once() -> None:
    address = struct.pack("=BBBBI", 2, 24, 0, 0, 7)
    raw = encode_message(Rtm.NEWADDR, address, flags=0, seq=0)
    raw += link_message("vxlan", VXLAN) + encode_message(Rtm.DELADDR, address, flags=0, seq=0)
    raw += encode_message(Rtm.DELADDR, address[:4] + struct.pack("=I", 9), flags=0, seq=0)
    assert rtnl.decode_link_notices(raw) == (LinkNotice(7, "tun0"), LinkNotice(9, None))


def test_touched_tables_are_named() -> None:
    def notice(kind: int, table: bytes) -> bytes:
        body = b"\1\0\0\0" + encode_attribute(2, b"x") + encode_attribute(1, table)
        return encode_message(kind, body, flags=0, seq=0)

    raw = notice(0x0A00, b"tunsec\0") + notice(0x0A06, b"nat\0") + notice(0x0B00, b"foreign\0")
    assert decode_touched_tables(raw) == {"tunsec", "nat"}


@given(st.sampled_from([link_message("vxlan", VXLAN), link_message("geneve", GENEVE)]), st.data())
def test_cut_or_changed_bytes_are_malformed_and_nothing_worse(
    whole: bytes, data: st.DataObject
) -> None:
    raw = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    for at in data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=4)):
        if at < len(raw):
            raw[at] = data.draw(st.integers(0, 255))
    raw = bytearray(struct.pack("=I", len(raw))) + raw[4:] if len(raw) >= 4 else raw
    for decode in (decoded, rtnl.decode_link_notices, decode_touched_tables):
        with contextlib.suppress(Malformed):
            decode(bytes(raw))


@given(st.binary(max_size=200))
def test_any_bytes_are_malformed_and_nothing_worse(raw: bytes) -> None:
    for decode in (rtnl.decode_link_notices, decode_touched_tables):
        with contextlib.suppress(Malformed):
            decode(raw)


def test_a_port_of_the_wrong_size_is_malformed() -> None:
    with pytest.raises(Malformed):
        decoded(link_message("vxlan", encode_attribute(15, b"\0\0\0")))
