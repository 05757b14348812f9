"""Whether an offer is believed: who speaks, for whom, until when, and whether it is news."""

from dataclasses import dataclass
from typing import Final

from tunsec.keying.chain import SKEW, Speaker, Trust
from tunsec.keying.newest import NewestOffer
from tunsec.keying.records import OFFER_DOMAIN, SignedOffer, address_order
from tunsec.keying.refusals import RecordRefused, RefusalReason
from tunsec.keying.schedule import is_weak
from tunsec.model.clock import Seconds, WallTime
from tunsec.model.names import Address, HostName
from tunsec.model.record import Offer

MAX_OFFER_LIFETIME: Final = Seconds(31 * 86_400.0)
"""An offer is short-lived; one beyond this comes from a broken clock or a careless admin."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What the policy lets a host claim: a name in its certificate, and addresses.

    `addresses` includes the service addresses that the host may own.
    """

    identity: str
    addresses: frozenset[Address]


def check_offer(
    signed: SignedOffer,
    host: HostName,
    *,
    path: str,
    wall_now: WallTime,
    trust: Trust,
    grant: Grant | None,
    ppk: str | None,
) -> Speaker:
    """Who signed the offer, if it is `host`'s own word and holds now; raises RecordRefused."""
    offer = signed.offer
    if offer.host != host:
        raise RecordRefused(RefusalReason.WRONG_NAME, path, f"it is an offer of {offer.host}")
    if grant is None:
        raise RecordRefused(RefusalReason.UNKNOWN_HOST, path, "the policy has no such host")
    speaker = trust.judge(signed.chain, path=path, wall_now=wall_now)
    if grant.identity not in speaker.names:
        raise RecordRefused(
            RefusalReason.WRONG_NAME,
            path,
            f"its certificate names {', '.join(sorted(speaker.names))[:200]}, not {grant.identity}",
        )
    if not speaker.verify(signed.signature, OFFER_DOMAIN + signed.body):
        raise RecordRefused(RefusalReason.FORGED, path, "its signature is wrong")
    if foreign := foreign_addresses(offer, grant):
        raise RecordRefused(
            RefusalReason.FOREIGN_ADDRESS,
            path,
            f"the policy does not give {host} {', '.join(map(str, foreign))[:200]}",
        )
    _check_time(offer, speaker.valid_until, path=path, wall_now=wall_now)
    if offer.ppk != ppk:
        raise RecordRefused(RefusalReason.PPK_MISMATCH, path, f"PPK {offer.ppk}, here {ppk}")
    if is_weak(offer.public):
        raise RecordRefused(RefusalReason.WEAK_KEY, path, "its public value is of small order")
    return speaker


def foreign_addresses(offer: Offer, grant: Grant) -> tuple[Address, ...]:
    """Addresses that an offer claims and the policy does not give, ascending."""
    claimed = set(offer.addresses) | {address for address, _ in offer.fencing}
    return tuple(sorted(claimed - grant.addresses, key=address_order))


def check_fresh(
    offer: Offer,
    digest: bytes,
    *,
    newest: NewestOffer | None,
    path: str,
    wall_now: WallTime,
) -> None:
    """Sequences rise, but for a host that lost its count together with its clock.

    The newest one may be read again. Raises RecordRefused.
    """
    if newest is None or offer.sequence > newest.sequence:
        return
    if offer.sequence == newest.sequence and digest == newest.digest:
        return
    if newest.not_after + SKEW < wall_now and offer.boot != newest.boot:
        return
    raise RecordRefused(
        RefusalReason.REPLAYED if offer.sequence == newest.sequence else RefusalReason.STALE,
        path,
        f"sequence {offer.sequence}, known is {newest.sequence}",
    )


def _check_time(offer: Offer, certificate_end: WallTime, *, path: str, wall_now: WallTime) -> None:
    if offer.not_after + SKEW < wall_now:
        raise RecordRefused(
            RefusalReason.EXPIRED_OFFER, path, f"it ended at Unix time {offer.not_after:.0f}"
        )
    if offer.not_after > wall_now + MAX_OFFER_LIFETIME + SKEW:
        raise RecordRefused(
            RefusalReason.TOO_LONG_LIVED,
            path,
            f"it would end at Unix time {offer.not_after:.0f}, above "
            f"{MAX_OFFER_LIFETIME / 86_400:.0f} days from now",
        )
    if offer.not_after > certificate_end:
        raise RecordRefused(
            RefusalReason.EXPIRED_CERTIFICATE, path, "it would outlive its certificate"
        )
