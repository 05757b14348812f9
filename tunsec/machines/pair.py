"""The pair machine: directory keying between this host and one peer, all their children together.

Receiver first (law 2). This host, as receiver, installs inbound SAs under the newest offers of both
hosts and only then publishes a record that names them. As sender it follows the peer's newest
record: installs the twins, switches the SPs, lets the old SAs drain, removes them, and says in its
own next record what it still sends on. The receiver removes an inbound SA only when the sender's
word shows that nobody can use it any more, and it has been idle for a drain.

A new record goes out whenever what it would say has changed and offers of both sides are known, so
two hosts that both wait for the other's word always get it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from tunsec.machines import flow as flows
from tunsec.machines.backoff import backoff
from tunsec.machines.facts import (
    Adopted,
    ChildrenChanged,
    InboundInstalled,
    InboundRefused,
    Keyed,
    OutboundRefused,
    OutboundSwitched,
    OwnOffered,
    PeerConfirmed,
    PeerOffered,
    PeerOfferEnded,
    RecordPublished,
    SaLost,
    SaSoftExpired,
    TimerFired,
    UsageRead,
)
from tunsec.machines.flow import FlowState
from tunsec.machines.orders import (
    Action,
    BlockOutbound,
    InstallInbound,
    InstallOutbound,
    PublishRecord,
    ReadUsage,
    RemoveInbound,
    RemoveOutbound,
    WantRollover,
)
from tunsec.machines.slots import InboundSa, OutboundSa, SaState
from tunsec.model.clock import Deadline, Instant
from tunsec.model.errors import Bug
from tunsec.model.flow import ChildId
from tunsec.model.names import Boot, HostName, OfferSeq, Spi

PairEvent = (
    TimerFired
    | ChildrenChanged
    | Adopted
    | OwnOffered
    | PeerOffered
    | PeerOfferEnded
    | InboundInstalled
    | InboundRefused
    | PeerConfirmed
    | OutboundSwitched
    | OutboundRefused
    | RecordPublished
    | UsageRead
    | SaSoftExpired
    | SaLost
)

_NONE = OfferSeq(0)
_NO_RECORD = PublishRecord(0, OfferSeq(0), OfferSeq(0), (), ())


@dataclass(frozen=True, slots=True)
class PairState:
    """What this host knows of one peer."""

    peer: HostName
    flows: Mapping[ChildId, FlowState] = field(default_factory=dict)
    own_offer: OfferSeq | None = None
    own_holds: frozenset[OfferSeq] = frozenset()
    peer_offer: OfferSeq | None = None
    peer_boot: Boot | None = None
    peer_life: OfferSeq = _NONE
    """The first offer seen of the peer's present life."""
    no_offer_reason: str = "no offer of the peer in the directory"
    record: PublishRecord = _NO_RECORD
    """The newest record that was ordered."""
    must_answer: bool = False
    """The peer named an SA that we cannot use: it must learn that we heard and do not."""
    recorded: int = 0
    """Revision that is known to be in the directory."""


@dataclass(frozen=True, slots=True)
class PairStep:
    """A new state and what must be done."""

    state: PairState
    actions: tuple[Action, ...]


def step(state: PairState, event: PairEvent, now: Instant, fraction: float) -> PairStep:
    """One fact in, orders out. `fraction` in [0, 1) is dice for jitter."""
    actions: list[Action] = []
    state = _take(state, event, now, fraction, actions)
    state = _drain(state, now, actions)
    _ask_for_inbound(state, now, actions)
    state = _publish(state, actions)
    return PairStep(state, tuple(actions))


def deadline(state: PairState) -> Deadline | None:
    """The earliest instant at which a SA has drained or something is tried again."""
    waiting: list[Deadline] = []
    for flow in state.flows.values():
        waiting += [
            Deadline(sa.check_at, "inbound SA drains")
            for sa in flow.inbound
            if sa.state is SaState.REKEYED and sa.check_at is not None
        ]
        waiting += [
            Deadline(sa.drained_at, "outbound SA drains")
            for sa in flow.outbound
            if sa.drained_at is not None
        ]
        if flow.retry_at is not None:
            waiting.append(Deadline(flow.retry_at, "installation is tried again"))
    return min(waiting, default=None)


def blocked_reason(state: PairState, flow: FlowState) -> str:
    """Why a flow is not protected yet, for people; empty when it is."""
    if flow.phase in (flows.Phase.INSTALLED, flows.Phase.REKEYING):
        return ""
    if flow.reason:
        return flow.reason
    if state.own_offer is None:
        return "own offer is not in the directory yet"
    if state.peer_offer is None:
        return state.no_offer_reason
    if flow.active_outbound is None:
        return f"{state.peer} has not confirmed its inbound SA yet"
    return f"{state.peer} does not send on the inbound SA yet"


def _take(
    state: PairState, event: PairEvent, now: Instant, fraction: float, actions: list[Action]
) -> PairState:
    match event:
        case TimerFired():
            return _retries_due(state, now)
        case ChildrenChanged():
            return _children_changed(state, event, actions)
        case Adopted():
            return _adopted(state, event)
        case OwnOffered(current, holds):
            return _own_offered(state, current, holds)
        case PeerOffered(seq, boot):
            same_life = state.peer_boot == boot
            return replace(
                state,
                peer_offer=seq,
                peer_boot=boot,
                peer_life=state.peer_life if same_life else seq,
            )
        case PeerOfferEnded(reason):
            return replace(state, peer_offer=None, no_offer_reason=reason)
        case InboundInstalled(sas):
            return _edit(state, {keyed.child: keyed for keyed in sas}, flows.add_inbound)
        case InboundRefused(children, reason):
            for child in children:
                state = _failed(state, child, reason, now, fraction)
            return state
        case PeerConfirmed():
            return _peer_confirmed(state, event, now, fraction, actions)
        case OutboundSwitched(sas):
            return _edit(
                state,
                {keyed.child: keyed for keyed in sas},
                lambda flow, keyed: flows.switch_outbound(flow, keyed, now),
            )
        case OutboundRefused(child, _, reason):
            return _outbound_refused(state, child, reason)
        case RecordPublished(revision):
            return _record_published(state, revision)
        case UsageRead():
            return _usage_read(state, event, now, actions)
        case SaSoftExpired():
            return _soft_expired(state, event, actions)
        case SaLost():
            return _sa_lost(state, event, actions)


def _with(state: PairState, flow: FlowState) -> PairState:
    return replace(state, flows={**state.flows, flow.child.id: flow})


def _edit(
    state: PairState,
    keyed: Mapping[ChildId, Keyed],
    change: Callable[[FlowState, Keyed], FlowState],
) -> PairState:
    return replace(
        state,
        flows={
            child: change(flow, keyed[child]) if child in keyed else flow
            for child, flow in state.flows.items()
        },
    )


def _failed(
    state: PairState,
    child: ChildId,
    reason: str,
    now: Instant,
    fraction: float,
) -> PairState:
    flow = state.flows.get(child)
    if flow is None:
        return state
    failures = flow.failures + 1
    retry_at = Instant(now + backoff(failures, fraction))
    return _with(
        state,
        replace(flow, reason=reason, failures=failures, retry_at=retry_at),
    )


def _outbound_refused(state: PairState, child: ChildId, reason: str) -> PairState:
    """Only the peer can name another SPI: it learns that we heard and do not send."""
    flow = state.flows.get(child)
    if flow is None:
        return state
    return replace(_with(state, replace(flow, reason=reason)), must_answer=True)


def _retries_due(state: PairState, now: Instant) -> PairState:
    for flow in state.flows.values():
        if flow.retry_at is not None and flow.retry_at <= now:
            state = _with(state, replace(flow, retry_at=None))
    return state


def _children_changed(state: PairState, event: ChildrenChanged, actions: list[Action]) -> PairState:
    kept: dict[ChildId, FlowState] = {}
    for child in event.children:
        before = state.flows.get(child.id)
        kept[child.id] = FlowState(child) if before is None else replace(before, child=child)
    for child_id, flow in state.flows.items():
        if child_id not in kept:
            _end(flow, actions)
    return replace(state, flows=kept)


def _end(flow: FlowState, actions: list[Action]) -> None:
    """Take a child away: sender first here, for nobody may send on what is being removed."""
    if flow.outbound:
        actions.append(BlockOutbound(flow.child.id))
    actions += [RemoveOutbound(flow.child.id, sa.spi) for sa in flow.outbound]
    actions += [RemoveInbound(flow.child.id, sa.spi) for sa in flow.inbound]


def _adopted(state: PairState, event: Adopted) -> PairState:
    for sa in event.inbound:
        flow = state.flows[sa.child]
        slot = InboundSa(sa.spi, sa.aead, None, None, state=SaState.ACTIVE, listed=0)
        state = _with(state, replace(flow, inbound=(*flow.inbound, slot)))
    for sa in event.outbound:
        flow = state.flows[sa.child]
        pinned = OutboundSa(sa.spi, sa.aead, None, None)
        state = _with(state, replace(flow, outbound=(*flow.outbound, pinned)))
    return state


def _own_offered(
    state: PairState, current: OfferSeq | None, holds: frozenset[OfferSeq]
) -> PairState:
    """Own offers changed; what was spent under a wiped one can never be derived again."""
    flows_then = {
        child: replace(flow, spent=frozenset(one for one in flow.spent if one[0] in holds))
        if any(offer not in holds for offer, _ in flow.spent)
        else flow
        for child, flow in state.flows.items()
    }
    return replace(state, own_offer=current, own_holds=holds, flows=flows_then)


def _peer_confirmed(
    state: PairState,
    event: PeerConfirmed,
    now: Instant,
    fraction: float,
    actions: list[Action],
) -> PairState:
    sends: dict[ChildId, set[Spi]] = {}
    for child, spi in event.sends:
        sends.setdefault(child, set()).add(spi)
    state = replace(
        state,
        flows={
            child: flows.peer_sends(
                flow,
                sends=frozenset(sends.get(child, ())),
                heard=event.heard,
                now=now,
                fraction=fraction,
            )
            for child, flow in state.flows.items()
        },
    )
    wanted: list[Keyed] = []
    for keyed in event.receives:
        flow = state.flows.get(keyed.child)
        if flow is not None and any(sa.spi == keyed.spi for sa in flow.outbound):
            continue
        if (
            flow is None
            or keyed.own_offer not in state.own_holds
            or (keyed.own_offer, keyed.spi) in flow.spent
        ):
            state = replace(state, must_answer=True)
            continue
        spent = flow.spent | {(keyed.own_offer, keyed.spi)}
        # A peer that offers SAs of a child has it: what it did not take before it may take now.
        state = _with(state, replace(flow, spent=spent, failures=0, retry_at=None))
        wanted.append(keyed)
    if wanted:
        actions.append(InstallOutbound(tuple(wanted)))
    return state


def _record_published(state: PairState, revision: int) -> PairState:
    if revision != state.record.revision:
        return state  # a newer record is already on its way and says all that this one said
    state = replace(state, recorded=revision)
    for keyed in state.record.receives:
        flow = state.flows.get(keyed.child)
        if flow is not None:
            state = _with(state, flows.published(flow, keyed.spi))
    return state


def _usage_read(
    state: PairState, event: UsageRead, now: Instant, actions: list[Action]
) -> PairState:
    flow = state.flows.get(event.child)
    sa = next((sa for sa in flow.inbound if sa.spi == event.spi), None) if flow else None
    if flow is None or sa is None or sa.check_at is None or sa.check_at > now:
        return state  # answered twice, or gone meanwhile
    if event.packets is None:
        return _with(state, flows.drop_inbound(flow, event.spi))
    if event.packets == sa.packets:
        actions.append(RemoveInbound(event.child, event.spi))
        return _with(state, flows.drop_inbound(flow, event.spi))
    return _with(state, flows.inbound_looked_at(flow, event.spi, event.packets, now))


def _soft_expired(state: PairState, event: SaSoftExpired, actions: list[Action]) -> PairState:
    flow = state.flows.get(event.child)
    if flow is None:
        return state
    if event.inbound:
        expiring = tuple(
            replace(sa, expiring=True) if sa.spi == event.spi else sa for sa in flow.inbound
        )
        return _with(state, replace(flow, inbound=expiring))
    active = flow.active_outbound
    if active is not None and active.spi == event.spi:
        actions.append(WantRollover(f"{event.child.flow}: soft limit of an outbound SA"))
    return state


def _sa_lost(state: PairState, event: SaLost, actions: list[Action]) -> PairState:
    flow = state.flows.get(event.child)
    if flow is None:
        return state
    if event.inbound:
        return _with(state, flows.drop_inbound(flow, event.spi))
    before = flow.active_outbound
    flow = flows.drop_outbound(flow, event.spi)
    if before is not None and flow.active_outbound is None:
        flow = replace(flow, reason=event.reason)
        actions.append(BlockOutbound(event.child))
    return replace(_with(state, flow), must_answer=True)


def _drain(state: PairState, now: Instant, actions: list[Action]) -> PairState:
    """Remove outbound SAs that have drained, look at inbound SAs that should have."""
    for child, flow in state.flows.items():
        for out in flow.outbound:
            if out.drained_at is not None and out.drained_at <= now:
                actions.append(RemoveOutbound(child, out.spi))
                state = _with(state, flows.drop_outbound(state.flows[child], out.spi))
        actions += [
            ReadUsage(child, inbound.spi)
            for inbound in flow.inbound
            if inbound.check_at is not None and inbound.check_at <= now
        ]
    return state


def _ask_for_inbound(state: PairState, now: Instant, actions: list[Action]) -> None:
    if state.own_offer is None or state.peer_offer is None:
        return
    own, peer = state.own_offer, state.peer_offer
    children = tuple(
        child
        for child, flow in state.flows.items()
        if flow.retry_at is None
        and flows.may_replace(flow, own=own, peer=peer, peer_life=state.peer_life)
    )
    if children:
        actions.append(InstallInbound(children, own, peer))


def _publish(state: PairState, actions: list[Action]) -> PairState:
    """Order a new record if it would say something new; never while an installation is asked for,
    whose answer will change it."""
    if state.own_offer is None or state.peer_offer is None:
        return state
    if any(isinstance(action, InstallInbound | InstallOutbound | ReadUsage) for action in actions):
        return state
    children = sorted(state.flows.items(), key=lambda item: str(item[0]))
    record = PublishRecord(
        state.record.revision,
        state.own_offer,
        state.peer_offer,
        tuple(
            Keyed(child, sa.spi, sa.aead, sa.own_offer, sa.peer_offer)
            for child, flow in children
            if (sa := flow.newest_inbound) is not None
            and sa.own_offer is not None
            and sa.peer_offer is not None
        ),
        tuple((child, sa.spi) for child, flow in children for sa in flow.outbound),
    )
    if record == state.record and not state.must_answer:
        return state
    record = replace(record, revision=state.record.revision + 1)
    actions.append(record)
    return replace(
        state,
        record=record,
        must_answer=False,
        flows={child: flows.listed(flow, record.revision) for child, flow in state.flows.items()},
    )


def check(state: PairState) -> None:
    """Raise Bug if the state breaks what the machine promises; the simulation calls it always."""
    for child, flow in state.flows.items():
        if len(flow.inbound) > flows.MAX_EPOCHS:
            raise Bug(f"{child}: {len(flow.inbound)} inbound SAs")
        if sum(sa.state is SaState.ACTIVE for sa in flow.outbound) > 1:
            raise Bug(f"{child}: two outbound SAs in use")
        if len({sa.spi for sa in flow.inbound}) != len(flow.inbound):
            raise Bug(f"{child}: an SPI twice")
