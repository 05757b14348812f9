"""The pair machine: directory keying between this host and one peer, all their children together.

Receiver first (law 2). This host, as receiver, installs inbound SAs under the newest offers of both
hosts and only then publishes a record that names them. As sender it follows the peer's newest
record: installs the twins, switches the SPs, lets the old SAs drain, removes them, and says in its
own next record what it still sends on. The receiver removes an inbound SA only when the sender's
word shows that nobody can use it any more, and it has been idle for a drain.

A new record goes out whenever what it would say has changed and offers of both sides are known, so
two hosts that both wait for the other's word always get it.

An order that is answered is the last of its step: what follows from the answer follows then. So a
record never speaks while something is under way that would change it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from tunsec.machines import flow as flows
from tunsec.machines.backoff import backoff
from tunsec.machines.facts import (
    Adopted,
    ChildrenChanged,
    InboundInstalled,
    InboundTaken,
    Keyed,
    OutboundSwitched,
    OutboundTaken,
    OwnOffered,
    PeerConfirmed,
    PeerOffered,
    PeerOfferEnded,
    PeerOfferRefused,
    PeerRevoked,
    RecordPublished,
    Renewal,
    RenewalWanted,
    SaLost,
    SaSoftExpired,
    TimerFired,
    UsageRead,
)
from tunsec.machines.flow import FlowState, Spent
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
    WantRollover,
)
from tunsec.machines.reconnect import Standing
from tunsec.machines.slots import InboundSa, OutboundSa, SaState
from tunsec.model.clock import Deadline, Instant
from tunsec.model.errors import Bug
from tunsec.model.flow import ChildId, Keying
from tunsec.model.names import Boot, ConfirmationSeq, HostName, OfferSeq, Spi

PairEvent = (
    TimerFired
    | ChildrenChanged
    | Adopted
    | OwnOffered
    | PeerOffered
    | PeerOfferEnded
    | PeerOfferRefused
    | PeerRevoked
    | InboundInstalled
    | PeerConfirmed
    | OutboundSwitched
    | RecordPublished
    | UsageRead
    | SaSoftExpired
    | SaLost
    | OutboundTaken
    | InboundTaken
    | RenewalWanted
)

_Answered = InstallInbound | InstallOutbound | ReadUsage
_NONE = OfferSeq(0)
_UNHEARD = ConfirmationSeq(0)
_NO_RECORD = PublishRecord(0, _UNHEARD, OfferSeq(0), OfferSeq(0), (), ())


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
    heard: ConfirmationSeq = _UNHEARD
    """The peer's newest record that was acted on."""
    record: PublishRecord = _NO_RECORD
    """The newest record that was ordered."""
    named: frozenset[tuple[ChildId, Spi]] = frozenset()
    """Inbound SAs that a record in the directory may name: the peer may read it any moment."""
    asked: OfferSeq | None = None
    """The own offer whose successor a renewal has asked for."""
    must_answer: bool = False
    """The peer named an SA that we cannot use: it must learn that we heard and do not."""


@dataclass(frozen=True, slots=True)
class PairStep:
    """A new state and what must be done."""

    state: PairState
    actions: tuple[Action, ...]


def step(state: PairState, event: PairEvent, now: Instant, fraction: float) -> PairStep:
    """One fact in, orders out. `fraction` in [0, 1) is dice for jitter."""
    actions: list[Action] = []
    state = _take(state, event, now, fraction, actions)
    for stage in (_cut, _drain, _renew, _ask_for_inbound, _publish):
        if any(isinstance(action, _Answered) for action in actions):
            break  # its answer comes next, and takes up what is left
        state = stage(state, now, actions)
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
    if flow.phase in flows.PROTECTED:
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


def standing(state: PairState, child: ChildId) -> Standing:
    """What a gate must know of a child."""
    flow = state.flows.get(child)
    if flow is None:
        return Standing()
    spent = flow.spent
    stale = {sa.spi for sa in flow.inbound if spent is not None and spent.has(sa)}
    fresh = {sa.spi for sa in flow.inbound} - stale
    return Standing(
        flow.active_outbound is not None, frozenset(fresh), frozenset(stale), flow.renewed
    )


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
            if state.peer_offer is None:
                state = _spend_first_heard(state, seq)
            same_life = state.peer_boot == boot
            if not same_life:
                state = _names_only(state, frozenset(), now)
            return replace(
                state,
                peer_offer=seq,
                peer_boot=boot,
                peer_life=state.peer_life if same_life else seq,
            )
        case PeerOfferEnded(reason):
            state = _names_only(state, frozenset(), now)
            return replace(state, peer_offer=None, no_offer_reason=reason)
        case PeerOfferRefused(reason):
            # Anybody may have written it: it explains, and changes nothing.
            return replace(state, no_offer_reason=reason)
        case PeerRevoked():
            return _peer_revoked(state, event, actions)
        case InboundInstalled(sas, refused):
            state = _edit(state, {keyed.child: keyed for keyed in sas}, flows.add_inbound)
            for one in refused:
                state = _failed(state, one.child, one.reason, now, fraction)
            return state
        case PeerConfirmed():
            return _peer_confirmed(state, event, now, fraction, actions)
        case OutboundSwitched():
            return _outbound_switched(state, event, now)
        case RecordPublished(revision):
            return _record_published(state, revision, now)
        case UsageRead():
            return _usage_read(state, event, actions)
        case SaSoftExpired():
            return _soft_expired(state, event, actions)
        case SaLost():
            return _sa_lost(state, event, actions)
        case OutboundTaken(child):
            return _on_flow(state, child, lambda flow: flows.outbound_taken(flow, now))
        case InboundTaken(child):
            named = frozenset(spi for whose, spi in state.named if whose == child)
            return _on_flow(state, child, lambda flow: flows.inbound_taken(flow, named, now))
        case RenewalWanted():
            return _renewal_wanted(state, event)


def _renewal_wanted(state: PairState, event: RenewalWanted) -> PairState:
    """Every offer of now is spent, also one that is still on its way."""
    flow = state.flows.get(event.child)
    if flow is None:
        return state
    used = [sa.peer_offer for sa in flow.all if sa.peer_offer is not None]
    spent = Spent(_newest_own(state), max((state.peer_offer or _NONE, *used)), event.proof)
    return _with(state, flows.spend(flow, spent, asks=True))


def _spend_first_heard(state: PairState, seq: OfferSeq) -> PairState:
    """A host that has heard no offer of the peer when a connection broke, as one that starts, takes
    the first for one of before."""
    for flow in state.flows.values():
        if flow.spent is not None and flow.asks and flow.spent.proof:
            spent = replace(flow.spent, peer=max(flow.spent.peer, seq))
            state = _with(state, flows.spend(flow, spent, asks=True))
    return state


def _peer_renews(flow: FlowState, row: Renewal, newest: OfferSeq) -> FlowState:
    """The peer's record tells of a break, there or here."""
    # It knows our offers by the directory alone: what we never made cannot be spent.
    told = Spent(min(row.own, newest), row.peer, row.proof)
    if row.proof and (flow.spent is None or told.own > flow.spent.own):
        # News to us: an offer that the peer has not heard of yet may be of before the break too.
        flow = flows.spend(flow, replace(told, own=newest), asks=False)
    return flows.peer_renews(flow, told, done=row.done)


def _newest_own(state: PairState) -> OfferSeq:
    return max((state.own_offer or _NONE, *state.own_holds))


def _with(state: PairState, flow: FlowState) -> PairState:
    return replace(state, flows={**state.flows, flow.child.id: flow})


def _on_flow(
    state: PairState, child: ChildId, change: Callable[[FlowState], FlowState]
) -> PairState:
    flow = state.flows.get(child)
    return state if flow is None else _with(state, change(flow))


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


def _outbound_switched(state: PairState, event: OutboundSwitched, now: Instant) -> PairState:
    """Of those refused only the peer can name another SPI: it learns that we heard and do not
    send."""
    state = _edit(
        state,
        {keyed.child: keyed for keyed in event.sas},
        lambda flow, keyed: flows.switch_outbound(flow, keyed, now),
    )
    for one in event.refused:
        flow = state.flows.get(one.child)
        if flow is not None:
            state = _with(state, replace(flow, reason=one.reason))
    return replace(state, must_answer=state.must_answer or bool(event.refused))


def _retries_due(state: PairState, now: Instant) -> PairState:
    for flow in state.flows.values():
        if flow.retry_at is not None and flow.retry_at <= now:
            state = _with(state, replace(flow, retry_at=None))
    return state


def _children_changed(state: PairState, event: ChildrenChanged, actions: list[Action]) -> PairState:
    kept: dict[ChildId, FlowState] = {}
    must_answer = state.must_answer
    for child in event.children:
        before = state.flows.get(child.id)
        if before is None:
            before = FlowState(child)
        taken = before.taken and child.keying is not Keying.DIRECTORY
        # The peer is told that what it named was passed over, and names another.
        must_answer = must_answer or (before.passed_over and not taken)
        passed_over = before.passed_over and taken
        kept[child.id] = replace(before, child=child, taken=taken, passed_over=passed_over)
    for child_id, flow in state.flows.items():
        if child_id not in kept:
            _end(flow, actions)
    return replace(state, flows=kept, must_answer=must_answer)


def _end(flow: FlowState, actions: list[Action]) -> None:
    """Take a child away: sender first here, for nobody may send on what is being removed."""
    if flow.outbound and not flow.taken:
        actions.append(BlockOutbound(flow.child.id))
    actions += [RemoveOutbound(flow.child.id, sa.spi) for sa in flow.outbound]
    actions += [RemoveInbound(flow.child.id, sa.spi) for sa in flow.inbound]


def _peer_revoked(state: PairState, event: PeerRevoked, actions: list[Action]) -> PairState:
    """No drain, and no word to the peer: whoever it is now, it is not to be followed or waited for.

    SAs of an earlier life of the daemon go too: nobody knows which offers they were keyed with.
    """
    nothing_left = state.peer_offer is None or state.peer_offer in event.offers
    edited: dict[ChildId, FlowState] = {}
    for child, flow in state.flows.items():
        outbound = tuple(sa for sa in flow.outbound if _is_cut(sa, event))
        inbound = tuple(sa for sa in flow.inbound if _is_cut(sa, event))
        if flow.active_outbound in outbound:
            actions.append(BlockOutbound(child))
        actions += [RemoveOutbound(child, sa.spi) for sa in outbound]
        actions += [RemoveInbound(child, sa.spi) for sa in inbound]
        edited[child] = replace(
            flow,
            outbound=tuple(sa for sa in flow.outbound if sa not in outbound),
            inbound=tuple(sa for sa in flow.inbound if sa not in inbound),
            reason=event.reason if nothing_left else "",
        )
    state = replace(state, flows=edited)
    if nothing_left:
        return replace(state, peer_offer=None, no_offer_reason=event.reason, heard=_UNHEARD)
    return state


def _is_cut(sa: InboundSa | OutboundSa, event: PeerRevoked) -> bool:
    return sa.peer_offer is None or sa.peer_offer in event.offers


def _adopted(state: PairState, event: Adopted) -> PairState:
    for sa in event.inbound:
        flow = state.flows[sa.child]
        slot = InboundSa(sa.spi, sa.aead, None, None, state=SaState.ACTIVE, listed=0, esn=sa.esn)
        state = _with(state, replace(flow, inbound=(*flow.inbound, slot)))
    for sa in event.outbound:
        flow = state.flows[sa.child]
        pinned = OutboundSa(sa.spi, sa.aead, None, None)
        state = _with(state, replace(flow, outbound=(*flow.outbound, pinned)))
    return state


def _own_offered(
    state: PairState, current: OfferSeq | None, holds: frozenset[OfferSeq]
) -> PairState:
    return replace(state, own_offer=current, own_holds=holds)


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
        heard=event.sequence,
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
    passed_over = tuple(keyed for keyed in event.receives if _is_taken(state, keyed.child))
    if passed_over:
        actions.append(PassOver(passed_over))
    for keyed in passed_over:
        state = _on_flow(state, keyed.child, lambda flow: replace(flow, passed_over=True))
    for row in event.renews:
        change = partial(_peer_renews, row=row, newest=_newest_own(state))
        state = _on_flow(state, row.child, change)
    needed = [keyed for keyed in event.receives if not _needs_none(state, keyed)]
    usable = tuple(keyed for keyed in needed if keyed.own_offer in state.own_holds)
    if usable:
        # Children we do not have are among them: once refused, an SA is refused for good.
        actions.append(InstallOutbound(usable))
    return replace(state, must_answer=state.must_answer or len(usable) < len(needed))


def _is_taken(state: PairState, child: ChildId) -> bool:
    flow = state.flows.get(child)
    return flow is not None and flow.taken


def _needs_none(state: PairState, keyed: Keyed) -> bool:
    """Whether we send on this SA already, or by another keying."""
    flow = state.flows.get(keyed.child)
    return flow is not None and (flow.taken or any(sa.spi == keyed.spi for sa in flow.outbound))


def _record_published(state: PairState, revision: int, now: Instant) -> PairState:
    if revision != state.record.revision:
        return state  # a newer record is already on its way and says all that this one said
    state = _names_only(state, _named(state.record), now)
    for keyed in state.record.receives:
        flow = state.flows.get(keyed.child)
        if flow is not None:
            state = _with(state, flows.published(flow, keyed.spi))
    return state


def _names_only(state: PairState, names: frozenset[tuple[ChildId, Spi]], now: Instant) -> PairState:
    """No other inbound SAs are named by what the peer can read and use from now on."""
    for child, spi in sorted(state.named - names, key=str):
        state = _on_flow(state, child, partial(flows.withdrawn, spi=spi, now=now))
    return replace(state, named=names)


def _named(record: PublishRecord) -> frozenset[tuple[ChildId, Spi]]:
    return frozenset((keyed.child, keyed.spi) for keyed in record.receives)


def _usage_read(state: PairState, event: UsageRead, actions: list[Action]) -> PairState:
    """What carried nothing since the last look is idle and goes."""
    edited = dict(state.flows)
    for one in event.sas:
        flow = edited[one.child]
        if one.packets is None:
            edited[one.child] = flows.drop_inbound(flow, one.spi)
        elif any(sa.spi == one.spi and sa.packets == one.packets for sa in flow.inbound):
            actions.append(RemoveInbound(one.child, one.spi))
            edited[one.child] = flows.drop_inbound(flow, one.spi)
        else:
            edited[one.child] = flows.inbound_carried(flow, one.spi, one.packets)
    return replace(state, flows=edited)


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


def _cut(state: PairState, _: Instant, actions: list[Action]) -> PairState:
    """What a broken connection has spent goes at once when there is something fresh."""
    for child, flow in state.flows.items():
        for out in flows.cut_outbound(flow):
            actions.append(RemoveOutbound(child, out.spi))
            flow = flows.drop_outbound(flow, out.spi)
        for into in flows.cut_inbound(flow):
            actions.append(RemoveInbound(child, into.spi))
            flow = flows.drop_inbound(flow, into.spi)
        if flow is not state.flows[child]:
            state = _with(state, flow)
    return state


def _renew(state: PairState, _: Instant, actions: list[Action]) -> PairState:
    """Ask for an offer of our own where what is spent wants one."""
    own = state.own_offer
    if own is None or state.asked == own:
        return state
    for flow in state.flows.values():
        spent = flow.spent
        if spent is None or flow.taken or own > spent.own or not (spent.proof or flow.asks):
            continue
        actions.append(WantRollover(f"{flow.child.id.flow}: the connection broke"))
        return replace(state, asked=own)
    return state


def _drain(state: PairState, now: Instant, actions: list[Action]) -> PairState:
    """Remove outbound SAs that have drained, look at inbound SAs that should have."""
    edited: dict[ChildId, FlowState] = {}
    looks: list[tuple[ChildId, Spi]] = []
    for child, flow in state.flows.items():
        edited[child] = flow
        crowd = flows.too_many_outbound(flow)
        for out in flow.outbound:
            if out in crowd or (out.drained_at is not None and out.drained_at <= now):
                actions.append(RemoveOutbound(child, out.spi))
                edited[child] = flows.drop_outbound(edited[child], out.spi)
        due = flows.inbound_to_look_at(flow, now)
        if due:
            looks += [(child, spi) for spi in due]
            edited[child] = flows.looking(edited[child], now)
    if looks:
        actions.append(ReadUsage(tuple(looks)))
    return replace(state, flows=edited)


def _ask_for_inbound(state: PairState, _: Instant, actions: list[Action]) -> PairState:
    if state.own_offer is None or state.peer_offer is None:
        return state
    own, peer = state.own_offer, state.peer_offer
    for child, flow in state.flows.items():
        oldest = flows.in_the_way(flow)
        if oldest is not None:
            actions.append(RemoveInbound(child, oldest.spi))
            state = _with(state, flows.drop_inbound(flow, oldest.spi))
    children = tuple(
        child
        for child, flow in state.flows.items()
        if flow.retry_at is None
        and flows.may_replace(flow, own=own, peer=peer, peer_life=state.peer_life)
    )
    if children:
        actions.append(InstallInbound(children, own, peer))
    return state


def _publish(state: PairState, _: Instant, actions: list[Action]) -> PairState:
    """Order a new record if it would say something new."""
    if state.own_offer is None or state.peer_offer is None:
        return state
    children = sorted(state.flows.items(), key=lambda item: str(item[0]))
    record = PublishRecord(
        state.record.revision,
        state.record.heard,
        state.own_offer,
        state.peer_offer,
        tuple(
            Keyed(child, sa.spi, sa.aead, sa.own_offer, sa.peer_offer, sa.esn)
            for child, flow in children
            if (sa := flow.newest_inbound) is not None
            and sa.own_offer is not None
            and sa.peer_offer is not None
        ),
        tuple((child, sa.spi) for child, flow in children for sa in flow.outbound),
        tuple(
            Renewal(child, spent.own, spent.peer, spent.proof, flow.done)
            for child, flow in children
            if (spent := flow.spent) is not None
        ),
    )
    if record == state.record and not state.must_answer:
        return state
    record = replace(record, revision=state.record.revision + 1, heard=state.heard)
    actions.append(record)
    return replace(
        state,
        record=record,
        named=state.named | _named(record),
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
