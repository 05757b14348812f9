"""Connections as sock_diag tells of them: built by hand, cut anywhere, fuzzed."""

import contextlib
import ipaddress
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunsec.model.connection import Connection, Ends
from tunsec.wire import sock_diag
from tunsec.wire.netlink import Malformed, encode_attribute, encode_message, messages

ONE, TWO = ipaddress.ip_address("192.0.2.1"), ipaddress.ip_address("192.0.2.2")
MAPPED = b"\0" * 10 + b"\xff\xff"


def segments(segments_in: int, segments_out: int) -> bytes:
    return bytes(152) + struct.pack("=II", segments_in, segments_out) + bytes(80)


def told(family: int, state: int, src: bytes, dst: bytes, info: bytes | None) -> bytes:
    body = struct.pack("=BBBB", family, state, 0, 0)
    body += struct.pack("!HH", 16385, 32776) + src.ljust(16, b"\0") + dst.ljust(16, b"\0")
    body += struct.pack("=III", 0, 1, 2) + bytes(20)
    if info is not None:
        body += encode_attribute(2, info)
    return encode_message(sock_diag.SOCK_DIAG_BY_FAMILY, body, flags=0, seq=0)


def decoded(raw: bytes) -> Connection:
    message = next(messages(raw), None)
    if message is None:
        raise Malformed("no message")
    return sock_diag.decode_connection(raw, message)


@pytest.mark.parametrize(
    ("state", "alive"),
    [(1, True), (2, True), (3, True), (12, True), (7, False), (8, False), (6, False), (4, False)],
)
def test_a_connection_that_closes_is_over(state: int, alive: bool) -> None:
    raw = told(2, state, ONE.packed, TWO.packed, segments(1, 0))
    assert decoded(raw) == Connection(Ends(ONE, 16385, TWO, 32776), alive, True)


def test_what_a_dual_stack_socket_took_has_its_ipv4_addresses() -> None:
    raw = told(10, 1, MAPPED + ONE.packed, MAPPED + TWO.packed, segments(0, 0))
    assert decoded(raw) == Connection(Ends(ONE, 16385, TWO, 32776), True, False)


@pytest.mark.parametrize("info", [None, bytes(20)], ids=["without", "of an old kernel"])
def test_a_connection_that_does_not_say_so_has_carried_something(info: bytes | None) -> None:
    assert decoded(told(2, 7, ONE.packed, TWO.packed, info)).carried


@given(st.data())
def test_cut_or_changed_bytes_are_malformed_and_nothing_worse(data: st.DataObject) -> None:
    whole = told(10, 1, MAPPED + ONE.packed, MAPPED + TWO.packed, segments(1, 1))
    raw = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    for at in data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=4)):
        if at < len(raw):
            raw[at] = data.draw(st.integers(0, 255))
    if len(raw) >= 4:
        raw[:4] = struct.pack("=I", len(raw))
    with contextlib.suppress(Malformed):
        decoded(bytes(raw))
