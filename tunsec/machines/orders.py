"""Actions of the directory machines: orders, imperative. The daemon performs them.

What answers an order is delivered before any other event of the same machine, and every order
that names an answer gets exactly one. A machine gives at most one such order at a time.
"""

from dataclasses import dataclass

from tunsec.machines.facts import Keyed, Renewal
from tunsec.model.clock import Seconds
from tunsec.model.flow import ChildId
from tunsec.model.names import ConfirmationSeq, OfferSeq, Spi


@dataclass(frozen=True, slots=True)
class Action:
    """Something to be done by the outside."""


@dataclass(frozen=True, slots=True)
class InstallInbound(Action):
    """Draw SPIs, derive keys under these offers, install, read back; InboundInstalled answers."""

    children: tuple[ChildId, ...]
    own_offer: OfferSeq
    peer_offer: OfferSeq


@dataclass(frozen=True, slots=True)
class InstallOutbound(Action):
    """Install the twins of confirmed SAs, read back, switch the SPs; OutboundSwitched answers."""

    sas: tuple[Keyed, ...]


@dataclass(frozen=True, slots=True)
class PassOver(Action):
    """Never install the twins of these: another keying has the SPs when the peer names them, and
    it removes what it sees declined."""

    sas: tuple[Keyed, ...]


@dataclass(frozen=True, slots=True)
class RemoveInbound(Action):
    """Remove an inbound SA that nobody uses any more."""

    child: ChildId
    spi: Spi


@dataclass(frozen=True, slots=True)
class RemoveOutbound(Action):
    """Remove an outbound SA that no SP pins any more."""

    child: ChildId
    spi: Spi


@dataclass(frozen=True, slots=True)
class BlockOutbound(Action):
    """Take the outbound protect SPs away: the block SPs hold the flow until there are keys."""

    child: ChildId


@dataclass(frozen=True, slots=True)
class ReadUsage(Action):
    """Read what draining inbound SAs have carried; UsageRead answers."""

    sas: tuple[tuple[ChildId, Spi], ...]


@dataclass(frozen=True, slots=True)
class PublishRecord(Action):
    """Publish what we receive on and send on. `heard` is the peer's record that we have acted on:
    it is told, but alone it is no news."""

    revision: int
    heard: ConfirmationSeq
    own_offer: OfferSeq
    peer_offer: OfferSeq
    receives: tuple[Keyed, ...]
    sends: tuple[tuple[ChildId, Spi], ...]
    renews: tuple[Renewal, ...] = ()


@dataclass(frozen=True, slots=True)
class WantRollover(Action):
    """Ask the offer machine for a new offer."""

    reason: str


@dataclass(frozen=True, slots=True)
class MakeOffer(Action):
    """Draw a key pair and sign an offer that is valid this long; OfferMade answers."""

    lifetime: Seconds
    reason: str


@dataclass(frozen=True, slots=True)
class PublishOffer(Action):
    """Put an offer into the directory; OfferPublished answers."""

    seq: OfferSeq


@dataclass(frozen=True, slots=True)
class WithdrawOffer(Action):
    """Take the offer out of the directory: nobody shall use it any more."""


@dataclass(frozen=True, slots=True)
class ForgetOffer(Action):
    """Wipe an offer's private key."""

    seq: OfferSeq
