"""The outside of one pair machine: a kernel that only counts, a directory, a peer that is the
test."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.sim.cast import policy
from tunsec.machines import pair
from tunsec.machines.facts import (
    Carried,
    ChildrenChanged,
    InboundInstalled,
    Keyed,
    NotInstalled,
    OutboundSwitched,
    OwnOffered,
    PeerConfirmed,
    PeerOffered,
    TimerFired,
    UsageRead,
)
from tunsec.machines.flow import FlowState
from tunsec.machines.orders import (
    Action,
    BlockOutbound,
    InstallInbound,
    InstallOutbound,
    PassOver,
    PublishRecord,
    ReadUsage,
    RemoveInbound,
    RemoveOutbound,
)
from tunsec.machines.pair import PairEvent, PairState
from tunsec.model.aead import Aead
from tunsec.model.clock import Instant
from tunsec.model.flow import Child, ChildId
from tunsec.model.names import Boot, ConfirmationSeq, HostName, OfferSeq, Spi
from tunsec.policy.desired import desired

AEAD = Aead.AES_128_GCM
ANSWERED = InstallInbound | InstallOutbound | ReadUsage


def children(flows: int = 1, *, after: str = "10s") -> tuple[Child, ...]:
    """Children of h0 towards h1."""
    intent = policy(2, after=after, hard="1h", flows=flows)
    return desired(intent, "h0").children


@dataclass(slots=True)
class OnePair:
    """h0's machine for h1, its orders carried out at once; what it does wrong is an assertion."""

    now: float = 1000.0
    dice: float = 0.0
    state: PairState = field(default_factory=lambda: PairState(HostName("h1")))
    inbound: dict[Spi, ChildId] = field(default_factory=dict)
    outbound: dict[Spi, ChildId] = field(default_factory=dict)
    pinned: dict[ChildId, Spi] = field(default_factory=dict)
    packets: dict[Spi, int] = field(default_factory=dict)
    refuse_inbound: str = ""
    refuse_outbound: str = ""
    records: list[PublishRecord] = field(default_factory=list)
    orders: list[Action] = field(default_factory=list)
    sequence: int = 0
    _spi: int = 0x1000

    def tell(self, *events: PairEvent) -> None:
        """Facts one after another, each with all that follows from it."""
        waiting = list(events)
        while waiting:
            done = pair.step(self.state, waiting.pop(0), Instant(self.now), self.dice)
            self.state = done.state
            pair.check(self.state)
            assert sum(isinstance(one, ANSWERED) for one in done.actions) <= 1
            for action in done.actions:
                self.orders.append(action)
                waiting[:0] = self._perform(action)

    def _perform(self, action: Action) -> list[PairEvent]:
        match action:
            case InstallInbound(names, own, peer):
                return [self._install_inbound(names, own, peer)]
            case InstallOutbound(sas):
                return [self._install_outbound(sas)]
            case ReadUsage(sas):
                return [UsageRead(tuple(self._carried(child, spi) for child, spi in sas))]
            case RemoveInbound(_, spi):
                del self.inbound[spi]
            case RemoveOutbound(child, spi):
                assert self.pinned.get(child) != spi, "the SPs still pin it"
                del self.outbound[spi]
            case BlockOutbound(child):
                self.pinned.pop(child, None)
            case PublishRecord():
                self._publish(action)
            case _:
                pass
        return []

    def _install_inbound(
        self, names: Sequence[ChildId], own: OfferSeq, peer: OfferSeq
    ) -> InboundInstalled:
        if self.refuse_inbound:
            return InboundInstalled(
                (), tuple(NotInstalled(child, self.refuse_inbound) for child in names)
            )
        keyed = []
        for child in names:
            self._spi += 1
            self.inbound[Spi(self._spi)] = child
            keyed.append(Keyed(child, Spi(self._spi), AEAD, own, peer))
        return InboundInstalled(tuple(keyed))

    def _install_outbound(self, sas: Sequence[Keyed]) -> OutboundSwitched:
        if self.refuse_outbound:
            return OutboundSwitched(
                (), tuple(NotInstalled(keyed.child, self.refuse_outbound) for keyed in sas)
            )
        known = {flow.child.id for flow in self.state.flows.values()}
        passed = {keyed for one in self.orders if isinstance(one, PassOver) for keyed in one.sas}
        taken = [keyed for keyed in sas if keyed.child in known and keyed not in passed]
        for keyed in taken:
            self.outbound[keyed.spi] = keyed.child
            self.pinned[keyed.child] = keyed.spi
        refused = [NotInstalled(keyed.child, "no child") for keyed in sas if keyed not in taken]
        return OutboundSwitched(tuple(taken), tuple(refused))

    def _carried(self, child: ChildId, spi: Spi) -> Carried:
        there = spi in self.inbound
        return Carried(child, spi, self.packets.get(spi, 0) if there else None)

    def _publish(self, record: PublishRecord) -> None:
        """A record speaks the truth about the kernel at this moment."""
        assert {spi for _, spi in record.sends} == set(self.outbound)
        assert {keyed.spi for keyed in record.receives} <= set(self.inbound)
        assert record.revision == len(self.records) + 1
        self.records.append(record)

    # The other side

    def begin(self, flows: int = 1, *, after: str = "10s") -> "OnePair":
        """Children, and offers of both sides."""
        self.tell(
            ChildrenChanged(children(flows, after=after)),
            OwnOffered(OfferSeq(1), frozenset({OfferSeq(1)})),
            PeerOffered(OfferSeq(101), Boot("a" * 32)),
        )
        return self

    def roll_over(self, own: int) -> None:
        """This host has a new offer, and still holds the one before."""
        self.tell(OwnOffered(OfferSeq(own), frozenset({OfferSeq(own - 1), OfferSeq(own)})))

    def confirmed(
        self,
        *,
        receives: Sequence[tuple[ChildId, int]] = (),
        sends: Sequence[Spi] = (),
        heard: int | None = None,
        own_offer: int = 1,
        peer_offer: int = 101,
    ) -> None:
        """The peer's next record; it has heard of our newest one if nothing else is said."""
        self.sequence += 1
        keyed = tuple(
            Keyed(child, Spi(spi), AEAD, OfferSeq(own_offer), OfferSeq(peer_offer))
            for child, spi in receives
        )
        self.tell(
            PeerConfirmed(
                ConfirmationSeq(self.sequence),
                keyed,
                frozenset((self.inbound[spi], spi) for spi in sends if spi in self.inbound),
                len(self.records) if heard is None else heard,
            )
        )

    def wait(self, span: float) -> None:
        """Time passes; the timer fires when it is due."""
        end = self.now + span
        while (due := pair.deadline(self.state)) is not None and due.at <= end:
            self.now = max(self.now, due.at)
            self.tell(TimerFired())
            after = pair.deadline(self.state)
            assert after is None or after.at > self.now, f"never done: {after}"
        self.now = end

    @property
    def flow(self) -> FlowState:
        """The only flow."""
        [flow] = self.state.flows.values()
        return flow

    @property
    def child(self) -> ChildId:
        """The only child."""
        return self.flow.child.id

    def in_use(self) -> tuple[Spi, Spi]:
        """Both directions confirmed and in use; inbound and outbound SPI."""
        [spi] = self.inbound
        self.confirmed(receives=[(self.child, 0x9001)], sends=[spi])
        return spi, Spi(0x9001)
