"""Events of the IKE machines: facts, past tense. What charon told was held against the kernel."""

from dataclasses import dataclass

from tunsec.model.aead import Aead
from tunsec.model.event import Event
from tunsec.model.flow import ChildId
from tunsec.model.names import Spi


@dataclass(frozen=True, slots=True)
class CharonReady(Event):
    """charon answers and has this host's credentials. What it held before is unknown."""


@dataclass(frozen=True, slots=True)
class CharonRenewed(Event):
    """charon has this host's credentials anew; what it holds is known."""


@dataclass(frozen=True, slots=True)
class CharonAway(Event):
    """charon cannot be used; what it put into the kernel may still be there."""

    reason: str


@dataclass(frozen=True, slots=True)
class KernelSa:
    """An SA that the kernel holds; `aead` is None for one that tunsec does not use."""

    spi: Spi
    aead: Aead | None


@dataclass(frozen=True, slots=True)
class Adopted(Event):
    """What the kernel held when the daemon started: inbound SAs, oldest first, and the outbound one
    that the SPs pin. Whether a charon keeps them is not known yet."""

    child: ChildId
    inbound: tuple[KernelSa, ...]
    outbound: KernelSa | None


@dataclass(frozen=True, slots=True)
class LoadEnded(Event):
    """LoadConnection was carried out; `error` is empty when charon has it."""

    variant: int
    error: str


@dataclass(frozen=True, slots=True)
class InitiateEnded(Event):
    """charon has begun what Initiate asked for, or (an `error`) would not."""

    child: ChildId
    error: str


@dataclass(frozen=True, slots=True)
class SeenIke:
    """An established IKE_SA of this connection; `own` when this host initiated it."""

    id: int
    own: bool
    age: float = 0.0
    """Seconds since it was established."""


@dataclass(frozen=True, slots=True)
class SeenChild:
    """A CHILD_SA of this connection: its `own` are those on which this host sends.

    `ignored` names options that the kernel does not hold as asked; such a CHILD_SA is not used.
    """

    ike: int
    id: int
    child: ChildId
    own: bool
    slot: int
    spi_in: Spi
    spi_out: Spi
    aead: Aead | None
    ignored: str = ""
    age: float = 0.0
    """Seconds since it was installed."""
    outdated: bool = False
    """It is as it was asked for, and the policy has asked for something else since."""
    stale: bool = False
    """It is unfit, and its IKE_SA may be older than what is asked now: charon goes by what was
    asked when the IKE_SA was made."""


@dataclass(frozen=True, slots=True)
class Stray:
    """An SA of a child in the kernel that no CHILD_SA of charon has."""

    child: ChildId
    spi: Spi
    inbound: bool
    aead: Aead | None


@dataclass(frozen=True, slots=True)
class Listed(Event):
    """ListSas was carried out: all that charon has of this connection, and what only the kernel
    has. `busy` when an IKE_SA or CHILD_SA is on its way; `error` when charon or the kernel
    gave no list.

    `words` are charon's own about this connection, for people.
    """

    ikes: tuple[SeenIke, ...] = ()
    children: tuple[SeenChild, ...] = ()
    strays: tuple[Stray, ...] = ()
    busy: bool = False
    words: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True)
class EventMissed(Event):
    """charon told something that could not be read, or not be held against the kernel."""


@dataclass(frozen=True, slots=True)
class IkeUp(Event):
    """An IKE_SA is established: the peer has proven who it is."""

    ike: SeenIke


@dataclass(frozen=True, slots=True)
class IkeDown(Event):
    """An IKE_SA is gone, and its CHILD_SAs with it."""

    id: int


@dataclass(frozen=True, slots=True)
class IkeReplaced(Event):
    """An IKE_SA was rekeyed; its CHILD_SAs are the new one's."""

    old: int
    new: int


@dataclass(frozen=True, slots=True)
class ChildUp(Event):
    """A CHILD_SA is up."""

    seen: SeenChild


@dataclass(frozen=True, slots=True)
class ChildDown(Event):
    """A CHILD_SA is gone."""

    id: int


@dataclass(frozen=True, slots=True)
class SaGone(Event):
    """An SA of a child left the kernel."""

    child: ChildId
    spi: Spi
    inbound: bool


@dataclass(frozen=True, slots=True)
class OutboundPinned(Event):
    """PinOutbound was carried out; `error` is empty when the SPs pin the SA and it is there."""

    child: ChildId
    spi: Spi
    error: str


@dataclass(frozen=True, slots=True)
class SaUsage:
    """What an SA has carried so far, or that it is gone (`packets` None)."""

    child: ChildId
    spi: Spi
    inbound: bool
    packets: int | None
    volume: int = 0
    """Bytes."""


@dataclass(frozen=True, slots=True)
class UsageTold(Event):
    """ReadSaUsage was carried out; an SA that could not be asked about is missing."""

    sas: tuple[SaUsage, ...]


@dataclass(frozen=True, slots=True)
class RenewalWanted(Event):
    """A connection of a child broke: its CHILD_SAs, and with `proof` the IKE_SAs, of before are not
    to be used any more."""

    child: ChildId
    proof: bool


@dataclass(frozen=True, slots=True)
class ReauthWanted(Event):
    """Something asks for new proof of identity: IKE_SAs of before count no longer after a while."""

    reason: str
