"""The SAs of a child as its machine sees them: an inbound and an outbound table.

Inbound, the receiver's side (receiver first, law 2)::

    INSTALLING --installed--> INSTALLED --published--> CONFIRMED --peer sends--> ACTIVE
        INSTALLED, CONFIRMED, ACTIVE --peer left, or can never come--> REKEYED --idle--> removed
        REKEYED --peer sends after all--> ACTIVE

Outbound, the sender's side::

    INSTALLING --switched--> ACTIVE --successor switched--> REKEYED --drained--> removed

REKEYED is strongSwan's word for an SA whose successor has taken over and that only drains.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from tunsec.machines.table import Table
from tunsec.model.aead import Aead
from tunsec.model.clock import Instant
from tunsec.model.names import OfferSeq, Spi


class SaState(StrEnum):
    """Where an SA is in its life."""

    INSTALLED = "INSTALLED"
    CONFIRMED = "CONFIRMED"
    ACTIVE = "ACTIVE"
    REKEYED = "REKEYED"


class InboundFact(StrEnum):
    """What can happen to an inbound SA."""

    PUBLISHED = "our confirmation is in the directory"
    PEER_SENDS = "the peer says that it sends on it"
    PEER_LEFT = "the peer does not send on it and never will"


class OutboundFact(StrEnum):
    """What can happen to an outbound SA."""

    SUCCEEDED = "its successor carries the flow"


INBOUND: Final = Table(
    "inbound SA",
    SaState.INSTALLED,
    {
        (SaState.INSTALLED, InboundFact.PUBLISHED): SaState.CONFIRMED,
        (SaState.INSTALLED, InboundFact.PEER_SENDS): SaState.ACTIVE,
        (SaState.INSTALLED, InboundFact.PEER_LEFT): SaState.REKEYED,
        (SaState.CONFIRMED, InboundFact.PEER_SENDS): SaState.ACTIVE,
        (SaState.CONFIRMED, InboundFact.PEER_LEFT): SaState.REKEYED,
        (SaState.ACTIVE, InboundFact.PEER_LEFT): SaState.REKEYED,
        # Records only go forward, so this is the newest truth: nothing is removed under a sender.
        (SaState.REKEYED, InboundFact.PEER_SENDS): SaState.ACTIVE,
    },
    {
        (SaState.CONFIRMED, InboundFact.PUBLISHED): "a later confirmation names it again",
        (SaState.ACTIVE, InboundFact.PUBLISHED): "the peer was faster than the directory's answer",
        (SaState.ACTIVE, InboundFact.PEER_SENDS): "every record repeats it",
        (SaState.REKEYED, InboundFact.PUBLISHED): "the peer moved on before the answer came",
        (SaState.REKEYED, InboundFact.PEER_LEFT): "every record repeats it",
    },
)

OUTBOUND: Final = Table(
    "outbound SA",
    SaState.ACTIVE,
    {(SaState.ACTIVE, OutboundFact.SUCCEEDED): SaState.REKEYED},
    {(SaState.REKEYED, OutboundFact.SUCCEEDED): "two successors in a row"},
)


@dataclass(frozen=True, slots=True)
class InboundSa:
    """One inbound SA. The offers are None for an SA adopted from an earlier life of the daemon."""

    spi: Spi
    aead: Aead
    own_offer: OfferSeq | None
    peer_offer: OfferSeq | None
    state: SaState = INBOUND.first
    listed: int | None = None
    """Revision of our record that first named it; None: not named yet. 0 if adopted: nothing that
    names it can be believed any more."""
    expiring: bool = False
    """A soft limit was reached: wants a successor under the same offers."""
    check_at: Instant | None = None
    """When a draining SA is looked at again."""
    packets: int | None = None
    """Packets it had carried when last looked at; 0 from the start for one that the peer declined,
    which so needs no second look."""
    esn: bool = True


@dataclass(frozen=True, slots=True)
class OutboundSa:
    """One outbound SA; `drained_at` is when a superseded one is removed."""

    spi: Spi
    aead: Aead
    own_offer: OfferSeq | None
    peer_offer: OfferSeq | None
    state: SaState = OUTBOUND.first
    drained_at: Instant | None = None
