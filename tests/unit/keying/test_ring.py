"""The ring: two hosts come to one key, and no record gets in that should not."""

import ipaddress
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.keying.cluster import (
    DAY,
    NOW,
    SPEEDS,
    address_of,
    ca,
    drawn,
    grants,
    identity,
    introduced,
    offer,
    ring,
)
from tunsec.keying.ca import KeyType
from tunsec.keying.canonical import encode_canonical, from_base64, to_base64
from tunsec.keying.chain import Trust
from tunsec.keying.judgement import MAX_OFFER_LIFETIME, Grant
from tunsec.keying.newest import NOTHING_KNOWN, Newest
from tunsec.keying.records import OFFER_DOMAIN, encode_offer, encode_signed_offer
from tunsec.keying.refusals import RecordRefused, RefusalReason
from tunsec.keying.ring import Keyring
from tunsec.model.aead import Aead
from tunsec.model.clock import WallTime
from tunsec.model.errors import Bug
from tunsec.model.flow import ChildId
from tunsec.model.names import Boot, ConfirmationSeq, FlowName, HostName, OfferSeq, Spi, TenantName
from tunsec.model.record import Confirmation, Offer, Receives
from tunsec.model.sa import SaDirection
from tunsec.model.secret import Secret

DB1, DB2 = HostName("db1"), HostName("db2")
INBOUND, OUTBOUND = SaDirection.INBOUND, SaDirection.OUTBOUND


def child(own: str, peer: str, tenant: str | None = None) -> ChildId:
    return ChildId(
        HostName(peer),
        FlowName("overlay"),
        TenantName(tenant) if tenant else None,
        local=address_of(own),
        remote=address_of(peer),
    )


def key(
    keyring: Keyring,
    of: ChildId,
    direction: SaDirection,
    *,
    offers: tuple[OfferSeq, OfferSeq],
    spi: int = 0x1234,
) -> bytes:
    return keyring.sa_key(
        of,
        direction,
        own_offer=offers[0],
        peer_offer=offers[1],
        spi=Spi(spi),
        aead=Aead.AES_256_GCM,
    ).reveal()


def confirmation(
    author: str, reader: str, author_offer: int, reader_offer: int, *, sequence: int = 1
) -> Confirmation:
    row = Receives(
        FlowName("overlay"),
        None,
        address_of(reader),
        address_of(author),
        Spi(0x1234),
        Aead.AES_256_GCM,
        OfferSeq(author_offer),
        OfferSeq(reader_offer),
    )
    return Confirmation(
        HostName(author),
        HostName(reader),
        OfferSeq(author_offer),
        OfferSeq(reader_offer),
        ConfirmationSeq(sequence),
        (row,),
        (),
        heard=ConfirmationSeq(0),
    )


def refused(keyring: Keyring, host: str, record: bytes, at: float = NOW) -> RefusalReason:
    """The reason; and nothing that was known is lost."""
    before = keyring.newest(), keyring.peer_offers(HostName(host))
    with pytest.raises(RecordRefused) as caught:
        keyring.accept_offer(HostName(host), record, wall_now=WallTime(at))
    assert caught.value.path == f"offers/{host}"
    assert (keyring.newest(), keyring.peer_offers(HostName(host))) == before
    return caught.value.reason


def resigned(record: bytes, host: str, change: Callable[[dict[str, Any]], object]) -> bytes:
    """The offer with its body changed and signed properly, as a hostile member would."""
    body = json.loads(from_base64(json.loads(record)["body"]))
    change(body)
    encoded = encode_canonical(body)
    own = identity(host)
    return encode_signed_offer(
        encoded, signature=own.sign(OFFER_DOMAIN + encoded), chain=own.der_chain
    )


# One key on both sides


@pytest.mark.parametrize("kind", list(KeyType))
@pytest.mark.parametrize("ppk", [None, drawn("ppk")])
def test_both_sides_derive_one_key(kind: KeyType, ppk: bytes | None) -> None:
    left, right = ring("db1", "db2", kind=kind, ppk=ppk), ring("db2", "db1", kind=kind, ppk=ppk)
    one, one_record = offer(left, "db1")
    two, two_record = offer(right, "db2")
    assert left.accept_offer(DB2, two_record, wall_now=NOW) == two
    assert right.accept_offer(DB1, one_record, wall_now=NOW) == one
    here, there = (one.sequence, two.sequence), (two.sequence, one.sequence)
    for tenant in (None, "red"):
        sent = key(left, child("db1", "db2", tenant), OUTBOUND, offers=here)
        assert sent == key(right, child("db2", "db1", tenant), INBOUND, offers=there)
    others = {
        key(left, child("db1", "db2"), OUTBOUND, offers=here),
        key(left, child("db1", "db2"), INBOUND, offers=here),
        key(left, child("db1", "db2", "red"), OUTBOUND, offers=here),
        key(left, child("db1", "db2"), OUTBOUND, offers=here, spi=0x1235),
    }
    assert len(others) == 4


def test_a_ppk_changes_every_key_and_its_lack_is_refused() -> None:
    with_ppk, without = ring("db1", "db2", ppk=drawn("ppk")), ring("db2", "db1")
    _, record = offer(with_ppk, "db1")
    assert refused(without, "db1", record) is RefusalReason.PPK_MISMATCH
    _, other = offer(ring("db2", "db1", ppk=drawn("another")), "db2")
    assert refused(with_ppk, "db2", other) is RefusalReason.PPK_MISMATCH


def test_every_offer_gives_other_keys() -> None:
    left, right, a, b = introduced()
    second, record = offer(left, "db1", wall_now=NOW + 1)
    right.accept_offer(DB1, record, wall_now=NOW)
    before = key(right, child("db2", "db1"), INBOUND, offers=(b, a))
    after = key(right, child("db2", "db1"), INBOUND, offers=(b, second.sequence))
    assert before != after
    assert after == key(left, child("db1", "db2"), OUTBOUND, offers=(second.sequence, b))


def test_a_ring_serves_a_cluster() -> None:
    hosts = [f"db{number}" for number in range(8)]
    trust = Trust([ca().certificate])
    rings = {host: ring(host, *hosts, trust=trust) for host in hosts}
    made = {host: offer(rings[host], host) for host in hosts}
    for reader in hosts:
        for author in hosts:
            if author != reader:
                rings[reader].accept_offer(HostName(author), made[author][1], wall_now=NOW)
        assert rings[reader].pair_secrets == 0, "nothing is derived before it is needed"
    keys = set()
    for reader in hosts:
        for author in hosts:
            if author != reader:
                offers = made[reader][0].sequence, made[author][0].sequence
                keys.add(key(rings[reader], child(reader, author), INBOUND, offers=offers))
    assert len(keys) == 8 * 7


# Offers that are not believed


def test_an_offer_of_a_stranger() -> None:
    _, record = offer(ring("db2", "db1"), "db2")
    assert refused(ring("db1"), "db2", record) is RefusalReason.UNKNOWN_HOST


def test_an_offer_under_the_path_of_another() -> None:
    _, record = offer(ring("db2", "db1"), "db2")
    assert refused(ring("db1", "db2", "db3"), "db3", record) is RefusalReason.WRONG_NAME


def test_a_member_that_speaks_as_another() -> None:
    _, record = offer(ring("db2"), "db2")
    lie = resigned(record, "db2", lambda body: body.update(host="db3"))
    assert refused(ring("db1", "db2", "db3"), "db3", lie) is RefusalReason.WRONG_NAME


def test_an_offer_under_another_ca() -> None:
    stranger = Keyring(
        identity("db2", under="elsewhere"),
        Trust([ca("elsewhere").certificate]),
        grants=grants("db2"),
    )
    _, record = offer(stranger, "db2")
    assert refused(ring("db1", "db2"), "db2", record) is RefusalReason.UNKNOWN_CA


def test_a_wrong_signature() -> None:
    _, record = offer(ring("db2"), "db2")
    envelope = json.loads(record)
    signature = bytearray(from_base64(envelope["signature"]))
    signature[5] ^= 1
    envelope["signature"] = to_base64(bytes(signature))
    assert refused(ring("db1", "db2"), "db2", encode_canonical(envelope)) is RefusalReason.FORGED
    body = json.loads(from_base64(envelope["body"]))
    envelope = json.loads(record) | {"body": to_base64(encode_canonical(body | {"not_after": 1}))}
    assert refused(ring("db1", "db2"), "db2", encode_canonical(envelope)) is RefusalReason.FORGED


def test_a_signature_for_something_else() -> None:
    """Without the domain before it, a signature over the same bytes is worth nothing."""
    made, _ = offer(ring("db2"), "db2")
    own, body = identity("db2"), encode_offer(made)
    record = encode_signed_offer(body, signature=own.sign(body), chain=own.der_chain)
    assert refused(ring("db1", "db2"), "db2", record) is RefusalReason.FORGED


@pytest.mark.parametrize(
    "lie",
    [
        {"addresses": ["203.0.113.9"]},
        {"addresses": [], "fencing": [["203.0.113.9", 7]]},
        {"addresses": [str(address_of("db1"))]},
    ],
)
def test_an_address_that_the_policy_does_not_give(lie: dict[str, object]) -> None:
    _, record = offer(ring("db2"), "db2")
    claim = resigned(record, "db2", lambda body: body.update(lie))
    assert refused(ring("db1", "db2"), "db2", claim) is RefusalReason.FOREIGN_ADDRESS


def test_both_families_of_ones_own_are_given() -> None:
    both = frozenset({address_of("db2"), address_of("db2", 6)})
    made, record = offer(ring("db2"), "db2", addresses=both)
    assert ring("db1", "db2").accept_offer(DB2, record, wall_now=NOW).addresses == made.addresses
    assert set(made.addresses) == both


@pytest.mark.parametrize("point", ["00" * 32, "01" + "00" * 31, "ec" + "ff" * 30 + "7f"])
def test_a_public_value_that_makes_a_known_secret(point: str) -> None:
    _, record = offer(ring("db2"), "db2")
    public = to_base64(bytes.fromhex(point))
    lie = resigned(record, "db2", lambda body: body.update(public=public))
    assert refused(ring("db1", "db2"), "db2", lie) is RefusalReason.WEAK_KEY


def test_time() -> None:
    reader = ring("db1", "db2")
    made, record = offer(ring("db2"), "db2", lifetime=3_600)
    assert refused(reader, "db2", record, NOW + 3_661) is RefusalReason.EXPIRED_OFFER
    assert refused(reader, "db2", record, NOW - DAY - 61) is RefusalReason.NOT_YET_VALID
    assert refused(reader, "db2", record, NOW + 31 * DAY) is RefusalReason.EXPIRED_CERTIFICATE
    far = int(NOW + MAX_OFFER_LIFETIME + 3_600)
    lie = resigned(record, "db2", lambda body: body.update(not_after=far))
    assert refused(reader, "db2", lie) is RefusalReason.TOO_LONG_LIVED
    end = int(NOW + 30 * DAY)
    lie = resigned(record, "db2", lambda body: body.update(not_after=end + 1))
    assert refused(reader, "db2", lie) is RefusalReason.EXPIRED_CERTIFICATE
    assert reader.accept_offer(DB2, record, wall_now=WallTime(NOW + 3_660)) == made


def test_an_offer_ends_with_its_certificate() -> None:
    made, _ = offer(ring("db2"), "db2", lifetime=90 * DAY)
    assert made.not_after == NOW + 30 * DAY


def test_no_offer_is_made_that_nobody_would_believe() -> None:
    with pytest.raises(RecordRefused) as caught:
        offer(ring("db2"), "db2", wall_now=NOW + 40 * DAY)
    assert caught.value.reason is RefusalReason.EXPIRED_CERTIFICATE


# News, and what is no news


def test_a_newer_offer_is_accepted_and_the_older_kept_until_forgotten() -> None:
    author, reader = ring("db2"), ring("db1", "db2")
    first, one = offer(author, "db2")
    second, two = offer(author, "db2", wall_now=NOW + 10)
    reader.accept_offer(DB2, one, wall_now=NOW)
    reader.accept_offer(DB2, two, wall_now=NOW)
    assert reader.peer_offers(DB2) == (first, second)
    assert refused(reader, "db2", one) is RefusalReason.STALE
    assert reader.accept_offer(DB2, two, wall_now=NOW) == second
    reader.forget_peer(DB2, first.sequence)
    assert reader.peer_offers(DB2) == (second,)
    reader.forget_peer(DB2)
    assert reader.peer_offers(DB2) == ()
    assert refused(reader, "db2", one) is RefusalReason.STALE
    assert reader.accept_offer(DB2, two, wall_now=NOW) == second


def test_two_offers_under_one_number() -> None:
    reader = ring("db1", "db2")
    _, record = offer(ring("db2"), "db2")
    reader.accept_offer(DB2, record, wall_now=NOW)
    _, other = offer(ring("db2"), "db2", draw="other")
    assert refused(reader, "db2", other) is RefusalReason.REPLAYED


def test_a_host_that_lost_its_count_is_believed_again_when_its_last_offer_has_ended() -> None:
    reader = ring("db1", "db2")
    _, record = offer(ring("db2"), "db2", wall_now=NOW, lifetime=3_600)
    reader.accept_offer(DB2, record, wall_now=NOW)
    clock_back = NOW - 7_200
    reborn, again = offer(ring("db2"), "db2", wall_now=clock_back, lifetime=5 * 3_600, life=2)
    assert refused(reader, "db2", again, NOW + 3_500) is RefusalReason.STALE
    assert reader.accept_offer(DB2, again, wall_now=WallTime(NOW + 3_661)) == reborn
    _, same_life = offer(
        ring("db2"), "db2", wall_now=clock_back - 9, lifetime=9 * 3_600, life=2, draw=1
    )
    assert refused(reader, "db2", same_life, NOW + 10_900) is RefusalReason.STALE


def test_what_was_newest_outlives_the_daemon() -> None:
    author = ring("db2")
    _, old = offer(author, "db2")
    second, new = offer(author, "db2", wall_now=NOW + 10)
    reader = ring("db1", "db2")
    reader.accept_offer(DB2, new, wall_now=NOW)
    own, _ = offer(reader, "db1", wall_now=NOW + 500)
    body = reader.newest().encode()
    reborn = ring("db1", "db2", newest=Newest.decode(body))
    assert refused(reborn, "db2", old) is RefusalReason.STALE
    assert reborn.accept_offer(DB2, new, wall_now=NOW) == second
    again, _ = offer(reborn, "db1", wall_now=NOW)  # the clock went back
    assert again.sequence > own.sequence


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        NOTHING_KNOWN.encode()[:-1],
        b'{"own":-1,"peers":[],"version":1}',
        b'{"own":1,"peers":[{}],"version":1}',
        b'{"own":1,"peers":[],"version":2}',
        b'{"own":1,"peers":[],"version":1,"x":1}',
    ],
)
def test_a_spoilt_memory_is_a_value_error(body: bytes) -> None:
    with pytest.raises(ValueError):
        Newest.decode(body)


def test_ones_own_earlier_offer_teaches_the_numbers() -> None:
    made, record = offer(ring("db1"), "db1", wall_now=NOW + 100, life=1)
    reborn = ring("db1")
    assert reborn.accept_offer(DB1, record, wall_now=NOW).boot == made.boot
    assert reborn.private_values == 0
    again, _ = offer(reborn, "db1", wall_now=NOW, life=2)
    assert again.sequence > made.sequence


@settings(max_examples=30)
@given(st.lists(st.floats(NOW - 1_000, NOW + 1_000), min_size=2, max_size=8))
def test_sequences_rise_whatever_the_clock_does(times: list[float]) -> None:
    author = ring("db1")
    numbers = [int(offer(author, "db1", wall_now=at)[0].sequence) for at in times]
    numbers.append(int(author.next_confirmation(wall_now=NOW)))
    assert numbers == sorted(set(numbers))


# Confirmations


def test_a_confirmation_is_opened_by_its_reader_alone() -> None:
    left, right, a, b = introduced()
    said = confirmation("db2", "db1", b, a)
    record = right.seal_confirmation(said)
    assert left.open_confirmation(DB2, record) == said
    assert left.open_confirmation(DB2, record) == said, "the last one may be read again"
    with pytest.raises(RecordRefused) as caught:
        ring("db3", "db1", "db2").open_confirmation(DB2, record)
    assert caught.value.reason is RefusalReason.WRONG_NAME


def test_a_reflected_confirmation_is_refused() -> None:
    """The keys of the two directions differ, and so do the names."""
    left, right, a, b = introduced()
    record = left.seal_confirmation(confirmation("db1", "db2", a, b))
    with pytest.raises(RecordRefused) as caught:
        left.open_confirmation(DB2, record)
    assert caught.value.reason is RefusalReason.WRONG_NAME
    envelope = json.loads(record)
    body = json.loads(from_base64(envelope["body"]))
    body |= {"author": "db2", "reader": "db1", "author_offer": b, "reader_offer": a}
    envelope["body"] = to_base64(encode_canonical(body))
    with pytest.raises(RecordRefused) as caught:
        left.open_confirmation(DB2, encode_canonical(envelope))
    assert caught.value.reason is RefusalReason.FORGED
    assert right.open_confirmation(DB1, record).author == DB1


@given(st.data())
@settings(max_examples=60)
def test_a_changed_confirmation_is_refused(data: st.DataObject) -> None:
    left, right, a, b = introduced()
    record = right.seal_confirmation(confirmation("db2", "db1", b, a))
    place = data.draw(st.integers(0, len(record) - 1))
    value = data.draw(st.integers(0, 255).filter(lambda byte: byte != record[place]))
    with pytest.raises(RecordRefused):
        left.open_confirmation(DB2, record[:place] + bytes([value]) + record[place + 1 :])


def test_an_author_only_goes_forward() -> None:
    left, right, a, b = introduced()
    records = [
        right.seal_confirmation(confirmation("db2", "db1", b, a, sequence=number))
        for number in (1, 2, 3)
    ]
    left.open_confirmation(DB2, records[1])
    for replay in (
        records[0],
        right.seal_confirmation(replace(confirmation("db2", "db1", b, a, sequence=2), receives=())),
    ):
        with pytest.raises(RecordRefused) as caught:
            left.open_confirmation(DB2, replay)
        assert caught.value.reason is RefusalReason.REPLAYED
    left.open_confirmation(DB2, records[2])
    newer, record = offer(right, "db2", wall_now=NOW + 5)
    left.accept_offer(DB2, record, wall_now=NOW)
    left.open_confirmation(
        DB2,
        right.seal_confirmation(confirmation("db2", "db1", newer.sequence, a, sequence=1)),
    )
    late = right.seal_confirmation(confirmation("db2", "db1", b, a, sequence=9))
    with pytest.raises(RecordRefused) as caught:
        left.open_confirmation(DB2, late)
    assert caught.value.reason is RefusalReason.REPLAYED


def test_a_confirmation_under_an_offer_that_is_not_held() -> None:
    left, right, a, b = introduced()
    record = right.seal_confirmation(confirmation("db2", "db1", b, a))
    left.forget_peer(DB2, b)
    with pytest.raises(RecordRefused) as caught:
        left.open_confirmation(DB2, record)
    assert caught.value.reason is RefusalReason.UNKNOWN_OFFER
    left, _, a, b = introduced()
    left.forget_own(a)
    with pytest.raises(RecordRefused) as caught:
        left.open_confirmation(DB2, record)
    assert caught.value.reason is RefusalReason.UNKNOWN_OFFER


def test_nobody_speaks_for_another() -> None:
    left, _, a, b = introduced()
    with pytest.raises(Bug):
        left.seal_confirmation(confirmation("db2", "db1", b, a))


# Forgetting


def test_forgetting_wipes() -> None:
    left, _, a, b = introduced()
    private = Secret(drawn("watched"))
    made, _ = left.make_offer(
        wall_now=NOW,
        not_after=WallTime(NOW + DAY),
        boot=Boot("0" * 32),
        private=private,
        nonce=drawn("nonce"),
        addresses=frozenset(),
        aeads=SPEEDS,
    )
    key(left, child("db1", "db2"), INBOUND, offers=(a, b))
    key(left, child("db1", "db2"), INBOUND, offers=(made.sequence, b))
    assert (left.private_values, left.pair_secrets) == (2, 2)
    left.forget_own(made.sequence)
    assert private.wiped
    assert (left.private_values, left.pair_secrets) == (1, 1)
    with pytest.raises(Bug):
        key(left, child("db1", "db2"), INBOUND, offers=(made.sequence, b))
    left.forget_own(made.sequence)  # once more is no error
    left.forget_peer(DB2, b)
    assert left.pair_secrets == 0
    assert not left.holds(own_offer=a, peer=DB2, peer_offer=b)
    left.wipe()
    assert left.private_values == 0


def test_a_policy_that_takes_an_address_away_ends_the_offers_that_claim_it() -> None:
    left, _, a, b = introduced()
    assert left.renew_grants(grants("db1", "db2")) == frozenset()
    moved = {**grants("db1"), DB2: Grant("db2", frozenset({ipaddress.ip_address("203.0.113.1")}))}
    key(left, child("db1", "db2"), INBOUND, offers=(a, b))
    assert left.renew_grants(moved) == {(DB2, b)}
    assert left.pair_secrets == 0
    assert left.renew_grants(grants("db1")) == frozenset()


def test_a_renewed_certificate_signs_the_next_offer() -> None:
    left, right, _, _ = introduced()
    fresh = identity("db1", last=NOW + 20 * DAY)
    left.renew_identity(fresh, Trust([ca().certificate]))
    made, record = offer(left, "db1", wall_now=NOW + 5, lifetime=25 * DAY)
    assert made.not_after == NOW + 20 * DAY
    assert right.accept_offer(DB1, record, wall_now=NOW) == made
    with pytest.raises(Bug):
        left.renew_identity(identity("db2"), Trust([ca().certificate]))


def test_nothing_secret_is_printed() -> None:
    left, _, a, _ = introduced()
    secret = drawn("private", "db1", NOW, 1, 0).hex()
    for thing in (left, left.own_offer(a), identity("db1"), vars(left)):
        assert secret[:12] not in repr(thing)
        assert "PRIVATE" not in repr(thing)


def test_offers_are_what_was_asked() -> None:
    left, _, a, _ = introduced()
    made: Offer = left.own_offer(a)
    assert (made.host, made.aeads, made.ppk) == (DB1, SPEEDS, None)
    assert made.sequence == NOW * 1_000_000
