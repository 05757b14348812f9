"""Facts that the kernel reports (struct xfrm_user_expire, xfrm_user_acquire and notifications)."""

from dataclasses import dataclass

from tunsec.model.names import Address, Reqid
from tunsec.model.sa import SaId
from tunsec.model.selector import Selector
from tunsec.model.sp import SpId


@dataclass(frozen=True, slots=True)
class Event:
    """Something that has happened."""


@dataclass(frozen=True, slots=True)
class SoftExpired(Event):
    """An SA reached a soft limit: time to replace it."""

    sa: SaId
    reqid: Reqid


@dataclass(frozen=True, slots=True)
class HardExpired(Event):
    """An SA reached a hard limit and is gone."""

    sa: SaId
    reqid: Reqid


@dataclass(frozen=True, slots=True)
class Acquired(Event):
    """A packet met an SP without an SA (XFRM_MSG_ACQUIRE)."""

    selector: Selector
    src: Address
    dst: Address
    reqid: Reqid


@dataclass(frozen=True, slots=True)
class SaAdded(Event):
    """Somebody installed an SA."""

    sa: SaId
    reqid: Reqid


@dataclass(frozen=True, slots=True)
class SaRemoved(Event):
    """Somebody deleted an SA."""

    sa: SaId
    reqid: Reqid


@dataclass(frozen=True, slots=True)
class SadFlushed(Event):
    """Somebody flushed the whole SAD."""


@dataclass(frozen=True, slots=True)
class SpChanged(Event):
    """Somebody installed, replaced or deleted an SP."""

    sp: SpId
    removed: bool


@dataclass(frozen=True, slots=True)
class SpdFlushed(Event):
    """Somebody flushed the whole SPD."""


@dataclass(frozen=True, slots=True)
class EventsLost(Event):
    """The event lane overran (ENOBUFS): only a fresh dump tells what is true now."""


@dataclass(frozen=True, slots=True)
class GuardChanged(Event):
    """Somebody changed or deleted the nftables table."""


@dataclass(frozen=True, slots=True)
class LinkChanged(Event):
    """A network device, its addresses or its MTU changed."""

    ifindex: int
    name: str


KernelEvent = (
    SoftExpired
    | HardExpired
    | Acquired
    | SaAdded
    | SaRemoved
    | SadFlushed
    | SpChanged
    | SpdFlushed
    | EventsLost
)
