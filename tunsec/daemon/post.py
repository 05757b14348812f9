"""The post room: records in and out. Bytes become facts here, or a counted refusal."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from tunsec.daemon.journal import fields
from tunsec.keying.aead_choice import agree
from tunsec.keying.paths import ConfirmationPath, OfferPath, parse_path
from tunsec.keying.refusals import RecordRefused, RefusalReason, Refusals
from tunsec.keying.ring import Keyring
from tunsec.machines.facts import Keyed, PeerConfirmed, PeerOffered, PeerOfferEnded
from tunsec.machines.orders import PublishRecord
from tunsec.machines.pair import PairEvent
from tunsec.model.aead import Aead, AeadSpeed
from tunsec.model.clock import Seconds, WallTime
from tunsec.model.errors import Refused
from tunsec.model.flow import Child, ChildId
from tunsec.model.names import Address, Boot, ConfirmationSeq, HostName, OfferSeq, Spi
from tunsec.model.record import Confirmation, Offer, Receives, Sends
from tunsec.model.sa import SaDirection
from tunsec.model.secret import Secret
from tunsec.ports import Clock, Entropy, Record

PEER_OFFERS: Final = 4
"""Offers kept of a peer's present life: previous, current, next, and one on its way."""

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
        self._unopened: dict[HostName, Record] = {}
        self._newest: dict[HostName, Offer] = {}
        self._heard: dict[HostName, ConfirmationSeq] = {}
        self._said: dict[HostName, list[tuple[ConfirmationSeq, int]]] = {}
        self.refusals = Refusals()
        self.twin = ""
        """Set when another daemon seems to run under this host's name."""

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
        self._said.setdefault(peer, []).append((sequence, order.revision))
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
            heard=self._heard.get(peer, ConfirmationSeq(0)),
        )
        path = str(ConfirmationPath(peer, self._host))
        return Record(path, self._ring.seal_confirmation(confirmation))

    # In

    def take(self, records: Sequence[Record], peers: frozenset[HostName]) -> list[News]:
        """What records mean; offers before confirmations, refusals counted and logged once."""
        news: list[News] = []
        offers: list[tuple[HostName, Record]] = []
        for record in records:
            match parse_path(record.path):
                case OfferPath(host):
                    offers.append((host, record))
                case ConfirmationPath(reader, author) if reader == self._host:
                    self._unopened[author] = record
                case ConfirmationPath():
                    continue
        touched = {author for author in self._unopened if author in peers}
        for host, record in offers:
            if host in peers or host == self._host:
                news += self._take_offer(host, record)
        for author in sorted(touched):
            news += self._open(author)
        return news

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
        return [
            News(host, PeerOffered(offer.sequence, offer.boot))
            for host, offer in sorted(self._newest.items())
            if host in peers
        ]

    def _take_offer(self, host: HostName, record: Record) -> list[News]:
        try:
            offer = self._ring.accept_offer(host, record.body, wall_now=self._clock.wall())
        except RecordRefused as refused:
            self.refuse(refused, record)
            return []
        if host == self._host:
            self._own_seen(offer)
            return []
        before = self._newest.get(host)
        if before is not None and before.sequence == offer.sequence:
            return []
        self._newest[host] = offer
        for old in self._ring.peer_offers(host)[:-PEER_OFFERS]:
            self._ring.forget_peer(host, old.sequence)
        for old in self._ring.peer_offers(host):
            if old.boot != offer.boot:
                # Nothing of an earlier life is followed once the peer has begun another.
                self._ring.forget_peer(host, old.sequence)
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
        record = self._unopened[author]
        try:
            said = self._ring.open_confirmation(author, record.body)
        except RecordRefused as refused:
            if refused.reason is not RefusalReason.UNKNOWN_OFFER:
                del self._unopened[author]
                self.refuse(refused, record)
            return []  # an unknown offer may still come
        del self._unopened[author]
        self._heard[author] = said.sequence
        return [News(author, self._confirmed(author, said))]

    def _revision_heard(self, author: HostName, heard: ConfirmationSeq) -> int:
        """Which revision of our record the peer has acted on; older ones need not be kept."""
        said = self._said.get(author, [])
        known = [row for row in said if row[0] <= heard]
        if not known:
            return 0
        self._said[author] = [known[-1], *(row for row in said if row[0] > heard)]
        return known[-1][1]

    def _confirmed(self, author: HostName, said: Confirmation) -> PeerConfirmed:
        return PeerConfirmed(
            receives=tuple(
                Keyed(
                    ChildId(author, row.flow, row.tenant, local=row.src, remote=row.dst),
                    row.spi,
                    row.aead,
                    own_offer=row.reader_offer,
                    peer_offer=row.author_offer,
                )
                for row in said.receives
            ),
            sends=frozenset(
                (ChildId(author, row.flow, row.tenant, local=row.dst, remote=row.src), row.spi)
                for row in said.sends
            ),
            heard=self._revision_heard(author, said.heard),
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
        """When each peer's newest offer ends, by wall clock."""
        return {host: offer.not_after for host, offer in self._newest.items()}

    def expire(self, host: HostName) -> News | None:
        """Drop a peer's newest offer if it has ended."""
        offer = self._newest.get(host)
        if offer is None or offer.not_after > self._clock.wall():
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
        for offer in self._ring.peer_offers(peer):
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
    )
