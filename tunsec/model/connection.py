"""Transport connections as the kernel tells of them, and packets that ask for new ones."""

from dataclasses import dataclass

from tunsec.model.event import Event
from tunsec.model.names import Address, Spi


@dataclass(frozen=True, slots=True)
class Ends:
    """What names a TCP connection, as this host sees it."""

    local: Address
    local_port: int
    remote: Address
    remote_port: int


@dataclass(frozen=True, slots=True)
class Connection:
    """A TCP connection of this host, of a program or of the kernel itself."""

    ends: Ends
    alive: bool
    """Being opened, or open both ways: one that either side has begun to close is over."""
    carried: bool
    """Whether a byte of a program ever went or came on it."""


@dataclass(frozen=True, slots=True)
class Syn:
    """The first packet of a new connection, held by the kernel until there is a verdict.

    `mark` is what the packet bore before the guard table touched it.
    """

    id: int
    ends: Ends
    outbound: bool
    sequence: int
    """TCP's initial sequence number: a SYN that is sent again bears the same."""
    mark: int = 0
    spi: Spi | None = None
    """The SA that an inbound one came by."""


@dataclass(frozen=True, slots=True)
class ConnectionEnded(Event):
    """The kernel has destroyed the socket of a connection."""

    connection: Connection


@dataclass(frozen=True, slots=True)
class EndsLost(Event):
    """The kernel dropped events: ends of connections may have been missed."""
