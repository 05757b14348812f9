"""The flow machine: one child, both directions, from BLOCKED to INSTALLED and through rekeys.

Its phase is read off its SAs, so that it cannot say anything the SAs do not::

    BLOCKED --offers of both--> KEYING --both directions in use--> INSTALLED
    INSTALLED --successor asked for--> REKEYING --old SAs drained--> INSTALLED
    any --no outbound SA left--> KEYING or BLOCKED: the block SPs hold the flow
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from tunsec.machines.backoff import backoff
from tunsec.machines.facts import Keyed
from tunsec.machines.slots import (
    INBOUND,
    OUTBOUND,
    InboundFact,
    InboundSa,
    OutboundFact,
    OutboundSa,
    SaState,
)
from tunsec.model.clock import Instant, Seconds
from tunsec.model.flow import Child
from tunsec.model.names import OfferSeq, Spi

MAX_EPOCHS: Final = 3
"""SAs of a child in one direction at a time: previous, current, next."""

READ_WITHIN: Final = Seconds(10.0)
"""After so long a peer has acted on a record that it read: one that polls reads every second."""


class Phase(StrEnum):
    """What an admin sees of a flow."""

    BLOCKED = "BLOCKED"
    KEYING = "KEYING"
    INSTALLED = "INSTALLED"
    REKEYING = "REKEYING"


PROTECTED: Final = (Phase.INSTALLED, Phase.REKEYING)
"""Traffic goes both ways in ESP."""


@dataclass(frozen=True, slots=True)
class Spent:
    """A connection of the flow broke: SAs under offers up to these are not to be used. With `proof`
    both offers of an SA must be newer, else one of them."""

    own: OfferSeq
    peer: OfferSeq
    proof: bool

    def has(self, sa: InboundSa | OutboundSa) -> bool:
        """Whether an SA is of before; one of an earlier life of the daemon is."""
        return self.has_offers(sa.own_offer, sa.peer_offer)

    def has_offers(self, own: OfferSeq | None, peer: OfferSeq | None) -> bool:
        """Whether what is keyed under these offers is."""
        if own is None or peer is None:
            return True
        old = (own <= self.own, peer <= self.peer)
        return any(old) if self.proof else all(old)

    def plus(self, other: "Spent") -> "Spent":
        """What is spent when both are."""
        return Spent(
            max(self.own, other.own), max(self.peer, other.peer), self.proof or other.proof
        )


@dataclass(frozen=True, slots=True)
class FlowState:
    """A child and its SAs, oldest first."""

    child: Child
    inbound: tuple[InboundSa, ...] = ()
    outbound: tuple[OutboundSa, ...] = ()
    rekeys: int = 0
    reason: str = ""
    """Why there is no key, while there is none."""
    retry_at: Instant | None = None
    """When a refused installation is tried again."""
    failures: int = 0
    taken: bool = False
    """Another keying has the outbound SPs: nothing new is made, what is there drains."""
    passed_over: bool = False
    """The peer named an inbound SA meanwhile: it must name another when we come back."""
    spent: Spent | None = None
    """What the last break of a connection left behind."""
    asks: bool = False
    """It was this host that saw it."""
    peer_done: bool = False
    """The peer has nothing of that left, in either direction."""

    @property
    def empty(self) -> bool:
        """Whether nothing of it is left."""
        return not self.inbound and not self.outbound

    @property
    def all(self) -> tuple[InboundSa | OutboundSa, ...]:
        """SAs of both directions."""
        return (*self.inbound, *self.outbound)

    @property
    def newest_inbound(self) -> InboundSa | None:
        """The inbound SA the peer shall use: the newest that is not superseded."""
        alive = [sa for sa in self.inbound if sa.state is not SaState.REKEYED]
        return alive[-1] if alive else None

    @property
    def active_outbound(self) -> OutboundSa | None:
        """The outbound SA that the SPs pin."""
        active = [sa for sa in self.outbound if sa.state is SaState.ACTIVE]
        return active[-1] if active else None

    @property
    def done(self) -> bool:
        """Whether nothing that is spent is left here, and both directions go without it."""
        spent = self.spent
        return spent is None or (
            self.active_outbound is not None
            and any(sa.state is SaState.ACTIVE for sa in self.inbound)
            and not any(spent.has(sa) for sa in self.all)
        )

    @property
    def renewed(self) -> bool:
        """Whether that is so at both ends."""
        return self.spent is None or (self.done and self.peer_done)

    @property
    def phase(self) -> Phase:
        """What the SAs amount to."""
        return phase_of([sa.state for sa in self.inbound], [sa.state for sa in self.outbound])


def phase_of(inbound: Sequence[SaState], outbound: Sequence[SaState]) -> Phase:
    """What SAs in these states amount to."""
    heard = SaState.ACTIVE in inbound or SaState.REKEYED in inbound
    if SaState.ACTIVE not in outbound or not heard:
        return Phase.KEYING if inbound or outbound else Phase.BLOCKED
    settled = len(outbound) == 1 and [*inbound] == [SaState.ACTIVE]
    return Phase.INSTALLED if settled else Phase.REKEYING


def spend(flow: FlowState, spent: Spent, *, asks: bool) -> FlowState:
    """A connection broke, here or at the peer: what was spent before stays so."""
    then = spent if flow.spent is None else flow.spent.plus(spent)
    if then == flow.spent and not asks:
        return flow
    return replace(flow, spent=then, asks=flow.asks or asks, peer_done=False)


def peer_renews(flow: FlowState, spent: Spent, *, done: bool) -> FlowState:
    """The peer's record tells what is spent for it, and whether it has any of that left."""
    flow = spend(flow, spent, asks=False)
    covers = flow.spent is not None and spent.plus(flow.spent) == spent
    return replace(flow, peer_done=done and covers)


def cut_outbound(flow: FlowState) -> tuple[OutboundSa, ...]:
    """Spent SAs that go without a drain: what we send goes by a fresh one."""
    spent, active = flow.spent, flow.active_outbound
    if spent is None or active is None or spent.has(active):
        return ()
    return tuple(sa for sa in flow.outbound if spent.has(sa))


def cut_inbound(flow: FlowState) -> tuple[InboundSa, ...]:
    """Spent SAs that go without a drain: the peer says that it sends by none of them."""
    spent = flow.spent
    if spent is None:
        return ()
    return tuple(sa for sa in flow.inbound if spent.has(sa) and sa.state is SaState.REKEYED)


def inbound_drain(child: Child) -> Seconds:
    """How long a superseded inbound SA must stay idle: packets on their way still arrive."""
    return Seconds(min(10.0, max(0.05, child.rekey.after / 8)))


def outbound_drain(child: Child) -> Seconds:
    """How long a superseded outbound SA stays: a packet may hold a route that names it."""
    return Seconds(min(1.0, max(0.02, child.rekey.after / 16)))


def may_replace(flow: FlowState, *, own: OfferSeq, peer: OfferSeq, peer_life: OfferSeq) -> bool:
    """Whether a new inbound SA under these offers is needed, and may be made now.

    While the newest one is unused and the peer can still move to it, we wait: its word may be on
    the way. `peer_life` is the first offer of the peer's present life; it cannot use older ones.
    """
    if flow.taken or len(flow.inbound) >= MAX_EPOCHS:
        return False
    if flow.spent is not None and flow.inbound and flow.spent.has_offers(own, peer):
        return False  # of no use to a new connection, and those that stand have what they need
    newest = flow.newest_inbound
    if newest is None or newest.expiring or newest.aead not in flow.child.aeads:
        return True
    if newest.esn is not flow.child.esn:
        return True
    if newest.peer_offer is None:
        return True
    if (newest.own_offer, newest.peer_offer) == (own, peer):
        return False
    if flow.spent is not None and flow.spent.has(newest):
        return True
    return newest.state is SaState.ACTIVE or newest.peer_offer < peer_life


def in_the_way(flow: FlowState) -> InboundSa | None:
    """A draining inbound SA that must make room now: the one in use reaches its limit, and its
    hard limit would come before the drain is over. The peer no longer sends on it."""
    newest = flow.newest_inbound
    if len(flow.inbound) < MAX_EPOCHS or newest is None or not newest.expiring:
        return None
    oldest = flow.inbound[0]
    return oldest if oldest.state is SaState.REKEYED else None


def too_many_outbound(flow: FlowState) -> tuple[OutboundSa, ...]:
    """The oldest outbound SAs beyond MAX_EPOCHS: a peer that offers too many gets no more room."""
    return flow.outbound[: max(0, len(flow.outbound) - MAX_EPOCHS)]


def add_inbound(flow: FlowState, keyed: Keyed) -> FlowState:
    """A new inbound SA stands in the kernel."""
    sa = InboundSa(keyed.spi, keyed.aead, keyed.own_offer, keyed.peer_offer, esn=keyed.esn)
    return replace(flow, inbound=(*flow.inbound, sa), reason="", retry_at=None)


def switch_outbound(flow: FlowState, keyed: Keyed, now: Instant) -> FlowState:
    """The SPs pin a new outbound SA; the one before drains.

    A peer that receives has the child: what it declined before it may take now. Only success says
    so: two hosts that both decline must not call each other without end.
    """
    drained_at = Instant(now + outbound_drain(flow.child))
    older = tuple(
        replace(
            sa,
            state=OUTBOUND.next(sa.state, OutboundFact.SUCCEEDED),
            drained_at=sa.drained_at or drained_at,
        )
        for sa in flow.outbound
    )
    new = OutboundSa(keyed.spi, keyed.aead, keyed.own_offer, keyed.peer_offer)
    rekeys = flow.rekeys + (1 if older else 0)
    return replace(
        flow, outbound=(*older, new), rekeys=rekeys, reason="", failures=0, retry_at=None
    )


def outbound_taken(flow: FlowState, now: Instant) -> FlowState:
    """Another keying pins: our outbound SAs drain, and no others follow."""
    drained_at = Instant(now + outbound_drain(flow.child))
    outbound = tuple(
        replace(
            sa,
            state=OUTBOUND.next(sa.state, OutboundFact.SUCCEEDED),
            drained_at=sa.drained_at or drained_at,
        )
        for sa in flow.outbound
    )
    return replace(flow, outbound=outbound, taken=True, reason="", retry_at=None)


def inbound_taken(flow: FlowState, named: frozenset[Spi], now: Instant) -> FlowState:
    """The peer sends by another keying: our inbound SAs go when they are idle.

    Not so one that it has not used yet and that a record in the directory names: the peer may read
    that late, and have come back by then.
    """
    check_at = Instant(now + inbound_drain(flow.child))
    inbound = tuple(
        replace(
            sa,
            state=INBOUND.next(sa.state, InboundFact.PEER_LEFT),
            check_at=sa.check_at if sa.spi in named and _unused(sa) else sa.check_at or check_at,
        )
        for sa in flow.inbound
    )
    return replace(flow, inbound=inbound)


def _unused(sa: InboundSa) -> bool:
    return sa.state in (SaState.INSTALLED, SaState.CONFIRMED)


def withdrawn(flow: FlowState, spi: Spi, now: Instant) -> FlowState:
    """No record in the directory names an inbound SA any more. One that was kept for that goes when
    a peer that read it just before has had time to use it, and did not."""
    check_at = Instant(now + READ_WITHIN)
    return replace(
        flow,
        inbound=tuple(
            replace(sa, check_at=check_at)
            if sa.spi == spi and sa.state is SaState.REKEYED and sa.check_at is None
            else sa
            for sa in flow.inbound
        ),
    )


def listed(flow: FlowState, revision: int) -> FlowState:
    """A record that names the newest inbound SA was ordered."""
    newest = flow.newest_inbound
    if newest is None or newest.listed is not None:
        return flow
    return replace(
        flow,
        inbound=tuple(replace(sa, listed=revision) if sa is newest else sa for sa in flow.inbound),
    )


def published(flow: FlowState, spi: Spi) -> FlowState:
    """A record that names this inbound SA is in the directory."""
    return replace(
        flow,
        inbound=tuple(
            replace(sa, state=INBOUND.next(sa.state, InboundFact.PUBLISHED))
            if sa.spi == spi
            else sa
            for sa in flow.inbound
        ),
    )


def peer_sends(
    flow: FlowState, *, sends: frozenset[Spi], heard: int, now: Instant, fraction: float
) -> FlowState:
    """The peer's record tells on which of our inbound SAs it sends.

    One that it has heard of and does not send on is superseded: it acts on a record at once or
    never. One that it has not heard of stays, for it may still move to it. A peer that does not
    take what it was offered is offered another after a while; the one it declined has carried
    nothing and goes at once, so that a peer that starts again and again is not made to wait.
    """
    inbound = list(flow.inbound)
    newer_in_use = refused = False
    for index in reversed(range(len(inbound))):
        sa = inbound[index]
        if sa.spi in sends:
            state = INBOUND.next(sa.state, InboundFact.PEER_SENDS)
            inbound[index] = replace(sa, state=state, check_at=None, packets=None)
            newer_in_use = True
        elif (
            sa.state is SaState.ACTIVE
            or newer_in_use
            or (sa.listed is not None and sa.listed <= heard)
        ):
            declined = _unused(sa)
            refused = refused or declined
            inbound[index] = replace(
                sa,
                state=INBOUND.next(sa.state, InboundFact.PEER_LEFT),
                check_at=sa.check_at or now,
                packets=0 if declined else sa.packets,
            )
    if newer_in_use:
        return replace(flow, inbound=tuple(inbound), failures=0)
    if not refused:
        return replace(flow, inbound=tuple(inbound))
    failures = flow.failures + 1
    return replace(
        flow,
        inbound=tuple(inbound),
        failures=failures,
        retry_at=Instant(now + backoff(failures, fraction)),
        reason="the peer did not take the SA it was offered",
    )


def drop_inbound(flow: FlowState, spi: Spi) -> FlowState:
    """An inbound SA is gone."""
    return replace(flow, inbound=tuple(sa for sa in flow.inbound if sa.spi != spi))


def drop_outbound(flow: FlowState, spi: Spi) -> FlowState:
    """An outbound SA is gone."""
    return replace(flow, outbound=tuple(sa for sa in flow.outbound if sa.spi != spi))


def inbound_to_look_at(flow: FlowState, now: Instant) -> tuple[Spi, ...]:
    """Draining inbound SAs of which it is time to see whether they fell idle."""
    return tuple(sa.spi for sa in flow.inbound if sa.check_at is not None and sa.check_at <= now)


def looking(flow: FlowState, now: Instant) -> FlowState:
    """Those are looked at now, and again after a drain."""
    due = inbound_to_look_at(flow, now)
    next_look = Instant(now + inbound_drain(flow.child))
    return replace(
        flow,
        inbound=tuple(
            replace(sa, check_at=next_look) if sa.spi in due else sa for sa in flow.inbound
        ),
    )


def inbound_carried(flow: FlowState, spi: Spi, packets: int) -> FlowState:
    """A draining inbound SA had carried this many packets just now."""
    return replace(
        flow,
        inbound=tuple(replace(sa, packets=packets) if sa.spi == spi else sa for sa in flow.inbound),
    )
