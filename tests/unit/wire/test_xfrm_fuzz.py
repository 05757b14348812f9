"""Hostile bytes: every decoder gives a value or Malformed, never anything else, and promptly."""

from collections.abc import Callable
from typing import Final

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.unit.wire import xfrm_strategies as some
from tests.unit.wire.golden_bytes import golden, golden_names
from tunsec.wire.netlink import Malformed, Message, decode_answer, messages
from tunsec.wire.xfrm.aevents import decode_progress
from tunsec.wire.xfrm.events import decode_event
from tunsec.wire.xfrm.migrate import decode_migration, decode_sa_migration
from tunsec.wire.xfrm.notices import decode_acquire, decode_expire, decode_sp_expire
from tunsec.wire.xfrm.requests import (
    decode_sa_flush,
    decode_sa_id,
    decode_sad_counts,
    decode_sp_flush,
    decode_sp_id,
    decode_spd_counts,
    decode_spi_request,
)
from tunsec.wire.xfrm.sa import decode_sa, decode_sa_message
from tunsec.wire.xfrm.sp import decode_sp, decode_sp_message
from tunsec.wire.xfrm.structs import Reader

Decoder = Callable[[bytes, int, int], object]

DECODERS: Final[dict[str, Decoder]] = {
    "sa": lambda raw, start, end: decode_sa(raw, start, end, Reader()),
    "sa message": lambda raw, start, end: decode_sa_message(
        raw, start, end, reader=Reader(), keep_keys=True
    ),
    "sp": lambda raw, start, end: decode_sp(raw, start, end, Reader()),
    "sp message": lambda raw, start, end: decode_sp_message(raw, start, end, reader=Reader()),
    "sa id": lambda raw, start, end: decode_sa_id(raw, start, end, reader=Reader()),
    "sp id": lambda raw, start, end: decode_sp_id(raw, start, end, reader=Reader()),
    "spi": lambda raw, start, end: decode_spi_request(raw, start, end, reader=Reader()),
    "sa flush": decode_sa_flush,
    "sp flush": decode_sp_flush,
    "sad counts": decode_sad_counts,
    "spd counts": decode_spd_counts,
    "expire": lambda raw, start, end: decode_expire(raw, start, end, reader=Reader()),
    "sp expire": lambda raw, start, end: decode_sp_expire(raw, start, end, reader=Reader()),
    "acquire": lambda raw, start, end: decode_acquire(raw, start, end, reader=Reader()),
    "progress": lambda raw, start, end: decode_progress(raw, start, end, reader=Reader()),
    "migration": lambda raw, start, end: decode_migration(raw, start, end, reader=Reader()),
    "sa migration": lambda raw, start, end: decode_sa_migration(raw, start, end, reader=Reader()),
}


def event_decoder(kind: int) -> Decoder:
    """Decodes notifications of one message type."""
    return lambda raw, start, end: decode_event(raw, Message(kind, 0, 0, 0, start, end), Reader())


DECODERS.update((f"event {kind:#x}", event_decoder(kind)) for kind in range(0x10, 0x2B))

CAPTURES: Final = [golden(name) for name in golden_names("")]
PAYLOADS: Final = [
    capture.raw[message.start : message.end]
    for capture in CAPTURES
    for message in messages(capture.raw)
]


def attempt(decode: Decoder, raw: bytes) -> None:
    """Decode; only Malformed may come out of it."""
    try:
        decode(raw, 0, len(raw))
    except Malformed as error:
        if not str(error):
            pytest.fail("a Malformed that says nothing")


@pytest.mark.parametrize("name", DECODERS)
def test_every_truncation_of_every_capture(name: str) -> None:
    for payload in PAYLOADS:
        for size in range(0, len(payload) + 1, 1 if len(payload) < 300 else 3):
            attempt(DECODERS[name], payload[:size])


@some.patient
@given(data=st.data())
@pytest.mark.parametrize("name", DECODERS)
def test_captures_with_bytes_changed(name: str, data: st.DataObject) -> None:
    raw = bytearray(data.draw(st.sampled_from(PAYLOADS)))
    for _ in range(data.draw(st.integers(1, 6))):
        if raw:
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    attempt(DECODERS[name], bytes(raw))


@some.patient
@given(raw=st.binary(max_size=700))
@example(raw=b"")
@pytest.mark.parametrize("name", DECODERS)
def test_any_bytes(name: str, raw: bytes) -> None:
    attempt(DECODERS[name], raw)


@some.patient
@given(st.sampled_from(CAPTURES), st.data())
def test_whole_datagrams_with_bytes_changed(
    capture: tuple[str, bytes, Message], data: st.DataObject
) -> None:
    raw = bytearray(capture[1])
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        for message in messages(raw):
            decode_event(raw, message, Reader())
            decode_answer(raw, message)
    except Malformed as error:
        if not str(error):
            pytest.fail("a Malformed that says nothing")
