"""A refused record is logged once and counted."""

from tunsec.keying.refusals import REMEMBERED, RecordRefused, RefusalReason, Refusals


def test_once_per_content_and_reason() -> None:
    refusals = Refusals()
    forged = RecordRefused(RefusalReason.FORGED, "offers/db1", "its signature is wrong")
    assert refusals.note(forged, b"one")
    assert not refusals.note(forged, b"one")
    assert refusals.note(forged, b"two")
    elsewhere = RecordRefused(RefusalReason.FORGED, "offers/db2", "its signature is wrong")
    assert refusals.note(elsewhere, b"one")
    expired = RecordRefused(RefusalReason.EXPIRED_OFFER, "offers/db1", "it ended")
    assert refusals.note(expired, b"one")
    assert not refusals.note(expired, b"one")
    assert refusals.counts == {RefusalReason.FORGED: 3, RefusalReason.EXPIRED_OFFER: 1}
    assert refusals.total == 4


def test_memory_is_bounded() -> None:
    refusals = Refusals()
    refused = RecordRefused(RefusalReason.MALFORMED, "offers/db1", "x")
    for number in range(REMEMBERED + 1):
        assert refusals.note(refused, number.to_bytes(4, "big"))
    assert not refusals.note(refused, REMEMBERED.to_bytes(4, "big"))
    assert refusals.note(refused, (0).to_bytes(4, "big")), "the oldest was forgotten"


def test_a_refusal_says_what_where_and_why() -> None:
    refused = RecordRefused(RefusalReason.STALE, "offers/db1", "sequence 1, known is 2")
    assert str(refused) == "record offers/db1 refused: stale: sequence 1, known is 2"
