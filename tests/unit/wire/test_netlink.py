"""Netlink framing: what is framed comes back, and no length is believed unchecked."""

import struct
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.wire import xfrm_strategies as some
from tests.unit.wire.golden_bytes import golden
from tunsec.wire.netlink import (
    Answer,
    Control,
    Dump,
    Flag,
    Malformed,
    attributes,
    decode_answer,
    encode_attribute,
    encode_message,
    messages,
)

u16 = st.integers(0, 0xFFFF)
u32 = st.integers(0, 0xFFFF_FFFF)


@some.patient
@given(
    st.lists(
        st.tuples(u16, u16, u32, u32, st.binary(max_size=40).map(lambda b: b + bytes(-len(b) % 4)))
    )
)
def test_messages_that_are_framed_come_back(
    wanted: list[tuple[int, int, int, int, bytes]],
) -> None:
    raw = b"".join(
        encode_message(kind, payload, flags=flags, seq=seq, portid=portid)
        for kind, flags, seq, portid, payload in wanted
    )
    assert [
        (one.kind, one.flags, one.seq, one.portid, raw[one.start : one.end])
        for one in messages(raw)
    ] == wanted


@some.patient
@given(st.lists(st.tuples(u16, st.binary(max_size=70))))
def test_attributes_that_are_framed_come_back(wanted: list[tuple[int, bytes]]) -> None:
    raw = b"".join(encode_attribute(kind, payload) for kind, payload in wanted)
    assert len(raw) % 4 == 0
    found = [(kind, raw[first:last]) for kind, first, last in attributes(raw, 0, len(raw))]
    assert found == wanted


@some.patient
@given(st.binary(max_size=200))
def test_hostile_bytes_are_parsed_or_malformed(raw: bytes) -> None:
    for parse in (lambda: list(messages(raw)), lambda: list(attributes(raw, 0, len(raw)))):
        with suppress(Malformed):
            parse()


def test_a_length_beyond_the_datagram_is_malformed() -> None:
    with pytest.raises(Malformed, match="claims 24 of 20 bytes"):
        list(messages(struct.pack("=IHHIII", 24, 2, 0, 1, 0, 0)))


def test_a_length_shorter_than_its_own_header_is_malformed() -> None:
    with pytest.raises(Malformed, match="claims 3 of 4"):
        list(attributes(struct.pack("=HH", 3, 1), 0, 4))


def test_an_attribute_too_long_for_its_length_field_is_malformed() -> None:
    with pytest.raises(Malformed, match="at most 65535"):
        encode_attribute(1, bytes(65532))


def test_the_kernels_own_words_are_read() -> None:
    _, raw, message = golden("kernel_error_text")
    assert decode_answer(raw, message) == Answer(77, 22, "Invalid address family")


def test_an_answer_without_words() -> None:
    _, raw, message = golden("kernel_error_plain")
    assert decode_answer(raw, message) == Answer(78, 3)


def test_an_answer_that_repeats_the_whole_request() -> None:
    _, raw, message = golden("kernel_error_uncapped")
    assert message.end - message.start == 4 + 16 + 224
    assert decode_answer(raw, message) == Answer(79, 22)


def part(kind: int, payload: bytes = b"", *, flags: int = 0, seq: int = 7) -> bytes:
    return encode_message(kind, payload, flags=Flag.MULTI | flags, seq=seq)


DONE = part(Control.DONE, bytes(4))


def test_a_dump_goes_on_until_it_is_done() -> None:
    dump = Dump(7)
    stray = part(Control.DONE, bytes(4), seq=6)
    first = part(0x10, b"abcd") + part(Control.NOOP) + stray + part(0x10, b"efgh")
    assert [first[one.start : one.end] for one in dump.feed(first)] == [b"abcd", b"efgh"]
    ended = dump.answer is not None
    assert not ended
    assert list(dump.feed(DONE)) == []
    assert dump.answer == Answer(7, 0)
    assert not dump.interrupted


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_dump_that_changed_under_way_says_so(place: int) -> None:
    kinds = [(0x10, b""), (0x10, b""), (Control.DONE, bytes(4))]
    raw = b"".join(
        part(kind, payload, flags=Flag.DUMP_INTR if at == place else 0)
        for at, (kind, payload) in enumerate(kinds)
    )
    dump = Dump(7)
    assert len(list(dump.feed(raw))) == 2
    assert dump.interrupted


def test_a_dump_may_end_in_an_error() -> None:
    dump = Dump(7)
    assert list(dump.feed(part(Control.DONE, struct.pack("=i", -16)))) == []
    assert dump.answer == Answer(7, 16)


def test_the_end_of_a_dump_is_an_answer() -> None:
    _, raw, _ = golden("kernel_dump_sps")
    *_, done = messages(raw)
    assert done.kind == Control.DONE
    assert decode_answer(raw, done) == Answer(1, 0)


@some.patient
@given(st.binary(max_size=80), st.sampled_from([0, Flag.CAPPED, Flag.ACK_TLVS, 0x300]))
def test_hostile_answers_are_parsed_or_malformed(payload: bytes, flags: int) -> None:
    raw = encode_message(Control.ERROR, payload, flags=flags, seq=1)
    try:
        answer = decode_answer(raw, next(messages(raw)))
    except Malformed:
        return
    assert answer.errno >= 0
