"""The outside of one IKE machine: a charon that does what it is told, a kernel that counts, a peer
that is the test."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from tests.sim.cast import policy
from tunsec.machines import ike_peer
from tunsec.machines.facts import ChildrenChanged, TimerFired
from tunsec.machines.flow import Phase
from tunsec.machines.ike_facts import (
    CharonAway,
    CharonReady,
    ChildDown,
    ChildUp,
    IkeDown,
    IkeUp,
    InitiateEnded,
    Listed,
    LoadEnded,
    OutboundPinned,
    SaUsage,
    SeenChild,
    SeenIke,
    Stray,
    UsageTold,
)
from tunsec.machines.ike_flow import IkeFlow
from tunsec.machines.ike_orders import (
    Initiate,
    ListSas,
    LoadConnection,
    PinOutbound,
    ReadSaUsage,
    RemoveStray,
    TerminateChild,
    TerminateIke,
)
from tunsec.machines.ike_peer import IkeEvent, IkeState
from tunsec.machines.orders import Action, BlockOutbound
from tunsec.model.aead import Aead
from tunsec.model.clock import Instant
from tunsec.model.flow import Child, ChildId, Keying
from tunsec.model.names import HostName, Spi
from tunsec.policy.desired import desired

AEAD = Aead.AES_128_GCM
ANSWERED = PinOutbound | ReadSaUsage


def ike_children(flows: int = 1, *, after: str = "10s") -> tuple[Child, ...]:
    """Children of h0 towards h1, keyed by IKE."""
    intent = policy(2, after=after, hard="8h", flows=flows)
    return tuple(replace(child, keying=Keying.IKE) for child in desired(intent, "h0").children)


@dataclass(slots=True)
class OneConnection:
    """h0's machine for h1; what it does wrong is an assertion."""

    first: bool = True
    now: float = 1000.0
    dice: float = 0.0
    ikes: dict[int, SeenIke] = field(default_factory=dict)
    up: dict[int, SeenChild] = field(default_factory=dict)
    kernel: dict[tuple[Spi, bool], ChildId] = field(default_factory=dict)
    packets: dict[tuple[Spi, bool], int] = field(default_factory=dict)
    volume: int = 0
    pinned: dict[ChildId, Spi] = field(default_factory=dict)
    loaded: list[int] = field(default_factory=list)
    orders: list[Action] = field(default_factory=list)
    silent: bool = False
    """charon begins and nothing comes of it."""
    busy: bool = False
    """charon is still at it."""
    words: str = ""
    ignored: str = ""
    """Option that new CHILD_SAs lack."""
    pin_error: str = ""
    state: IkeState = field(init=False)
    _next: int = 0
    _over: int = -1

    def __post_init__(self) -> None:
        self.state = IkeState(HostName("h1"), self.first)

    @property
    def flow(self) -> IkeFlow:
        """The only flow."""
        [flow] = self.state.flows.values()
        return flow

    @property
    def child(self) -> ChildId:
        """Its name."""
        return self.flow.child.id

    @property
    def phase(self) -> Phase:
        """What an admin sees."""
        return self.flow.phase(Instant(self.now))

    def tell(self, *events: IkeEvent) -> None:
        """Facts one after another, each with all that follows from it."""
        waiting = list(events)
        while waiting:
            done = ike_peer.step(self.state, waiting.pop(0), Instant(self.now), self.dice)
            self.state = done.state
            ike_peer.check(self.state)
            answered = [isinstance(one, ANSWERED) for one in done.actions]
            assert not any(answered[:-1]), "an answered order is the last of its step"
            for action in done.actions:
                self.orders.append(action)
                waiting[:0] = self._perform(action)

    def _perform(self, action: Action) -> list[IkeEvent]:
        match action:
            case LoadConnection(variant):
                self.loaded.append(variant)
                return [LoadEnded(variant, "")]
            case Initiate(child, slot):
                return [InitiateEnded(child, ""), *self._made(child, slot)]
            case ListSas():
                return [self._listed()]
            case PinOutbound(child, spi):
                return [self._pin(child, spi)]
            case BlockOutbound(child):
                self.pinned.pop(child, None)
            case TerminateChild(_, child_id):
                return self.ended(child_id)
            case TerminateIke(ike_id):
                return self._ike_ended(ike_id)
            case RemoveStray(child, spi, inbound):
                assert self.pinned.get(child) != spi or inbound, "the SPs still pin it"
                del self.kernel[spi, inbound]
            case ReadSaUsage(sas):
                return [UsageTold(tuple(self._usage(*one) for one in sas))]
            case _:
                raise AssertionError(action)
        return []

    def _made(self, child: ChildId, slot: int) -> list[IkeEvent]:
        """The CHILD_SA that this host asked for."""
        if self.silent:
            return []
        fresh = not self.ikes or self._over != self.loaded[-1]
        self._over = self.loaded[-1]
        return self.make(child, own=True, slot=slot, fresh=fresh)

    def make(
        self, child: ChildId, *, own: bool, slot: int = 0, fresh: bool = False, own_ike: bool = True
    ) -> list[IkeEvent]:
        """A CHILD_SA is made, over a fresh IKE_SA or the newest one."""
        events: list[IkeEvent] = []
        if fresh or not self.ikes:
            self._next += 1
            seen_ike = self.ikes[self._next] = SeenIke(self._next, own_ike)
            events.append(IkeUp(seen_ike))
        self._next += 1
        number = self._next
        spis = Spi(0x1000 + number), Spi(0x9000 + number)
        seen = SeenChild(
            max(self.ikes), number, child, own, slot, *spis, AEAD, ignored=self.ignored
        )
        self.up[number] = seen
        self.kernel[seen.spi_in, True] = self.kernel[seen.spi_out, False] = child
        return [*events, ChildUp(seen)]

    def ended(self, child_id: int) -> list[IkeEvent]:
        """charon deletes a CHILD_SA."""
        seen = self.up.pop(child_id, None)
        if seen is None:
            return []
        self.kernel.pop((seen.spi_in, True), None)
        self.kernel.pop((seen.spi_out, False), None)
        return [ChildDown(child_id)]

    def _ike_ended(self, ike_id: int) -> list[IkeEvent]:
        if self.ikes.pop(ike_id, None) is None:
            return []
        gone = [number for number, seen in self.up.items() if seen.ike == ike_id]
        return [*(event for number in gone for event in self.ended(number)), IkeDown(ike_id)]

    def _listed(self) -> Listed:
        kept = {(one.spi_in, True) for one in self.up.values()}
        kept |= {(one.spi_out, False) for one in self.up.values()}
        strays = tuple(
            Stray(child, spi, inbound, AEAD)
            for (spi, inbound), child in self.kernel.items()
            if (spi, inbound) not in kept
        )
        return Listed(
            tuple(self.ikes.values()),
            tuple(self.up.values()),
            strays,
            busy=self.busy,
            words=self.words,
        )

    def _pin(self, child: ChildId, spi: Spi) -> OutboundPinned:
        if self.pin_error or (spi, False) not in self.kernel:
            return OutboundPinned(child, spi, self.pin_error or "not in the kernel")
        self.pinned[child] = spi
        return OutboundPinned(child, spi, "")

    def _usage(self, child: ChildId, spi: Spi, inbound: bool) -> SaUsage:
        if (spi, inbound) not in self.kernel:
            return SaUsage(child, spi, inbound, None)
        count = self.packets.get((spi, inbound), 0)
        return SaUsage(child, spi, inbound, count, self.volume)

    # Time

    def wait(self, span: float) -> None:
        """Let time pass: the machine is woken at its deadlines, and never without end."""
        end = self.now + span
        woken = 0
        while (deadline := ike_peer.deadline(self.state)) is not None and deadline.at <= end:
            woken = woken + 1 if deadline.at <= self.now else 0
            assert woken < 10, f"it never rests: {deadline}"
            self.now = max(self.now, deadline.at)
            self.tell(TimerFired())
        self.now = end

    # The outside

    def begin(self, flows: int = 1, *, after: str = "10s") -> "OneConnection":
        """Children, and a charon that is there."""
        self.tell(ChildrenChanged(ike_children(flows, after=after)), CharonReady())
        return self

    def peer_sends(self, *, slot: int = 0) -> SeenChild:
        """The peer makes the CHILD_SA on which it sends."""
        events = self.make(self.child, own=False, slot=slot)
        self.tell(*events)
        return self.up[max(self.up)]

    def charon_crashes(self) -> None:
        """It is gone; the kernel is not."""
        self.up.clear()
        self.ikes.clear()
        self.tell(CharonAway("charon has closed the connection"))

    def peer_comes_anew(self, *, slot: int = 0) -> SeenChild:
        """The peer, whose charon crashed, makes an IKE_SA beside the one that we still have."""
        self.tell(*self.make(self.child, own=False, slot=slot, fresh=True, own_ike=False))
        return self.up[max(self.up)]

    def ordered(self, kind: type[Action], *, after: int = 0) -> Sequence[Action]:
        """Orders of a kind."""
        return [order for order in self.orders[after:] if isinstance(order, kind)]
