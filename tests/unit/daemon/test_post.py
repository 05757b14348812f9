"""The post room: bytes become facts or refusals, and what it remembers is bounded."""

import os
import random
from dataclasses import dataclass, field, replace

import pytest

from tests.sim.cast import EPOCH, identity, policy, trust
from tunsec.daemon.post import PEER_OFFERS, SAID, STRANGERS, UNOPENED, News, PostRoom
from tunsec.keying.chain import Trust
from tunsec.keying.judgement import Grant
from tunsec.keying.newest import Newest
from tunsec.keying.refusals import RefusalReason
from tunsec.keying.ring import Keyring
from tunsec.machines.facts import (
    Keyed,
    PeerConfirmed,
    PeerOffered,
    PeerOfferEnded,
    PeerOfferRefused,
    PeerRevoked,
)
from tunsec.machines.orders import PublishRecord
from tunsec.model.aead import Aead, AeadSpeed
from tunsec.model.clock import Instant, Seconds, WallTime
from tunsec.model.errors import Refused
from tunsec.model.flow import Child, ChildId
from tunsec.model.names import Boot, ConfirmationSeq, FlowName, HostName, OfferSeq, Spi
from tunsec.model.secret import Secret
from tunsec.policy.desired import desired
from tunsec.ports import Record

AEAD = Aead.AES_128_GCM
LIFETIME = Seconds(7200.0)
H0, H1 = HostName("h0"), HostName("h1")


@dataclass(slots=True)
class Clock:
    """Wall time by hand."""

    seconds: float = 0.0

    def now(self) -> Instant:
        """Unused here."""
        return Instant(self.seconds)

    def wall(self) -> WallTime:
        """Unix time."""
        return WallTime(EPOCH + self.seconds)


@dataclass(slots=True)
class Dice:
    """Private values from the system, the rest from a seed."""

    dice: random.Random = field(default_factory=lambda: random.Random(1))

    def spi(self) -> int:
        """Unused here."""
        raise NotImplementedError

    def private_value(self) -> Secret:
        """32 bytes."""
        return Secret(os.urandom(32))

    def token(self, count: int) -> bytes:
        """From the seed."""
        return self.dice.randbytes(count)

    def fraction(self) -> float:
        """Unused here."""
        raise NotImplementedError


class Room:
    """One host's post room, and what is needed to speak through it."""

    def __init__(self, name: HostName, clock: Clock, *, boot: str = "a") -> None:
        self.intent = policy(3)
        self.grants = {
            host.name: Grant(host.identity, frozenset(host.addresses)) for host in self.intent.hosts
        }
        self.name = name
        self.ring = Keyring(identity(name), trust(), grants=self.grants)
        self.post = PostRoom(
            host=name,
            boot=Boot(boot * 32),
            keyring=self.ring,
            clock=clock,
            entropy=Dice(),
            aeads=(AeadSpeed(AEAD, 1),),
        )
        self.post.set_addresses(self.grants[name].addresses)
        self.revision = 0

    def offer(self, lifetime: Seconds = LIFETIME) -> tuple[OfferSeq, Record]:
        """A new offer."""
        seq = self.post.make_offer(lifetime)
        return seq, self.post.offer_record(seq)

    def word(
        self,
        peer: HostName,
        own: OfferSeq,
        theirs: OfferSeq,
        *,
        receives: tuple[Keyed, ...] = (),
        heard: int = 0,
        revision: int | None = None,
    ) -> Record:
        """A record to a peer."""
        self.revision = self.revision + 1 if revision is None else revision
        order = PublishRecord(self.revision, ConfirmationSeq(heard), own, theirs, receives, ())
        return self.post.record(peer, order)

    def hears(self, *records: Record) -> list[News]:
        """Records arrive from the other host."""
        return self.post.take(records, frozenset({H0, H1} - {self.name}))

    def child(self) -> Child:
        """Its child towards the other of the two."""
        found = desired(self.intent, self.name)
        return next(child for child in found.children if child.id.peer in (H0, H1))


@pytest.fixture
def clock() -> Clock:
    """Time stands still."""
    return Clock()


@pytest.fixture
def rooms(clock: Clock) -> tuple[Room, Room]:
    """Two hosts."""
    return Room(H0, clock), Room(H1, clock, boot="b")


Rooms = tuple[Room, Room]


def acquainted(rooms: Rooms) -> tuple[OfferSeq, OfferSeq]:
    """Both have heard the other's offer; the two offers."""
    left, right = rooms
    seqs = []
    for one, other in ((left, right), (right, left)):
        seq, record = one.offer()
        other.hears(record)
        seqs.append(seq)
    return seqs[0], seqs[1]


def confirmed(news: list[News]) -> list[PeerConfirmed]:
    """The words among the news."""
    return [item.event for item in news if isinstance(item.event, PeerConfirmed)]


def after_a_restart(room: Room, believed: Trust | None = None) -> PostRoom:
    """The post room of the daemon's next life, which knows what the state folder keeps."""
    newest = Newest.decode(room.ring.newest().encode())
    ring = Keyring(identity(room.name), believed or trust(), grants=room.grants, newest=newest)
    return PostRoom(
        host=room.name,
        boot=Boot("c" * 32),
        keyring=ring,
        clock=Clock(),
        entropy=Dice(),
        aeads=(AeadSpeed(AEAD, 1),),
    )


# What an earlier life said


def test_a_host_that_never_spoke_has_no_record(rooms: Rooms) -> None:
    assert after_a_restart(rooms[0]).published_before() == frozenset()


def test_every_record_that_was_published_is_known_after_a_restart(rooms: Rooms) -> None:
    left, _ = rooms
    own, theirs = acquainted(rooms)
    published = {left.post.offer_record(own).path, left.word(H1, own, theirs).path}
    assert after_a_restart(left).published_before() == published


# In and out


def test_a_word_arrives_as_it_was_said(rooms: Rooms) -> None:
    left, right = rooms
    own, theirs = acquainted(rooms)
    mine = left.child()
    keyed = Keyed(mine.id, Spi(0x1000), AEAD, own, theirs)
    [said] = confirmed(right.hears(left.word(H1, own, theirs, receives=(keyed,))))
    mirrored = ChildId(H0, mine.id.flow, None, local=mine.id.remote, remote=mine.id.local)
    assert said.receives == (Keyed(mirrored, Spi(0x1000), AEAD, theirs, own),)
    assert said.sequence > 0


def test_both_make_the_same_key_and_each_is_one_of_a_kind(rooms: Rooms) -> None:
    left, right = rooms
    own, theirs = acquainted(rooms)
    mine = left.child().id
    other = ChildId(H0, mine.flow, None, local=mine.remote, remote=mine.local)
    sends = left.post.outbound_key(Keyed(mine, Spi(7), AEAD, own, theirs))
    receives = right.post.inbound_key(Keyed(other, Spi(7), AEAD, theirs, own))
    assert sends.reveal() == receives.reveal()
    back = left.post.inbound_key(Keyed(mine, Spi(7), AEAD, own, theirs))
    assert back.reveal() != sends.reveal()


def test_a_key_from_an_offer_that_is_gone_is_refused(rooms: Rooms) -> None:
    left, _ = rooms
    own, theirs = acquainted(rooms)
    left.post.forget_own(own)
    keyed = Keyed(left.child().id, Spi(7), AEAD, own, theirs)
    with pytest.raises(Refused, match="no longer held"):
        left.post.outbound_key(keyed)
    with pytest.raises(Refused, match="no longer held"):
        left.post.aead(left.child(), OfferSeq(5))


# Records that come too early, too late, twice


def test_a_word_waits_for_the_offer_it_names(rooms: Rooms) -> None:
    left, right = rooms
    _, theirs = acquainted(rooms)
    own, offer = left.offer()
    word = left.word(H1, own, theirs)
    assert right.hears(word) == []
    news = right.hears(offer)
    assert [type(item.event) for item in news] == [PeerOffered, PeerConfirmed]


def test_a_word_waits_for_the_readers_own_offer(rooms: Rooms) -> None:
    """Peers may be faster than the answer of the directory."""
    left, right = rooms
    own, _ = acquainted(rooms)
    theirs, offer = right.offer()
    left.hears(offer)
    word = left.word(H1, own, theirs)
    assert len(confirmed(right.hears(word))) == 1
    assert right.post.reopen(frozenset({H0})) == []


def test_an_old_word_does_not_push_out_the_one_that_waits(rooms: Rooms) -> None:
    left, right = rooms
    own, theirs = acquainted(rooms)
    old = left.word(H1, own, theirs)
    assert len(confirmed(right.hears(old))) == 1
    newer, offer = left.offer()
    waits = left.word(H1, newer, theirs)
    assert right.hears(waits) == []
    assert right.hears(left.word(H1, own, theirs, revision=1)) != []
    right.hears(old)
    [said] = confirmed(right.hears(offer))
    assert said.sequence > 0


def test_words_that_wait_are_few(rooms: Rooms) -> None:
    left, right = rooms
    _, theirs = acquainted(rooms)
    unknown, offer = left.offer()
    for _ in range(3 * UNOPENED):
        right.hears(left.word(H1, unknown, theirs))
    assert len(confirmed(right.hears(offer))) == UNOPENED


def test_the_same_word_again_is_told_again_and_an_older_one_is_refused(rooms: Rooms) -> None:
    left, right = rooms
    own, theirs = acquainted(rooms)
    first, second = left.word(H1, own, theirs), left.word(H1, own, theirs)
    assert len(confirmed(right.hears(second))) == 1
    assert len(confirmed(right.hears(second))) == 1
    assert right.hears(first) == []
    assert right.post.refusals.counts == {RefusalReason.REPLAYED: 1}


def test_offers_of_a_peer_are_few_and_of_its_present_life(rooms: Rooms, clock: Clock) -> None:
    left, right = rooms
    acquainted(rooms)
    for _ in range(3 * PEER_OFFERS):
        clock.seconds += 1.0
        right.hears(left.offer()[1])
        assert len(right.ring.peer_offers(H0)) <= PEER_OFFERS
    reborn = Room(H0, clock, boot="c")
    clock.seconds += 1.0
    _, offer = reborn.offer()
    [item] = right.hears(offer)
    assert isinstance(item.event, PeerOffered)
    assert len(right.ring.peer_offers(H0)) == 1


# What was said


def test_the_peer_is_understood_by_revision(rooms: Rooms) -> None:
    left, right = rooms
    own, theirs = acquainted(rooms)
    heard: list[int] = []
    for revision in range(1, 6):
        [fact] = confirmed(right.hears(left.word(H1, own, theirs, revision=revision)))
        answer = right.word(H0, theirs, own, heard=fact.sequence)
        [back] = confirmed(left.hears(answer))
        heard.append(back.heard)
    assert heard == [1, 2, 3, 4, 5]


def test_a_new_machine_is_not_answered_for_what_its_predecessor_said(rooms: Rooms) -> None:
    """A policy dropped the peer and took it back: revisions begin anew, and the peer has heard
    none of the new ones."""
    left, right = rooms
    own, theirs = acquainted(rooms)
    for revision in range(1, 9):
        [fact] = confirmed(right.hears(left.word(H1, own, theirs, revision=revision)))
    left.word(H1, own, theirs, revision=1)
    [back] = confirmed(left.hears(right.word(H0, theirs, own, heard=fact.sequence)))
    assert back.heard == 0


def test_a_peer_that_is_away_for_long_is_still_understood(rooms: Rooms) -> None:
    left, right = rooms
    own, theirs = acquainted(rooms)
    [early] = confirmed(right.hears(left.word(H1, own, theirs, revision=1)))
    for revision in range(2, 3 * SAID):
        last = left.word(H1, own, theirs, revision=revision)
    [back] = confirmed(left.hears(right.word(H0, theirs, own, heard=early.sequence)))
    assert back.heard == 1
    [late] = confirmed(right.hears(last))
    [back] = confirmed(left.hears(right.word(H0, theirs, own, heard=late.sequence)))
    assert back.heard == 3 * SAID - 1


# Policies that come and go


def test_the_offer_of_a_stranger_is_there_when_a_policy_brings_it(rooms: Rooms) -> None:
    left, right = rooms
    seq, offer = left.offer()
    assert right.post.take([offer], frozenset()) == []
    assert right.post.reintroduce(frozenset({H0})) == [News(H0, PeerOffered(seq, Boot("a" * 32)))]


def test_an_offer_that_is_not_believed_says_why_there_is_none(rooms: Rooms) -> None:
    left, right = rooms
    [item] = right.hears(Record("offers/h0", b"x"))
    assert isinstance(item.event, PeerOfferRefused)
    assert item.event.reason.startswith("its offer was refused: truncated: ")
    _, good = left.offer()
    assert [type(one.event) for one in right.hears(good)] == [PeerOffered]
    assert right.hears(Record("offers/h0", b"x")) == [], "there is one that is believed"
    assert right.hears(Record("offers/h1", b"x")) == [], "its own"


def test_strangers_are_bounded(rooms: Rooms) -> None:
    _, right = rooms
    for number in range(STRANGERS + 50):
        right.post.take([Record(f"offers/s{number}", b"x")], frozenset())
    assert len(right.post._strangers) == STRANGERS


def test_a_policy_that_takes_addresses_away_ends_the_offer(rooms: Rooms) -> None:
    left, right = rooms
    own, theirs = acquainted(rooms)
    right.hears(left.word(H1, own, theirs))
    poorer = {**right.grants, H0: replace(right.grants[H0], addresses=frozenset())}
    [item] = right.post.renew_grants(poorer)
    assert item.peer == H0
    assert isinstance(item.event, PeerOfferEnded)
    assert "addresses" in item.event.reason
    assert right.ring.pair_secrets == 0
    assert right.post.reintroduce(frozenset({H0})) == []
    assert right.post.renew_grants(right.grants) == []


# Revocation


def revoking(*hosts: str, number: int = 1) -> Trust:
    """What a host believes that has a new list."""
    return trust(frozenset((host, number) for host in hosts))


def test_a_list_ends_the_offers_of_who_is_on_it(rooms: Rooms) -> None:
    left, right = rooms
    own, theirs = acquainted(rooms)
    right.hears(left.word(H1, own, theirs))
    assert right.post.renew_identity(identity(H1), revoking("h2")) == []
    [item] = right.post.renew_identity(identity(H1), revoking("h0"))
    assert item.peer == H0
    assert isinstance(item.event, PeerRevoked)
    assert item.event.offers == {own}
    assert "was revoked by CN=sim" in item.event.reason
    assert right.ring.pair_secrets == 0
    assert right.post.renew_identity(identity(H1), revoking("h0")) == [], "told once"
    again = right.post.reintroduce(frozenset({H0}))
    assert [type(one.event) for one in again] == [PeerRevoked], "no offer of it"
    assert right.post.reintroduce(frozenset()) == again, "the engine knows who is a peer"


def test_a_record_of_the_revoked_is_counted_and_says_why_there_is_no_offer(rooms: Rooms) -> None:
    left, right = rooms
    right.post.renew_identity(identity(H1), revoking("h0"))
    _, record = left.offer()
    [item] = right.hears(record)
    assert isinstance(item.event, PeerOfferEnded), "SAs of an earlier life may be its successor's"
    assert "was revoked" in item.event.reason
    right.hears(record)
    assert right.post.refusals.counts == {RefusalReason.REVOKED_CERTIFICATE: 1}


def test_a_stranger_that_is_revoked_is_told_when_a_policy_brings_it(rooms: Rooms) -> None:
    left, right = rooms
    _, record = left.offer()
    assert right.post.take([record], frozenset()) == []
    right.post.renew_identity(identity(H1), revoking("h0"))
    [item] = right.post.reintroduce(frozenset({H0}))
    assert isinstance(item.event, PeerOfferEnded)
    assert "was revoked" in item.event.reason


def test_a_thief_with_a_revoked_key_does_not_end_what_stands(rooms: Rooms, clock: Clock) -> None:
    """The owner has another certificate, and is believed."""
    left, right = rooms
    left.post.renew_identity(identity(H0, 2), trust())
    acquainted(rooms)
    right.post.renew_identity(identity(H1), revoking("h0"))
    clock.seconds += 10.0
    thief = Room(H0, clock, boot="f")
    _, stolen = thief.offer()
    assert right.hears(stolen) == []
    assert right.post.refusals.counts == {RefusalReason.REVOKED_CERTIFICATE: 1}


def test_only_what_the_old_certificate_signed_goes(rooms: Rooms, clock: Clock) -> None:
    left, right = rooms
    first, _ = acquainted(rooms)
    left.post.renew_identity(identity(H0, 2), trust())
    clock.seconds += 10.0
    second, record = left.offer()
    right.hears(record)
    [item] = right.post.renew_identity(identity(H1), revoking("h0"))
    assert isinstance(item.event, PeerRevoked)
    assert item.event.offers == {first}
    assert "was revoked" in item.event.reason
    news = right.post.reintroduce(frozenset({H0}))
    assert [one.event for one in news] == [PeerOffered(second, Boot("a" * 32))]


def test_who_is_revoked_while_no_daemon_runs_is_known_at_the_start(rooms: Rooms) -> None:
    left, right = rooms
    acquainted(rooms)
    assert after_a_restart(right).revoked_before() == []
    reborn = after_a_restart(right, revoking("h0"))
    [item] = reborn.revoked_before()
    assert item.peer == H0
    assert isinstance(item.event, PeerRevoked)
    assert item.event.offers == frozenset()
    assert "was revoked" in item.event.reason
    assert after_a_restart(left, revoking("h0")).revoked_before() == [], "that is itself"


# Time


def test_an_offer_ends_when_it_said(rooms: Rooms, clock: Clock) -> None:
    left, right = rooms
    _, record = left.offer(Seconds(100.0))
    right.hears(record)
    ends = right.post.expiries()
    assert ends == {H0: EPOCH + 100.0}
    assert right.post.expiries() == {}, "told once"
    clock.seconds = 99.0
    assert right.post.expire(H0) is None
    assert right.post.expiries() == ends, "the clock was set back: told again"
    clock.seconds = 100.0
    item = right.post.expire(H0)
    assert item is not None
    assert isinstance(item.event, PeerOfferEnded)
    assert right.post.expire(H0) is None


def test_another_daemon_of_this_name_is_noticed(clock: Clock) -> None:
    mine, twin = Room(H0, clock), Room(H0, clock, boot="c")
    mine.offer()
    clock.seconds += 1.0
    _, record = twin.offer()
    mine.hears(record)
    assert "another daemon" in mine.post.twin


def test_names_of_flows_are_not_mixed_up(rooms: Rooms) -> None:
    left, right = rooms
    own, theirs = acquainted(rooms)
    child = replace(left.child().id, flow=FlowName("elsewhere"))
    keyed = Keyed(child, Spi(0x1000), AEAD, own, theirs)
    [said] = confirmed(right.hears(left.word(H1, own, theirs, receives=(keyed,))))
    assert said.receives[0].child.flow == "elsewhere"
