"""Actions of the IKE machines: orders, imperative. The daemon performs them.

PinOutbound and ReadSaUsage are answered before any other event of the same machine, and each is the
last of its step. What charon is asked for is answered whenever charon does.
"""

from dataclasses import dataclass

from tunsec.machines.orders import Action
from tunsec.model.flow import ChildId
from tunsec.model.names import Spi


@dataclass(frozen=True, slots=True)
class LoadConnection(Action):
    """Give charon the connection with all its children; LoadEnded answers.

    An IKE_SA that was made under one variant is not taken for a CHILD_SA of another.
    """

    variant: int


@dataclass(frozen=True, slots=True)
class Initiate(Action):
    """Have charon make the CHILD_SA on which this host sends; InitiateEnded answers, ChildUp tells
    of success."""

    child: ChildId
    slot: int


@dataclass(frozen=True, slots=True)
class ListSas(Action):
    """Ask charon what it has; Listed answers."""


@dataclass(frozen=True, slots=True)
class TerminateChild(Action):
    """Have charon delete a CHILD_SA."""

    ike: int
    id: int


@dataclass(frozen=True, slots=True)
class TerminateIke(Action):
    """Have charon delete an IKE_SA with all it carries, whether the peer answers or not."""

    id: int


@dataclass(frozen=True, slots=True)
class PinOutbound(Action):
    """Have the outbound SPs name this SA, if it is there; read back. OutboundPinned answers."""

    child: ChildId
    spi: Spi


@dataclass(frozen=True, slots=True)
class RemoveStray(Action):
    """Remove an SA that no charon keeps any more."""

    child: ChildId
    spi: Spi
    inbound: bool


@dataclass(frozen=True, slots=True)
class ReadSaUsage(Action):
    """Read what SAs have carried: (child, SPI, inbound). UsageTold answers."""

    sas: tuple[tuple[ChildId, Spi, bool], ...]
