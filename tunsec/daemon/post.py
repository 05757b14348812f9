"""The post room: records in and out. Bytes become facts here, or a counted refusal."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from tunsec.daemon.journal import fields
from tunsec.keying.aead_choice import agree
from tunsec.keying.chain import Trust
from tunsec.keying.identity import Identity
from tunsec.keying.judgement import Grant
from tunsec.keying.paths import (
    CONFIRMATION_LIMIT,
    ClaimPath,
    ConfirmationPath,
    OfferPath,
    parse_path,
)
from tunsec.keying.refusals import RecordRefused, RefusalReason, Refusals
from tunsec.keying.ring import Keyring
from tunsec.machines.facts import (
    Keyed,
    PeerConfirmed,
    PeerOffered,
    PeerOfferEnded,
    PeerOfferRefused,
    PeerRevoked,
    Renewal,
)
from tunsec.machines.orders import PublishRecord
from tunsec.machines.pair import PairEvent
from tunsec.model.aead import Aead, AeadSpeed
from tunsec.model.clock import Seconds, WallTime
from tunsec.model.errors import Refused
from tunsec.model.flow import Child, ChildId
from tunsec.model.names import Address, Boot, ConfirmationSeq, HostName, OfferSeq, Spi
from tunsec.model.record import Confirmation, Offer, Receives, Renews, Sends
from tunsec.model.sa import SaDirection
from tunsec.model.secret import Secret
from tunsec.ports import Clock, Entropy, Record

PEER_OFFERS: Final = 4
"""Offers kept of a peer's present life: previous, current, next, and one on its way."""

UNOPENED: Final = 4
"""Records kept of an author whose offers are not held yet, together no longer than one may be: an
old one that comes again must not push out the one that waits for its offer."""
STRANGERS: Final = 1024
"""Hosts without a flow to this one whose offers are kept, for the policy that brings one."""
SAID: Final = 256
"""Own records of which it is known what they said, per peer; a peer is away for long, or reads."""

log = logging.getLogger("tunsec.directory")


@dataclass(frozen=True, slots=True)
class News:
    """What a record meant for one pair machine."""

    peer: HostName
    event: PairEvent


class PostRoom:
    """One host's side of the directory: seals what it says, opens what it reads.

    It is the KeySource of the installer, for it knows the offers of both sides.
    """

    def __init__(
        self,
        *,
        host: HostName,
        boot: Boot,
        keyring: Keyring,
        clock: Clock,
        entropy: Entropy,
        aeads: tuple[AeadSpeed, ...],
    ) -> None:
        self._host = host
        self._boot = boot
        self._ring = keyring
        self._clock = clock
        self._entropy = entropy
        self._aeads = aeads
        self._addresses: frozenset[Address] = frozenset()
        self._offers: dict[OfferSeq, Record] = {}
        self._strangers: dict[HostName, Record] = {}
        self._unopened: dict[HostName, tuple[Record, ...]] = {}
        self._newest: dict[HostName, Offer] = {}
        self._held: dict[HostName, tuple[Offer, ...]] = {}
        self._unwatched: set[HostName] = set()
        self._said: dict[HostName, list[tuple[ConfirmationSeq, int]]] = {}
        self.refusals = Refusals()
        self.twin = ""
        """Set when another daemon seems to run under this host's name."""

    @property
    def boot(self) -> Boot:
        """This life of the daemon."""
        return self._boot

    def set_addresses(self, addresses: frozenset[Address]) -> None:
        """Addresses that the next offer claims."""
        self._addresses = addresses

    # Out

    def make_offer(self, lifetime: Seconds) -> OfferSeq:
        """Draw a key pair and sign an offer; raises Refused when the own certificate is bad."""
        wall = self._clock.wall()
        offer, body = self._ring.make_offer(
            wall_now=wall,
            not_after=WallTime(wall + lifetime),
            boot=self._boot,
            private=self._entropy.private_value(),
            nonce=self._entropy.token(32),
            addresses=self._addresses,
            aeads=self._aeads,
        )
        self._offers[offer.sequence] = Record(str(OfferPath(self._host)), body)
        return offer.sequence

    def offer_record(self, seq: OfferSeq) -> Record:
        """The record of an own offer."""
        return self._offers[seq]

    def forget_own(self, seq: OfferSeq) -> None:
        """Wipe an own offer and everything made from it."""
        self._offers.pop(seq, None)
        self._ring.forget_own(seq)

    def record(self, peer: HostName, order: PublishRecord) -> Record:
        """The record a pair machine ordered, sealed."""
        sequence = self._ring.next_confirmation(wall_now=self._clock.wall())
        self._note_said(peer, sequence, order.revision)
        confirmation = Confirmation(
            author=self._host,
            reader=peer,
            author_offer=order.own_offer,
            reader_offer=order.peer_offer,
            sequence=sequence,
            receives=tuple(_receives(keyed) for keyed in order.receives),
            sends=tuple(
                Sends(child.flow, child.tenant, child.local, child.remote, spi)
                for child, spi in order.sends
            ),
            heard=order.heard,
            renews=tuple(_renews(row) for row in order.renews),
        )
        path = str(ConfirmationPath(peer, self._host))
        return Record(path, self._ring.seal_confirmation(confirmation))

    def published_before(self) -> frozenset[str]:
        """Records that this host may have in the directory, from an earlier life too: an offer if
        it ever made one, and a word to each peer whose offer it ever believed."""
        known = self._ring.newest()
        words = {str(ConfirmationPath(peer.host, self._host)) for peer in known.peers}
        return frozenset(words | ({str(OfferPath(self._host))} if known.own else set()))

    def _note_said(self, peer: HostName, sequence: ConfirmationSeq, revision: int) -> None:
        """Remember which revision went under which sequence.

        Revision 1 comes from a new pair machine: what its predecessor said is not its word.
        """
        said = self._said.get(peer, []) if revision > 1 else []
        said.append((sequence, revision))
        if len(said) > SAID:
            # The first is what the peer may have acted on; of the others it will read the newest.
            del said[1]
        self._said[peer] = said

    # In

    def take(self, records: Sequence[Record], peers: frozenset[HostName]) -> list[News]:
        """What records mean; offers before confirmations, refusals counted and logged once."""
        news: list[News] = []
        touched: set[HostName] = set()
        offers: dict[HostName, Record] = {}
        for record in records:
            match parse_path(record.path):
                case OfferPath(host):
                    offers[host] = record
                case ConfirmationPath(reader, author) if reader == self._host and author in peers:
                    self._keep(author, record)
                    touched.add(author)
                case ConfirmationPath():
                    continue  # who is no peer yet will speak again when it hears of us
                case ClaimPath():
                    continue  # daemon/vip_desk.py reads these
        for host, record in offers.items():
            if host not in peers and host != self._host:
                if len(self._strangers) < STRANGERS or host in self._strangers:
                    self._strangers[host] = record
            elif found := self._take_offer(host, record):
                news += found
                touched.add(host)
        for author in sorted(touched):
            news += self._open(author)
        return news

    def _keep(self, author: HostName, record: Record) -> None:
        """Records to open when their offers are there, oldest first."""
        waiting = self._unopened.get(author, ())
        kept = (*(one for one in waiting if one.body != record.body), record)[-UNOPENED:]
        while len(kept) > 1 and sum(len(one.body) for one in kept) > CONFIRMATION_LIMIT:
            kept = kept[1:]
        self._unopened[author] = kept

    def reopen(self, peers: frozenset[HostName]) -> list[News]:
        """Try again the records that named offers not held when they came."""
        return [
            item
            for author in sorted(self._unopened)
            if author in peers
            for item in self._open(author)
        ]

    def reintroduce(self, peers: frozenset[HostName]) -> list[News]:
        """What is known of peers, for pair machines that have just begun."""
        news = self.revoked_before()
        for host in sorted(peers & self._strangers.keys()):
            found = self._take_offer(host, self._strangers.pop(host))
            news += [item for item in found if not isinstance(item.event, PeerOffered)]
        news += [
            News(host, PeerOffered(offer.sequence, offer.boot))
            for host, offer in sorted(self._newest.items())
            if host in peers
        ]
        return news + self.reopen(peers)

    def renew_grants(self, grants: Mapping[HostName, Grant]) -> list[News]:
        """Another policy: offers that claim what it does not give are dropped, with their keys."""
        gone = self._ring.renew_grants(grants)
        news: list[News] = []
        for host in sorted({host for host, _ in gone}):
            kept = tuple(one for one in self._held[host] if (host, one.sequence) not in gone)
            self._held[host] = kept
            newest = self._newest.get(host)
            if newest is not None and newest not in kept:
                del self._newest[host]
                reason = f"the policy no longer gives {host} the addresses of its offer"
                news.append(News(host, PeerOfferEnded(reason)))
        return news

    def renew_identity(self, identity: Identity, trust: Trust) -> list[News]:
        """Another certificate, other roots or revocation lists: offers behind which a certificate
        is revoked are dropped, with their keys."""
        gone = self._ring.renew_identity(identity, trust)
        return [self._cut_off(host, gone) for host in sorted({host for host, _ in gone})]

    def revoked_before(self) -> list[News]:
        """Peers whose certificate was revoked while no daemon ran: what it left in the kernel is
        not to be carried on, whether their offers can be read or not."""
        return [
            News(peer.host, PeerRevoked(frozenset(), why))
            for peer in self._ring.newest().peers
            if (why := self._ring.why_revoked(peer.host))
        ]

    def _cut_off(self, host: HostName, gone: Mapping[tuple[HostName, OfferSeq], str]) -> News:
        why = {sequence: reason for (name, sequence), reason in gone.items() if name == host}
        self._held[host] = tuple(one for one in self._held[host] if one.sequence not in why)
        newest = self._newest.get(host)
        if newest is not None and newest.sequence in why:
            del self._newest[host]
        reason = why[max(why)]
        log.warning("peer revoked", extra=fields({"peer": host, "reason": reason}))
        return News(host, PeerRevoked(frozenset(why), reason))

    @property
    def chain(self) -> tuple[bytes, ...]:
        """The certificates that go with this host's offers, DER."""
        return self._ring.chain

    def _take_offer(self, host: HostName, record: Record) -> list[News]:
        try:
            offer = self._ring.accept_offer(host, record.body, wall_now=self._clock.wall())
        except RecordRefused as refused:
            self.refuse(refused, record)
            if host in self._newest or host == self._host:
                return []
            if refused.reason is RefusalReason.REVOKED_CERTIFICATE:
                return [News(host, PeerOfferEnded(refused.detail))]
            why = f"its offer was refused: {refused.reason}: {refused.detail}"
            return [News(host, PeerOfferRefused(why))]
        if host == self._host:
            self._own_seen(offer)
            return []
        before = self._newest.get(host)
        if before is not None and before.sequence == offer.sequence:
            return []
        self._newest[host] = offer
        self._unwatched.add(host)
        others = (one for one in self._held.get(host, ()) if one.sequence != offer.sequence)
        held = (*others, offer)
        # Nothing of an earlier life is followed once the peer has begun another.
        kept = tuple(one for one in held if one.boot == offer.boot)[-PEER_OFFERS:]
        for old in held:
            if old not in kept:
                self._ring.forget_peer(host, old.sequence)
        self._held[host] = kept
        return [News(host, PeerOffered(offer.sequence, offer.boot))]

    def _own_seen(self, offer: Offer) -> None:
        mine = offer.sequence in self._offers
        if offer.boot == self._boot or mine or not self._offers:
            return
        newest = max(self._offers)
        if offer.sequence > newest:
            self.twin = f"another daemon publishes offers as {self._host} (boot {offer.boot})"
            log.error(self.twin)

    def _open(self, author: HostName) -> list[News]:
        news: list[News] = []
        waiting: list[Record] = []
        for record in self._unopened.pop(author, ()):
            try:
                said = self._ring.open_confirmation(author, record.body)
            except RecordRefused as refused:
                if refused.reason is RefusalReason.UNKNOWN_OFFER:
                    waiting.append(record)  # it may still come
                else:
                    self.refuse(refused, record)
                continue
            news.append(News(author, self._confirmed(author, said)))
        if waiting:
            self._unopened[author] = tuple(waiting)
        return news

    def _revision_heard(self, author: HostName, heard: ConfirmationSeq) -> int:
        """Which revision of our record the peer has acted on, 0 for one of an earlier life; older
        ones need not be kept.

        A number between two of ours is of an earlier life too: one that could not write its numbers
        down, before the clock was set back.
        """
        said = self._said.get(author, [])
        known = [row for row in said if row[0] <= heard]
        if not known or known[-1][0] != heard:
            return 0
        self._said[author] = [known[-1], *(row for row in said if row[0] > heard)]
        return known[-1][1]

    def _confirmed(self, author: HostName, said: Confirmation) -> PeerConfirmed:
        return PeerConfirmed(
            sequence=said.sequence,
            receives=tuple(
                Keyed(
                    ChildId(author, row.flow, row.tenant, local=row.src, remote=row.dst),
                    row.spi,
                    row.aead,
                    own_offer=row.reader_offer,
                    peer_offer=row.author_offer,
                    esn=row.esn,
                )
                for row in said.receives
            ),
            sends=frozenset(
                (ChildId(author, row.flow, row.tenant, local=row.dst, remote=row.src), row.spi)
                for row in said.sends
            ),
            heard=self._revision_heard(author, said.heard),
            renews=tuple(
                Renewal(
                    ChildId(author, row.flow, row.tenant, local=row.dst, remote=row.src),
                    own=row.reader_spent,
                    peer=row.author_spent,
                    proof=row.proof,
                    done=row.done,
                )
                for row in said.renews
            ),
        )

    def refuse(self, refused: RecordRefused, record: Record) -> None:
        """Count a refusal, and log it if this content was not refused before."""
        if self.refusals.note(refused, record.body):
            log.warning(
                "record refused",
                extra=fields(
                    {"path": refused.path, "reason": refused.reason, "detail": refused.detail}
                ),
            )

    # Time

    def expiries(self) -> Mapping[HostName, WallTime]:
        """When newest offers of peers end, by wall clock: those not told since they changed."""
        unwatched, self._unwatched = self._unwatched, set()
        return {
            host: offer.not_after
            for host in sorted(unwatched)
            if (offer := self._newest.get(host)) is not None
        }

    def expire(self, host: HostName) -> News | None:
        """Drop a peer's newest offer if it has ended; if not, the clock was set back."""
        offer = self._newest.get(host)
        if offer is None:
            return None
        if offer.not_after > self._clock.wall():
            self._unwatched.add(host)
            return None
        del self._newest[host]
        return News(host, PeerOfferEnded(f"the offer of {host} expired"))

    # Keys

    def aead(self, child: Child, peer_offer: OfferSeq) -> Aead:
        """The AEAD both ends agree on."""
        offer = self._peer_offer(child.id.peer, peer_offer)
        return agree(self._aeads, offer.aeads, child.aeads)

    def inbound_key(self, keyed: Keyed) -> Secret:
        """Key and salt of an SA on which we receive."""
        return self._key(keyed, SaDirection.INBOUND)

    def outbound_key(self, keyed: Keyed) -> Secret:
        """Key and salt of an SA on which we send."""
        return self._key(keyed, SaDirection.OUTBOUND)

    def _key(self, keyed: Keyed, direction: SaDirection) -> Secret:
        peer = keyed.child.peer
        if not self._ring.holds(own_offer=keyed.own_offer, peer=peer, peer_offer=keyed.peer_offer):
            raise Refused(f"key for {keyed.child}", reason="its offers are no longer held")
        return self._ring.sa_key(
            keyed.child,
            direction,
            own_offer=keyed.own_offer,
            peer_offer=keyed.peer_offer,
            spi=keyed.spi,
            aead=keyed.aead,
        )

    def _peer_offer(self, peer: HostName, seq: OfferSeq) -> Offer:
        for offer in self._held.get(peer, ()):
            if offer.sequence == seq:
                return offer
        raise Refused(f"offer {seq} of {peer}", reason="it is no longer held")


def _receives(keyed: Keyed) -> Receives:
    child = keyed.child
    return Receives(
        child.flow,
        child.tenant,
        src=child.remote,
        dst=child.local,
        spi=Spi(keyed.spi),
        aead=keyed.aead,
        author_offer=keyed.own_offer,
        reader_offer=keyed.peer_offer,
        esn=keyed.esn,
    )


def _renews(row: Renewal) -> Renews:
    child = row.child
    return Renews(
        child.flow,
        child.tenant,
        src=child.local,
        dst=child.remote,
        author_spent=row.own,
        reader_spent=row.peer,
        proof=row.proof,
        done=row.done,
    )
