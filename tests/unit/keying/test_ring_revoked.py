"""The ring and revoked certificates: no word of theirs is believed, and none that was before."""

import pytest

from tests.unit.keying.cluster import DAY, NOW, ca, identity, introduced, offer, ring
from tests.unit.keying.lists import revocation
from tests.unit.keying.test_ring import DB1, DB2, INBOUND, child, confirmation, key, refused
from tunsec.keying.chain import Trust
from tunsec.keying.newest import Newest
from tunsec.keying.refusals import RecordRefused, RefusalReason
from tunsec.keying.ring import Keyring
from tunsec.model.names import HostName, OfferSeq


def trust(*revoked: int, of: str = "db2") -> Trust:
    """The lab's CA, which has revoked these certificates of a host."""
    gone = (identity(of, again=number).chain[0] for number in revoked)
    return Trust([ca().certificate], [revocation(*gone)])


def hears(keyring: Keyring, *revoked: int, of: str = "db2") -> dict[tuple[HostName, OfferSeq], str]:
    """A reload with another list; what is dropped and why."""
    return dict(keyring.renew_identity(identity("db1"), trust(*revoked, of=of)))


def renewed(keyring: Keyring, number: int) -> None:
    """db2 gets another certificate."""
    keyring.renew_identity(identity("db2", again=number), Trust([ca().certificate]))


def test_a_record_under_a_revoked_certificate_is_refused() -> None:
    _, record = offer(ring("db2", "db1"), "db2")
    reader = ring("db1", "db2", trust=trust(0))
    assert refused(reader, "db2", record) is RefusalReason.REVOKED_CERTIFICATE
    assert reader.why_revoked(DB2) == "", "nothing was ever believed"
    reader = ring("db1", "db2", trust=trust(0, of="db3"))
    assert reader.accept_offer(DB2, record, wall_now=NOW)


def test_what_was_believed_goes_with_all_that_was_made_from_it() -> None:
    left, right, a, b = introduced()
    key(left, child("db1", "db2"), INBOUND, offers=(a, b))
    second, record = offer(right, "db2", wall_now=NOW + 5)
    left.accept_offer(DB2, record, wall_now=NOW)
    word = right.seal_confirmation(confirmation("db2", "db1", b, a))
    assert hears(left) == {}
    assert left.peer_offers(DB2)
    gone = hears(left, 0)
    assert gone.keys() == {(DB2, b), (DB2, second.sequence)}
    assert all(f"{identity('db2').chain[0].serial_number:x}" in why for why in gone.values())
    assert left.why_revoked(DB2) in gone.values()
    assert left.peer_offers(DB2) == ()
    assert left.pair_secrets == 0
    assert not left.holds(own_offer=a, peer=DB2, peer_offer=b)
    with pytest.raises(RecordRefused) as caught:
        left.open_confirmation(DB2, word)
    assert caught.value.reason is RefusalReason.UNKNOWN_OFFER
    assert refused(left, "db2", record) is RefusalReason.REVOKED_CERTIFICATE
    assert hears(left, 0) == {}, "once"


def test_others_are_left_alone() -> None:
    left, _, a, b = introduced()
    secret = key(left, child("db1", "db2"), INBOUND, offers=(a, b))
    assert hears(left, 0, of="db3") == {}
    assert key(left, child("db1", "db2"), INBOUND, offers=(a, b)) == secret


def test_the_old_certificate_of_a_host_that_shows_a_new_one() -> None:
    """Only what the old one signed goes: the newest offer, and its keys, stay."""
    left, right, a, b = introduced()
    renewed(right, 1)
    second, record = offer(right, "db2", wall_now=NOW + 5)
    left.accept_offer(DB2, record, wall_now=NOW)
    secret = key(left, child("db1", "db2"), INBOUND, offers=(a, second.sequence))
    assert hears(left, 0).keys() == {(DB2, b)}
    assert left.why_revoked(DB2) == ""
    assert left.peer_offers(DB2) == (second,)
    assert key(left, child("db1", "db2"), INBOUND, offers=(a, second.sequence)) == secret


def test_where_the_newest_is_revoked_nothing_of_that_life_stays() -> None:
    """The newest may be a thief's, who copied the boot id; the others claim to be its sisters."""
    left, right, _, b = introduced()
    renewed(right, 1)
    second, record = offer(right, "db2", wall_now=NOW + 5)
    left.accept_offer(DB2, record, wall_now=NOW)
    assert hears(left, 1).keys() == {(DB2, b), (DB2, second.sequence)}


def test_a_thief_who_counted_up_does_not_keep_the_owner_out() -> None:
    left, right, a, _ = introduced()
    thief = ring("db2", "db1")
    high, stolen = offer(thief, "db2", wall_now=NOW + 20 * DAY, lifetime=DAY)
    left.accept_offer(DB2, stolen, wall_now=NOW)
    renewed(right, 1)
    mine, record = offer(right, "db2", wall_now=NOW + 5, life=2)
    assert mine.sequence < high.sequence
    assert refused(left, "db2", record) is RefusalReason.STALE
    hears(left, 0)
    assert left.accept_offer(DB2, record, wall_now=NOW) == mine
    assert left.why_revoked(DB2) == ""
    word = right.seal_confirmation(confirmation("db2", "db1", mine.sequence, a))
    assert left.open_confirmation(DB2, word).author_offer == mine.sequence
    assert refused(left, "db2", stolen) is RefusalReason.REVOKED_CERTIFICATE


def test_confirmations_of_the_owner_count_from_anew() -> None:
    """What a thief confirmed last is higher than all that the owner says for a while."""
    left, thief, a, b = introduced()
    left.open_confirmation(DB2, thief.seal_confirmation(confirmation("db2", "db1", b, a)))
    hears(left, 0)
    owner = ring("db2", "db1")
    renewed(owner, 1)
    mine, record = offer(owner, "db2", wall_now=NOW - 5, life=2)
    assert mine.sequence < b
    left.accept_offer(DB2, record, wall_now=NOW)
    theirs = offer(ring("db1", "db2"), "db1")[1]
    owner.accept_offer(DB1, theirs, wall_now=NOW)
    word = owner.seal_confirmation(confirmation("db2", "db1", mine.sequence, a))
    assert left.open_confirmation(DB2, word).author_offer == mine.sequence


def test_who_signed_outlives_the_daemon() -> None:
    left, _, _, _ = introduced()
    body = left.newest().encode()
    reborn = ring("db1", "db2", newest=Newest.decode(body), trust=trust(0))
    assert f"{identity('db2').chain[0].serial_number:x}" in reborn.why_revoked(DB2)
    assert ring("db1", "db2", newest=Newest.decode(body), trust=trust()).why_revoked(DB2) == ""


def test_ones_own_revoked_certificate_signs_nothing() -> None:
    own = ring("db1", trust=trust(0, of="db1"))
    with pytest.raises(RecordRefused) as caught:
        offer(own, "db1")
    assert caught.value.reason is RefusalReason.REVOKED_CERTIFICATE


def test_the_chain_shown_is_the_present_one() -> None:
    own = ring("db1")
    assert own.chain == identity("db1").der_chain
    own.renew_identity(identity("db1", again=1), Trust([ca().certificate]))
    assert own.chain == identity("db1", again=1).der_chain
