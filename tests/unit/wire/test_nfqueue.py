"""Queued packets and verdicts: built by hand, cut anywhere, fuzzed."""

import contextlib
import ipaddress
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunsec.model.connection import Ends, Syn
from tunsec.model.names import Spi
from tunsec.wire import nfqueue
from tunsec.wire.netlink import Malformed, encode_attribute, encode_message, messages
from tunsec.wire.nfqueue import OUTBOUND_BIT, QUEUE, Queued, Verdict

V4 = (ipaddress.ip_address("192.0.2.1"), ipaddress.ip_address("192.0.2.2"))
V6 = (ipaddress.ip_address("2001:db8::1"), ipaddress.ip_address("2001:db8::2"))
LOCAL_IN, LOCAL_OUT = 1, 3


def tcp(flags: int, *, sequence: int = 7) -> bytes:
    return struct.pack("!HHIIBBHHH", 32776, 16385, sequence, 0, 0x50, flags, 64, 0, 0)


def ipv4(payload: bytes, *, options: bytes = b"", proto: int = 6) -> bytes:
    first = 0x40 | (20 + len(options)) // 4
    head = struct.pack("!BBHHHBBH", first, 0, 20 + len(payload), 0, 0, 64, proto, 0)
    return head + V4[0].packed + V4[1].packed + options + payload


def ipv6(payload: bytes) -> bytes:
    return (
        struct.pack("!IHBB", 6 << 28, len(payload), 6, 64) + V6[0].packed + V6[1].packed + payload
    )


def queued(payload: bytes, hook: int, mark: int | None = None) -> bytes:
    body = struct.pack("!BBH", 2, 0, QUEUE)
    body += encode_attribute(1, struct.pack("!IHB", 9, 0x0800, hook))
    if mark is not None:
        body += encode_attribute(3, struct.pack("!I", mark))
    return encode_message(nfqueue.PACKET, body + encode_attribute(10, payload), flags=0, seq=0)


def decoded(raw: bytes) -> Queued:
    message = next(messages(raw), None)
    if message is None:
        raise Malformed("no message")
    return nfqueue.decode_packet(raw, message)


def test_an_outbound_syn_gets_back_the_mark_that_it_had() -> None:
    found = decoded(queued(ipv4(tcp(0x02)), LOCAL_OUT, OUTBOUND_BIT | 5))
    assert found.syn == Syn(9, Ends(V4[0], 32776, V4[1], 16385), True, 7, mark=5)


@pytest.mark.parametrize("ecn", [0, 0xC0])
def test_an_inbound_syn_tells_by_which_sa_it_came(ecn: int) -> None:
    found = decoded(queued(ipv6(tcp(0x02 | ecn)), LOCAL_IN, 0xC60CD4D5))
    ends = Ends(V6[1], 16385, V6[0], 32776)
    assert found.syn == Syn(9, ends, False, 7, spi=Spi(0xC60CD4D5))


def test_options_of_ip_are_skipped() -> None:
    assert decoded(queued(ipv4(tcp(0x02), options=b"\1" * 8), LOCAL_OUT, 0)).syn is not None


@pytest.mark.parametrize(
    "payload",
    [ipv4(tcp(0x12)), ipv4(tcp(0x10)), ipv4(tcp(0x02), proto=17), b"", b"\x45", ipv4(b"")],
    ids=["SYN/ACK", "ACK", "UDP", "nothing", "cut", "no TCP"],
)
def test_what_is_no_syn_has_an_id_to_drop_it_by(payload: bytes) -> None:
    assert decoded(queued(payload, LOCAL_OUT, 0)) == Queued(9, None)


def test_a_verdict_sets_the_mark_and_a_drop_none() -> None:
    syn = Syn(9, Ends(V4[0], 32776, V4[1], 16385), True, 7, mark=5)
    let = nfqueue.encode_verdict(syn, Verdict.ACCEPT, seq=3)
    drop = nfqueue.encode_verdict(syn, Verdict.DROP, seq=3)
    assert struct.pack("!II", 1, 9) in let
    assert encode_attribute(3, struct.pack("!I", 5)) in let
    assert drop == nfqueue.encode_drop(9, seq=3)
    assert len(drop) < len(let)


@given(
    st.sampled_from([queued(ipv4(tcp(2)), LOCAL_OUT, 0), queued(ipv6(tcp(2)), LOCAL_IN, 3)]),
    st.data(),
)
def test_cut_or_changed_bytes_are_malformed_and_nothing_worse(
    whole: bytes, data: st.DataObject
) -> None:
    raw = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    for at in data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=4)):
        if at < len(raw):
            raw[at] = data.draw(st.integers(0, 255))
    if len(raw) >= 4:
        raw[:4] = struct.pack("=I", len(raw))
    with contextlib.suppress(Malformed):
        decoded(bytes(raw))
