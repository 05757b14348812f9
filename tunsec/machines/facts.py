"""Events of the directory machines: facts, past tense. What they name was verified at the door."""

from dataclasses import dataclass

from tunsec.model.aead import Aead
from tunsec.model.event import Event
from tunsec.model.flow import Child, ChildId
from tunsec.model.names import Boot, ConfirmationSeq, OfferSeq, Spi


@dataclass(frozen=True, slots=True)
class TimerFired(Event):
    """The deadline of a machine was reached."""


@dataclass(frozen=True, slots=True)
class ChildrenChanged(Event):
    """The policy gives this pair these children, and no others."""

    children: tuple[Child, ...]


@dataclass(frozen=True, slots=True)
class AdoptedSa:
    """An SA of ours that an earlier life of the daemon left in the kernel."""

    child: ChildId
    spi: Spi
    aead: Aead
    esn: bool = True


@dataclass(frozen=True, slots=True)
class Adopted(Event):
    """What the kernel held at start: inbound SAs, and the outbound ones that SPs pin."""

    inbound: tuple[AdoptedSa, ...]
    outbound: tuple[AdoptedSa, ...]


@dataclass(frozen=True, slots=True)
class OwnOffered(Event):
    """This host's offers changed: `current` is published, `holds` are all with a private key."""

    current: OfferSeq | None
    holds: frozenset[OfferSeq]


@dataclass(frozen=True, slots=True)
class PeerOffered(Event):
    """A newer offer of the peer was accepted."""

    seq: OfferSeq
    boot: Boot


@dataclass(frozen=True, slots=True)
class PeerOfferEnded(Event):
    """The peer's newest offer expired or can no longer be trusted."""

    reason: str


@dataclass(frozen=True, slots=True)
class PeerOfferRefused(Event):
    """There is an offer of the peer that is not believed, and none that is."""

    reason: str


@dataclass(frozen=True, slots=True)
class PeerRevoked(Event):
    """A certificate behind these offers of the peer was revoked: what was keyed with them, and what
    was adopted, cannot be trusted any more."""

    offers: frozenset[OfferSeq]
    reason: str


@dataclass(frozen=True, slots=True)
class Keyed:
    """An SA that was installed and found in the kernel."""

    child: ChildId
    spi: Spi
    aead: Aead
    own_offer: OfferSeq
    peer_offer: OfferSeq
    esn: bool = True


@dataclass(frozen=True, slots=True)
class NotInstalled:
    """An SA that was asked for and is not in the kernel, and why."""

    child: ChildId
    reason: str


@dataclass(frozen=True, slots=True)
class InboundInstalled(Event):
    """InstallInbound was carried out: `sas` are in the kernel, read back, `refused` are not."""

    sas: tuple[Keyed, ...]
    refused: tuple[NotInstalled, ...] = ()


@dataclass(frozen=True, slots=True)
class Renewal:
    """What of a child's offers is spent, and whether whoever says so has nothing of it left."""

    child: ChildId
    own: OfferSeq
    peer: OfferSeq
    proof: bool
    done: bool


@dataclass(frozen=True, slots=True)
class RenewalWanted(Event):
    """A connection of a child broke: what it has now is spent. With `proof` both hosts must prove
    anew who they are, else fresh keys will do."""

    child: ChildId
    proof: bool


@dataclass(frozen=True, slots=True)
class PeerConfirmed(Event):
    """The peer's newest record: its sequence, what it receives on, what it sends on, which of our
    records it had acted on (0: none of this life), and what it renews."""

    sequence: ConfirmationSeq
    receives: tuple[Keyed, ...]
    sends: frozenset[tuple[ChildId, Spi]]
    heard: int
    renews: tuple[Renewal, ...] = ()


@dataclass(frozen=True, slots=True)
class OutboundSwitched(Event):
    """InstallOutbound was carried out: `sas` are in the kernel and the outbound SPs pin them, read
    back; `refused` are not used and never will be."""

    sas: tuple[Keyed, ...]
    refused: tuple[NotInstalled, ...] = ()


@dataclass(frozen=True, slots=True)
class RecordPublished(Event):
    """Our record of this revision is in the directory."""

    revision: int


@dataclass(frozen=True, slots=True)
class Carried:
    """Packets that an inbound SA has carried so far; None when it is gone."""

    child: ChildId
    spi: Spi
    packets: int | None


@dataclass(frozen=True, slots=True)
class UsageRead(Event):
    """ReadUsage was carried out; an SA that could not be asked about is missing."""

    sas: tuple[Carried, ...]


@dataclass(frozen=True, slots=True)
class SaSoftExpired(Event):
    """An SA of a child reached a soft limit."""

    child: ChildId
    spi: Spi
    inbound: bool


@dataclass(frozen=True, slots=True)
class SaLost(Event):
    """An SA of a child is no longer in the kernel, and we did not remove it."""

    child: ChildId
    spi: Spi
    inbound: bool
    reason: str


@dataclass(frozen=True, slots=True)
class OutboundTaken(Event):
    """Another keying has the child's outbound SPs now: what this one has of it drains."""

    child: ChildId


@dataclass(frozen=True, slots=True)
class InboundTaken(Event):
    """The peer sends by another keying now: inbound SAs of this one go when they are idle."""

    child: ChildId


@dataclass(frozen=True, slots=True)
class OfferMade(Event):
    """A key pair was drawn and an offer signed."""

    seq: OfferSeq


@dataclass(frozen=True, slots=True)
class OfferPublished(Event):
    """An offer of ours is in the directory."""

    seq: OfferSeq


@dataclass(frozen=True, slots=True)
class RolloverWanted(Event):
    """Something other than time asks for a new offer."""

    reason: str
