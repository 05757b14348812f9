"""Records survive the way to bytes and back; everything else is refused with a reason."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.keying.strategies import confirmations, offers
from tests.unit.keying.test_schedule import VECTORS
from tunsec.keying.canonical import encode_canonical, from_base64, to_base64
from tunsec.keying.paths import CONFIRMATION_LIMIT, OFFER_LIMIT, parse_path
from tunsec.keying.records import (
    decode_sealed_confirmation,
    decode_signed_offer,
    encode_confirmation,
    encode_offer,
    encode_sealed_confirmation,
    encode_signed_offer,
)
from tunsec.keying.refusals import RecordRefused, RefusalReason
from tunsec.model.record import Confirmation, Offer

PATH = "offers/db1"
BODY = VECTORS[0]["a"]["body"]


def offer_record(change: Callable[[dict[str, Any]], object] = lambda _fields: None) -> bytes:
    """The record of a vector's offer, its body changed first."""
    fields = json.loads(BODY)
    change(fields)
    return encode_signed_offer(encode_canonical(fields), signature=b"s" * 64, chain=(b"leaf",))


def confirmation_record(change: Callable[[dict[str, Any]], object] = lambda _f: None) -> bytes:
    fields: dict[str, Any] = {
        "author": "db2",
        "reader": "db1",
        "author_offer": 7,
        "reader_offer": 8,
        "sequence": 9,
        "receives": [["f", None, "192.0.2.1", "192.0.2.2", 256, "aes-128-gcm", 7, 8]],
        "sends": [["f", "red", "2001:db8::2", "2001:db8::1", 257]],
        "heard": 6,
    }
    change(fields)
    return encode_sealed_confirmation(encode_canonical(fields), mac=b"m" * 32)


def refusal(record: bytes) -> RecordRefused:
    with pytest.raises(RecordRefused) as caught:
        decode_signed_offer(record, path=PATH)
    assert caught.value.path == PATH
    return caught.value


@given(offers)
def test_offers_round_trip(offer: Offer) -> None:
    body = encode_offer(offer)
    record = encode_signed_offer(body, signature=b"s", chain=(b"one", b"two"))
    signed = decode_signed_offer(record, path=PATH)
    assert signed.offer == offer
    assert (signed.body, signed.signature, signed.chain) == (body, b"s", (b"one", b"two"))


@given(confirmations)
def test_confirmations_round_trip(confirmation: Confirmation) -> None:
    body = encode_confirmation(confirmation)
    renewing = bool(confirmation.renews)
    record = encode_sealed_confirmation(body, mac=b"m" * 32, renewing=renewing)
    sealed = decode_sealed_confirmation(record, path="confirmations/a/b")
    assert sealed.confirmation == confirmation
    assert (sealed.body, sealed.mac) == (body, b"m" * 32)


def test_the_offers_of_the_vectors_are_canonical() -> None:
    for vector in VECTORS:
        for end in ("a", "b"):
            body = vector[end]["body"].encode()
            record = encode_signed_offer(body, signature=b"s", chain=(b"leaf",))
            offer = decode_signed_offer(record, path=PATH).offer
            assert encode_offer(offer) == body
            assert offer.public.hex() == vector[end]["public"]


@given(st.data())
def test_a_changed_byte_is_refused_or_seen(data: st.DataObject) -> None:
    """No change of a record reads as the same record, and none ends in another exception."""
    record = offer_record()
    place = data.draw(st.integers(0, len(record) - 1))
    value = data.draw(st.integers(0, 255).filter(lambda byte: byte != record[place]))
    changed = record[:place] + bytes([value]) + record[place + 1 :]
    before = decode_signed_offer(record, path=PATH)
    try:
        after = decode_signed_offer(changed, path=PATH)
    except RecordRefused:
        return
    assert after != before


@given(st.integers(0, len(offer_record()) - 1))
def test_every_truncation_is_refused(length: int) -> None:
    assert refusal(offer_record()[:length]).reason in {
        RefusalReason.TRUNCATED,
        RefusalReason.MALFORMED,
    }


@given(st.binary(max_size=300))
def test_any_bytes_are_refused_with_a_reason(body: bytes) -> None:
    refusal(body)
    with pytest.raises(RecordRefused):
        decode_sealed_confirmation(body, path=PATH)


def test_truncated_oversized_and_foreign_kinds_are_named() -> None:
    assert refusal(b"").reason is RefusalReason.TRUNCATED
    assert refusal(offer_record()[:-1]).reason is RefusalReason.TRUNCATED
    assert refusal(b"{" * (OFFER_LIMIT + 1)).reason is RefusalReason.OVERSIZED
    assert refusal(confirmation_record()).reason is RefusalReason.UNKNOWN_TYPE
    with pytest.raises(RecordRefused) as caught:
        decode_sealed_confirmation(b"[" * (CONFIRMATION_LIMIT + 1), path=PATH)
    assert caught.value.reason is RefusalReason.OVERSIZED


def test_a_deep_record_is_refused_before_it_hurts() -> None:
    assert refusal(b"[" * 60_000 + b"}").reason is RefusalReason.MALFORMED
    deep = b'{"a":' * 12_000 + b"1" + b"}" * 12_000
    assert len(deep) > OFFER_LIMIT or refusal(deep).reason is RefusalReason.MALFORMED


def change(name: str, value: object) -> Callable[[dict[str, Any]], object]:
    return lambda fields: fields.update({name: value})


@pytest.mark.parametrize(
    "spoil",
    [
        change("host", ""),
        change("host", "../etc"),
        change("host", "a/b"),
        change("host", 5),
        change("sequence", 0),
        change("sequence", -1),
        change("sequence", "7"),
        change("sequence", True),
        change("sequence", 2**63),
        change("sequence", 10**30),
        change("boot", "f" * 31),
        change("boot", "F" * 32),
        change("public", to_base64(b"x" * 31)),
        change("public", "not base64"),
        change("nonce", to_base64(b"x" * 33)),
        change("addresses", "192.0.2.1"),
        change("addresses", ["192.0.2.300"]),
        change("addresses", ["192.0.2.2", "192.0.2.1"]),
        change("addresses", ["192.0.2.1", "192.0.2.1"]),
        change("addresses", [f"10.0.{n // 256}.{n % 256}" for n in range(300)]),
        change("fencing", [["192.0.2.1"]]),
        change("fencing", [["192.0.2.1", -1]]),
        change("fencing", {"192.0.2.1": 1}),
        change("aeads", [["rot13", 1]]),
        change("aeads", [["aes-128-gcm", 1], ["aes-128-gcm", 2]]),
        change("ppk", 5),
        change("ppk", ""),
        change("not_after", None),
        change("not_after", 2**60),
        change("more", 1),
        lambda fields: fields.pop("nonce"),
    ],
)
def test_malformed_offers(spoil: Callable[[dict[str, Any]], object]) -> None:
    decode_signed_offer(offer_record(), path=PATH)
    assert refusal(offer_record(spoil)).reason is RefusalReason.MALFORMED


def row(*values: object) -> Callable[[dict[str, Any]], object]:
    return change("receives", [list(values)])


GOOD = ("f", None, "192.0.2.1", "192.0.2.2", 256, "aes-128-gcm", 7, 8)


@pytest.mark.parametrize(
    "spoil",
    [
        change("author", "db2/.."),
        change("sequence", 0),
        change("heard", -1),
        change("heard", None),
        row(*GOOD[:-1]),
        row(*GOOD, 1),
        row(*GOOD, 64),
        row(*GOOD, 32, 32),
        row("", *GOOD[1:]),
        row("f", "", *GOOD[2:]),
        row("f", None, "2001:db8::1", *GOOD[3:]),
        row(*GOOD[:4], 255, *GOOD[5:]),
        row(*GOOD[:4], 2**32, *GOOD[5:]),
        row(*GOOD[:5], "des", 7, 8),
        change("receives", ["f" * 8]),
        change("receives", [{"flow": "f"}]),
        change("sends", None),
    ],
)
def test_malformed_confirmations(spoil: Callable[[dict[str, Any]], object]) -> None:
    decode_sealed_confirmation(confirmation_record(), path=PATH)
    with pytest.raises(RecordRefused) as caught:
        decode_sealed_confirmation(confirmation_record(spoil), path=PATH)
    assert caught.value.reason is RefusalReason.MALFORMED


RENEWS = ["f", None, "192.0.2.2", "192.0.2.1", 7, 8, 1, 0]


@pytest.mark.parametrize(
    ("rows", "renewing"),
    [
        ([RENEWS], False),
        ([], True),
        (None, True),
        ([RENEWS[:-1]], True),
        ([[*RENEWS, 1]], True),
        ([[*RENEWS[:-1], 2]], True),
        ([[*RENEWS[:-1], True]], True),
        ([["f", None, "2001:db8::2", *RENEWS[3:]]], True),
        ([[*RENEWS[:4], -1, *RENEWS[5:]]], True),
    ],
)
def test_renewals_stand_where_the_type_says_so_and_nowhere_else(
    rows: list[object] | None, renewing: bool
) -> None:
    """A host of before this field was made reads what has none of it, and refuses what it could not
    act on."""

    def record(rows: list[object] | None, *, renewing: bool) -> bytes:
        body = json.loads(from_base64(json.loads(confirmation_record())["body"]))
        if rows is not None:
            body["renews"] = rows
        return encode_sealed_confirmation(encode_canonical(body), mac=b"m" * 32, renewing=renewing)

    decode_sealed_confirmation(record([RENEWS], renewing=True), path=PATH)
    with pytest.raises(RecordRefused) as caught:
        decode_sealed_confirmation(record(rows, renewing=renewing), path=PATH)
    assert caught.value.reason is RefusalReason.MALFORMED


def test_ten_thousand_children_fit() -> None:
    def many(fields: dict[str, Any]) -> None:
        entry = ["tenant-overlay", "a-tenant-name", "2001:db8::1111", "2001:db8::2222", 2**32 - 1]
        full = [*entry, "chacha20-poly1305", 10**15, 10**15]
        fields.update(receives=[full] * 10_000, sends=[entry] * 10_000)

    record = confirmation_record(many)
    assert len(record) < CONFIRMATION_LIMIT
    sealed = decode_sealed_confirmation(record, path=PATH)
    assert len(sealed.confirmation.receives) == 10_000


def test_the_envelope_carries_the_exact_bytes() -> None:
    envelope = json.loads(offer_record())
    assert from_base64(envelope["body"]).decode() == BODY
    envelope["chain"] = []
    assert refusal(encode_canonical(envelope)).reason is RefusalReason.MALFORMED
    envelope["chain"] = [to_base64(b"x")] * 4
    assert refusal(encode_canonical(envelope)).reason is RefusalReason.MALFORMED


@pytest.mark.parametrize(
    "path",
    [
        "",
        "offers",
        "offers/",
        "offers/..",
        "offers/.hidden",
        "offers/a/b",
        "offers/a..b",
        "offers/a\n",
        "offers/-a",
        "/offers/a",
        "offers//a",
        "confirmations/a",
        "confirmations/a/b/c",
        "confirmations/../b",
        "other/a",
        "offers/" + "a" * 254,
        "offers/ä",
    ],
)
def test_paths_that_no_record_has(path: str) -> None:
    with pytest.raises(RecordRefused) as caught:
        parse_path(path)
    assert caught.value.reason is RefusalReason.BAD_NAME
    assert caught.value.path.isprintable()


def test_paths_of_records() -> None:
    for path in ("offers/db1", "offers/db-1.example.org", "confirmations/db1/db_2"):
        assert str(parse_path(path)) == path
