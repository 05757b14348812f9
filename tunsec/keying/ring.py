"""The ring: this host's private values, its peers' offers, and the keys that follow from both.

No I/O, no clock, no randomness: private values and nonces are given, and every judgement that
depends on the time takes `wall_now`. What is believed and why:

- an offer: signed by a leaf that chains to a trusted CA and names the host; the host is in the
  policy and may speak for every address it claims; it is neither expired nor older than one
  believed before, and no certificate behind it is revoked, then or later;
- a confirmation: authenticated under a pair of offers that this ring holds, and newer than what
  its author said before.

A record that fails leaves everything as it was.
"""

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from tunsec.keying.chain import Trust
from tunsec.keying.identity import Identity
from tunsec.keying.judgement import Grant, check_fresh, check_offer, foreign_addresses
from tunsec.keying.newest import NOTHING_KNOWN, Newest, NewestOffer
from tunsec.keying.paths import ConfirmationPath, OfferPath
from tunsec.keying.records import (
    CONFIRMATION_DOMAIN,
    OFFER_DOMAIN,
    address_order,
    decode_sealed_confirmation,
    decode_signed_offer,
    encode_confirmation,
    encode_offer,
    encode_sealed_confirmation,
    encode_signed_offer,
)
from tunsec.keying.refusals import RecordRefused, RefusalReason
from tunsec.keying.revocation import CertificateId
from tunsec.keying.schedule import (
    SaName,
    confirmation_key,
    pair_salt,
    pair_secret,
    ppk_id,
    public_value,
    sa_key,
    shared_secret,
)
from tunsec.model.aead import Aead, AeadSpeed
from tunsec.model.clock import WallTime
from tunsec.model.errors import Bug
from tunsec.model.flow import ChildId
from tunsec.model.names import Address, Boot, ConfirmationSeq, HostName, OfferSeq, Spi
from tunsec.model.record import Confirmation, Offer
from tunsec.model.sa import SaDirection
from tunsec.model.secret import Secret

MICROSECONDS: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class _Own:
    offer: Offer
    body: bytes
    private: Secret


@dataclass(frozen=True, slots=True)
class _Held:
    offer: Offer
    body: bytes
    signers: tuple[CertificateId, ...]


class Keyring:
    """All keys of one host's directory keying. Wiped value by value; never written anywhere."""

    def __init__(
        self,
        identity: Identity,
        trust: Trust,
        *,
        grants: Mapping[HostName, Grant],
        newest: Newest = NOTHING_KNOWN,
        ppk: Secret | None = None,
    ) -> None:
        self._identity = identity
        self._trust = trust
        self._grants = dict(grants)
        self._ppk = ppk
        self._ppk_id = ppk_id(ppk) if ppk else None
        self._last_own = newest.own
        self._newest = {peer.host: peer for peer in newest.peers}
        self._own: dict[OfferSeq, _Own] = {}
        self._peers: dict[tuple[HostName, OfferSeq], _Held] = {}
        self._pair_secrets: dict[tuple[OfferSeq, HostName, OfferSeq], Secret] = {}
        self._last_opened: dict[HostName, tuple[OfferSeq, ConfirmationSeq, bytes]] = {}

    # What this host says

    def make_offer(
        self,
        *,
        wall_now: WallTime,
        not_after: WallTime,
        boot: Boot,
        private: Secret,
        nonce: bytes,
        addresses: frozenset[Address],
        aeads: tuple[AeadSpeed, ...],
        fencing: Mapping[Address, int] | None = None,
    ) -> tuple[Offer, bytes]:
        """A new offer and its record. The ring owns `private` (32 random bytes) from here on.

        `not_after` is cut to the end of the certificate. Raises RecordRefused when the own
        certificate does not hold under the own CA: no peer would believe the offer.
        """
        path = str(OfferPath(self._identity.host))
        chain = self._identity.der_chain
        speaker = self._trust.judge(chain, path=path, wall_now=wall_now)
        offer = Offer(
            host=self._identity.host,
            sequence=OfferSeq(self._next_own(wall_now)),
            boot=boot,
            public=public_value(private),
            nonce=nonce,
            addresses=tuple(sorted(addresses, key=address_order)),
            fencing=tuple(sorted((fencing or {}).items(), key=lambda row: address_order(row[0]))),
            aeads=tuple(sorted(aeads, key=lambda speed: speed.aead.value)),
            ppk=self._ppk_id,
            not_after=WallTime(float(int(min(not_after, speaker.valid_until)))),
        )
        body = encode_offer(offer)
        record = encode_signed_offer(
            body, signature=self._identity.sign(OFFER_DOMAIN + body), chain=chain
        )
        self._own[offer.sequence] = _Own(offer, body, private)
        return offer, record

    @property
    def chain(self) -> tuple[bytes, ...]:
        """The certificates that go with this host's offers, DER."""
        return self._identity.der_chain

    def next_confirmation(self, *, wall_now: WallTime) -> ConfirmationSeq:
        """A number above all that this host has used."""
        return ConfirmationSeq(self._next_own(wall_now))

    def seal_confirmation(self, confirmation: Confirmation) -> bytes:
        """The record of a confirmation by this host, under the pair of offers it names."""
        if confirmation.author != self._identity.host:
            raise Bug(f"{self._identity.host} cannot speak as {confirmation.author}")
        body = encode_confirmation(confirmation)
        prk = self._pair_secret(
            confirmation.author_offer, confirmation.reader, confirmation.reader_offer
        )
        mac = _mac(prk, confirmation, body)
        return encode_sealed_confirmation(body, mac=mac, renewing=bool(confirmation.renews))

    # What peers say

    def accept_offer(self, host: HostName, record: bytes, *, wall_now: WallTime) -> Offer:
        """The offer in the record at `offers/HOST`, believed and held; raises RecordRefused.

        The newest offer read again is accepted again. This host's own offer, as an earlier life
        may have left it, is checked alike and only teaches the ring which numbers were used; the
        caller sees by its boot whether another daemon claims to be this host.
        """
        path = str(OfferPath(host))
        signed = decode_signed_offer(record, path=path)
        offer = signed.offer
        speaker = check_offer(
            signed,
            host,
            path=path,
            wall_now=wall_now,
            trust=self._trust,
            grant=self._grants.get(host),
            ppk=self._ppk_id,
        )
        if host == self._identity.host:
            self._last_own = max(self._last_own, offer.sequence)
            return offer
        digest = hashlib.sha256(signed.body).digest()
        # A thief may have used any number: what is revoked must not keep its owner out.
        newest = None if self.why_revoked(host) else self._newest.get(host)
        check_fresh(offer, digest, newest=newest, path=path, wall_now=wall_now)
        self._newest[host] = NewestOffer(
            host, offer.sequence, offer.boot, offer.not_after, digest, speaker.signers
        )
        self._peers[host, offer.sequence] = _Held(offer, signed.body, speaker.signers)
        return offer

    def open_confirmation(self, author: HostName, record: bytes) -> Confirmation:
        """The confirmation that `author` wrote for this host, believed; raises RecordRefused.

        An author goes forward only, first in its offers and then in its sequence. What it said
        last may be read again.
        """
        path = str(ConfirmationPath(self._identity.host, author))
        sealed = decode_sealed_confirmation(record, path=path)
        said = sealed.confirmation
        if said.author != author or said.reader != self._identity.host:
            raise RecordRefused(
                RefusalReason.WRONG_NAME, path, f"it is from {said.author} for {said.reader}"
            )
        if said.reader_offer not in self._own or (author, said.author_offer) not in self._peers:
            raise RecordRefused(
                RefusalReason.UNKNOWN_OFFER,
                path,
                f"offers {said.author_offer} of {author} and {said.reader_offer} of "
                f"{said.reader} are not both held",
            )
        prk = self._pair_secret(said.reader_offer, author, said.author_offer)
        if not hmac.compare_digest(_mac(prk, said, sealed.body), sealed.mac):
            raise RecordRefused(RefusalReason.FORGED, path, "its MAC is wrong")
        self._check_forward(said, hashlib.sha256(sealed.body).digest(), path=path)
        return said

    # Keys

    def sa_key(
        self,
        child: ChildId,
        direction: SaDirection,
        *,
        own_offer: OfferSeq,
        peer_offer: OfferSeq,
        spi: Spi,
        aead: Aead,
    ) -> Secret:
        """Key and salt of a child's SA; the caller wipes it. Both offers must be held."""
        own = self._identity.host
        if direction is SaDirection.INBOUND:
            sender, receiver, src, dst = child.peer, own, child.remote, child.local
        else:
            sender, receiver, src, dst = own, child.peer, child.local, child.remote
        prk = self._pair_secret(own_offer, child.peer, peer_offer)
        return sa_key(prk, SaName(child.flow, child.tenant, sender, receiver, src, dst, spi, aead))

    def holds(self, *, own_offer: OfferSeq, peer: HostName, peer_offer: OfferSeq) -> bool:
        """Whether keys can be made from this pair of offers."""
        return own_offer in self._own and (peer, peer_offer) in self._peers

    def own_offer(self, sequence: OfferSeq) -> Offer:
        """An offer of this host that is held."""
        return self._own[sequence].offer

    def peer_offer(self, host: HostName, sequence: OfferSeq) -> Offer:
        """An offer of a peer that is held."""
        return self._peers[host, sequence].offer

    def peer_offers(self, host: HostName) -> tuple[Offer, ...]:
        """All held offers of a peer, the newest last."""
        return tuple(self._peers[key].offer for key in sorted(self._peers) if key[0] == host)

    @property
    def private_values(self) -> int:
        """How many private values are in memory."""
        return len(self._own)

    @property
    def pair_secrets(self) -> int:
        """How many secrets of pairs are in memory."""
        return len(self._pair_secrets)

    # Forgetting

    def forget_own(self, sequence: OfferSeq) -> None:
        """Wipe the private value of an own offer and all that was made from it."""
        own = self._own.pop(sequence, None)
        if own is not None:
            own.private.wipe()
        self._wipe_pairs({key for key in self._pair_secrets if key[0] == sequence})

    def forget_peer(self, host: HostName, sequence: OfferSeq | None = None) -> None:
        """Drop one offer of a peer, or all, and wipe all that was made from them.

        What was newest stays known: an older one still is stale.
        """
        gone = {key for key in self._peers if key[0] == host and sequence in (None, key[1])}
        for key in gone:
            del self._peers[key]
        self._wipe_pairs({key for key in self._pair_secrets if (key[1], key[2]) in gone})

    def wipe(self) -> None:
        """Wipe everything; the ring is of no use any more."""
        for sequence in tuple(self._own):
            self.forget_own(sequence)
        if self._ppk is not None:
            self._ppk.wipe()

    # What may change while the daemon runs

    def renew_identity(
        self, identity: Identity, trust: Trust
    ) -> Mapping[tuple[HostName, OfferSeq], str]:
        """Sign with a new certificate from the next offer on, and judge under these roots and
        revocation lists; forgets and returns the offers behind which a certificate is revoked, and
        which it is.

        Where that is so of the newest, all go: the others claim to be of the same life.
        """
        if identity.host != self._identity.host:
            raise Bug(f"{self._identity.host} cannot become {identity.host}")
        self._identity = identity
        self._trust = trust
        gone = {
            (host, sequence): why
            for (host, sequence), held in self._peers.items()
            if (why := self.why_revoked(host) or trust.revoked(held.signers))
        }
        for host, sequence in gone:
            self.forget_peer(host, sequence)
            if self.why_revoked(host):
                self._last_opened.pop(host, None)
        return gone

    def why_revoked(self, host: HostName) -> str:
        """Which certificate behind a peer's newest offer is revoked; empty when none is, or when
        nothing was ever heard of the peer."""
        newest = self._newest.get(host)
        return "" if newest is None else self._trust.revoked(newest.signers)

    def renew_grants(
        self, grants: Mapping[HostName, Grant]
    ) -> frozenset[tuple[HostName, OfferSeq]]:
        """A new policy; forgets and returns the offers that it no longer covers."""
        self._grants = dict(grants)
        gone = frozenset(
            (host, sequence)
            for (host, sequence), held in self._peers.items()
            if host not in grants or foreign_addresses(held.offer, grants[host])
        )
        for host, sequence in gone:
            self.forget_peer(host, sequence)
        return gone

    def newest(self) -> Newest:
        """What must outlive the daemon. It is not secret."""
        return Newest(self._last_own, tuple(self._newest[host] for host in sorted(self._newest)))

    # Inside

    def _check_forward(self, said: Confirmation, digest: bytes, *, path: str) -> None:
        now = (said.author_offer, said.sequence, digest)
        last = self._last_opened.get(said.author)
        if last is not None and now != last and now[:2] <= last[:2]:
            raise RecordRefused(
                RefusalReason.REPLAYED,
                path,
                f"sequence {said.sequence} under offer {said.author_offer}, known is "
                f"{last[1]} under {last[0]}",
            )
        self._last_opened[said.author] = now

    def _pair_secret(self, own_offer: OfferSeq, peer: HostName, peer_offer: OfferSeq) -> Secret:
        key = (own_offer, peer, peer_offer)
        known = self._pair_secrets.get(key)
        if known is not None:
            return known
        own, held = self._own.get(own_offer), self._peers.get((peer, peer_offer))
        if own is None or held is None:
            raise Bug(f"offers {own_offer} and {peer_offer} of {peer} are not both held")
        salt = pair_salt((self._identity.host, own.body), (peer, held.body))
        with shared_secret(own.private, held.offer.public) as shared:
            prk = pair_secret(shared, salt=salt, ppk=self._ppk)
        self._pair_secrets[key] = prk
        return prk

    def _wipe_pairs(self, keys: set[tuple[OfferSeq, HostName, OfferSeq]]) -> None:
        for key in keys:
            self._pair_secrets.pop(key).wipe()

    def _next_own(self, wall_now: WallTime) -> int:
        """Microseconds of wall time, or one above the last: rises over restarts."""
        self._last_own = max(int(wall_now * MICROSECONDS), self._last_own + 1)
        return self._last_own


def _mac(prk: Secret, confirmation: Confirmation, body: bytes) -> bytes:
    with confirmation_key(prk, author=confirmation.author, reader=confirmation.reader) as key:
        return hmac.digest(key.reveal(), CONFIRMATION_DOMAIN + body, "sha256")
