"""The IKE machine of one connection: this host, one peer, one address each, all their flows.

charon is told what to make and what to delete; what is there comes from its events and, after each
start of either daemon, from its list held against the kernel. Which SA our SPs pin is decided here
alone, so nothing that charon does or fails to do can open a flow.

An IKE_SA serves both hosts, whoever made it. The host with the lower name makes the first one, the
other only when none has come after a while. A host that lost its charon makes a new one; the peer,
which may still have the old IKE_SA, sees that and doubts the old one: it makes a CHILD_SA of its
own over a fresh IKE_SA too, and until then sends on the peer's new one. IKE_SAs without CHILD_SAs
are swept up.

An attempt that failed is made again over a fresh IKE_SA: charon takes an IKE_SA for a CHILD_SA
only if their configurations are equal, so the next `variant` of the connection makes it fresh.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from tunsec.machines import ike_flow as flows
from tunsec.machines.facts import ChildrenChanged, InboundTaken, OutboundTaken, TimerFired
from tunsec.machines.flow import PROTECTED
from tunsec.machines.ike_facts import (
    Adopted,
    CharonAway,
    CharonReady,
    CharonRenewed,
    ChildDown,
    ChildUp,
    EventMissed,
    IkeDown,
    IkeReplaced,
    IkeUp,
    InitiateEnded,
    Listed,
    LoadEnded,
    OutboundPinned,
    ReauthWanted,
    RenewalWanted,
    SaGone,
    SaUsage,
    SeenChild,
    SeenIke,
    UsageTold,
)
from tunsec.machines.ike_flow import Attempt, ChildState, HeldChild, IkeFlow, StraySa
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
from tunsec.machines.orders import Action, BlockOutbound
from tunsec.model.clock import Deadline, Instant, Seconds
from tunsec.model.errors import Bug
from tunsec.model.flow import ChildId, Keying, OnReconnect
from tunsec.model.names import HostName

HELP_AFTER: Final = Seconds(0.5)
"""The host with the higher name waits this long for the other's first IKE_SA: a handshake takes a
tenth of it. A host that boots must not wait longer: to the other one it was dead, which tries
seldom by now."""
DOUBT_AFTER: Final = Seconds(5.0)
"""The peer makes an IKE_SA beside one that is younger than this only because both began at once."""
LIST_EVERY: Final = Seconds(300.0)
"""charon tells of changes; this finds what was missed, as seldom as the kernel is dumped for that:
a list tells of all peers, and each connection asks for one."""
LIST_AGAIN: Final = Seconds(2.0)
LOAD_AGAIN: Final = Seconds(2.0)
EMPTY_FOR: Final = Seconds(10.0)
"""An IKE_SA that carries nothing for so long is ended."""
AWAIT_FIRST: Final = Seconds(0.4)
"""After a break the host with the higher name leaves the fresh IKE_SA to the other for so long."""
AWAIT_OLD: Final = Seconds(0.3)
"""It then waits so long until the other has ended the old ones."""
FAR: Final = 1000
"""Variants of an earlier life are not known; one that is so much further is none of them."""
PROOF_WITHIN: Final = Seconds(10.0)
"""When new proof of identity is wanted, what stands on the old one ends after this long."""

IkeEvent = (
    TimerFired
    | ChildrenChanged
    | Adopted
    | CharonReady
    | CharonRenewed
    | CharonAway
    | LoadEnded
    | InitiateEnded
    | Listed
    | EventMissed
    | IkeUp
    | IkeDown
    | IkeReplaced
    | ChildUp
    | ChildDown
    | SaGone
    | OutboundPinned
    | UsageTold
    | OutboundTaken
    | InboundTaken
    | ReauthWanted
    | RenewalWanted
)

_Answered = PinOutbound | ReadSaUsage


@dataclass(frozen=True, slots=True)
class KnownIke:
    """An established IKE_SA."""

    id: int
    own: bool
    """This host initiated it."""
    since: Instant
    alive_at: Instant
    """The last time that the peer was seen to have it."""
    empty_since: Instant | None = None


@dataclass(frozen=True, slots=True)
class IkeState:
    """What this host knows of one connection."""

    peer: HostName
    first: bool
    """This host makes the first IKE_SA."""
    reauth_after: Seconds | None = None
    list_every: Seconds = LIST_EVERY
    flows: Mapping[ChildId, IkeFlow] = field(default_factory=dict)
    ikes: Mapping[int, KnownIke] = field(default_factory=dict)
    ready: bool = False
    away: str = "charon was not reached yet"
    """Why charon cannot be used, while it cannot."""
    variant: int = 0
    loaded: int | None = None
    """The variant that charon has; None: it has none, or one with other children."""
    loading: int | None = None
    """The variant that is on its way to charon."""
    outdated: bool = False
    """The children changed while it was."""
    load_error: str = ""
    load_at: Instant | None = None
    """When a refused connection is loaded again."""
    listing_since: Instant | None = None
    listed: bool = False
    """charon's list was taken since it became ready."""
    list_at: Instant | None = None
    ended: frozenset[int] = frozenset()
    """CHILD_SAs that ended while the list was on its way."""
    turn_at: Instant | None = None
    """While set, it is the other's turn to make an IKE_SA; until then."""
    reauth_at: Instant | None = None
    """When this host proves itself anew, over a fresh IKE_SA."""
    proof_since: Instant | None = None
    """IKE_SAs of before count no longer, at the latest `proof_by`."""
    proof_by: Instant | None = None
    broke_at: Instant | None = None
    """When a connection broke last: what stands on IKE_SAs of before moves over to a fresh one."""
    await_until: Instant | None = None
    """Until when nothing is begun, for the peer makes the fresh IKE_SA."""


@dataclass(frozen=True, slots=True)
class IkeStep:
    """A new state and what must be done."""

    state: IkeState
    actions: tuple[Action, ...]


def step(state: IkeState, event: IkeEvent, now: Instant, fraction: float) -> IkeStep:
    """One fact in, orders out. `fraction` in [0, 1) is dice for jitter."""
    actions: list[Action] = []
    state = _take(state, event, now, fraction, actions)
    for stage in (_pin, _cut, _load, _begin, _list, _drain, _look, _sweep):
        state = stage(state, now, actions)
        if any(isinstance(action, _Answered) for action in actions):
            break  # its answer comes next, and takes up what is left
    return IkeStep(state, tuple(actions))


def deadline(state: IkeState) -> Deadline | None:
    """The earliest instant at which something is due."""
    found: list[tuple[Instant | None, str]] = [
        (state.load_at, "the connection is loaded again"),
        (state.list_at if state.listing_since is None and state.ready else None, "charon's list"),
        (state.proof_by, "old proof of identity ends"),
        (state.reauth_at if state.ready else None, "new proof of identity"),
        (state.turn_at, "the peer has made no IKE_SA"),
        (state.await_until, "the peer has made no fresh IKE_SA"),
    ]
    found += [
        (Instant(ike.empty_since + EMPTY_FOR), "an IKE_SA carries nothing")
        for ike in state.ikes.values()
        if ike.empty_since is not None
    ]
    for flow in state.flows.values():
        found += [
            (flow.retry_at, "the next attempt"),
            (flow.volume_at, "volume of an SA"),
            *((one.check_at, "a CHILD_SA is looked at") for one in flow.held),
            *((stray.check_at, "a stray SA is looked at") for stray in flow.strays),
        ]
        if flow.attempt is not None and state.listing_since is None:
            found.append((flow.attempt.look_at, "an attempt is looked at"))
        if _may_begin(state, flow):
            found.append((flow.rekey_at, "rekey"))
        if flow.spent_at is not None:
            cut_at = flows.cut_at(flow, of_before_break(state, flow))
            found.append((cut_at, "a CHILD_SA of before a break is cut"))
    waiting = [Deadline(at, reason) for at, reason in found if at is not None]
    return min(waiting, default=None)


def doubted(state: IkeState) -> frozenset[int]:
    """IKE_SAs that the peer may have lost, for it has made another one long after it last had them,
    and those whose proof of identity is out of date."""
    newest = max((ike.since for ike in state.ikes.values() if not ike.own), default=None)
    outdated = [since for since in (state.proof_since, state.broke_at) if since is not None]
    return frozenset(
        ike.id
        for ike in state.ikes.values()
        if (newest is not None and newest - ike.alive_at > DOUBT_AFTER)
        or any(ike.since < since for since in outdated)
    )


def blocked_reason(state: IkeState, flow: IkeFlow, now: Instant) -> str:
    """Why a flow is not protected yet, for people; empty when it is."""
    if flow.phase(now) in PROTECTED:
        return ""
    return trouble(state, flow) or (
        f"{state.peer} has no CHILD_SA of its own yet"
        if flow.pinned is not None
        else "charon makes the CHILD_SA"
        if flow.attempt is not None
        else f"it is {state.peer}'s turn to make the IKE_SA"
    )


def trouble(state: IkeState, flow: IkeFlow) -> str:
    """What stands in the way of a new CHILD_SA; a flow that is protected can have trouble too."""
    if not state.ready:
        return state.away
    if state.load_error:
        return state.load_error
    return flow.reason


# Facts


def _take(
    state: IkeState, event: IkeEvent, now: Instant, fraction: float, actions: list[Action]
) -> IkeState:
    match event:
        case TimerFired():
            return _timer_fired(state, now, fraction, actions)
        case ChildrenChanged():
            return _children_changed(state, event, now, actions)
        case Adopted():
            return _adopted(state, event)
        case CharonReady():
            return _charon_ready(state, now)
        case CharonRenewed():
            return _load_again(replace(state, list_at=now))
        case CharonAway(reason):
            return _charon_away(state, reason)
        case LoadEnded():
            return _load_ended(state, event, now, fraction)
        case InitiateEnded(child, error):
            return _initiate_ended(state, child, error, now, fraction)
        case Listed():
            return _listed(state, event, now, fraction, actions)
        case EventMissed():
            return replace(state, list_at=now)
        case IkeUp(ike):
            return _ike_up(state, KnownIke(ike.id, ike.own, now, now))
        case IkeDown(ike_id):
            return _ike_down(state, ike_id, now, fraction)
        case IkeReplaced(old, new):
            return _ike_replaced(state, old, new, now)
        case ChildUp(seen):
            return _child_up(state, seen, now, fraction, actions)
        case ChildDown(child_id):
            return _child_down(state, child_id, now, fraction)
        case SaGone():
            return _sa_gone(state, event, now, fraction)
        case OutboundPinned():
            return _outbound_pinned(state, event, now, fraction)
        case UsageTold(sas):
            return _usage_told(state, sas, now, actions)
        case OutboundTaken(child):
            return _on_flow(state, child, lambda flow: flows.take(flow, now))
        case InboundTaken(child):
            return _on_flow(state, child, lambda flow: replace(flow, left=True))
        case ReauthWanted():
            return _want_proof(state, now)
        case RenewalWanted():
            return _renewal_wanted(state, event, now)


def _want_proof(state: IkeState, now: Instant) -> IkeState:
    state = replace(state, proof_since=now, proof_by=_after(now, PROOF_WITHIN))
    return _reauth(state, now)


def _renewal_wanted(state: IkeState, event: RenewalWanted, now: Instant) -> IkeState:
    """With new proof all flows of the connection go over to the fresh IKE_SA, but only the one that
    broke is cut off from the old."""
    state = _on_flow(
        state,
        event.child,
        lambda flow: flows.spend(flow, now, proof=event.proof),
    )
    if not event.proof:
        return state
    state = replace(state, broke_at=now)
    if state.first or not state.ikes:
        return _reauth(state, now)
    # Both have seen the break: one fresh IKE_SA will do, and the host with the lower name makes it.
    return replace(state, await_until=_after(now, AWAIT_FIRST))


def _awaited(state: IkeState, now: Instant) -> IkeState:
    """A fresh IKE_SA is there: what the old ones carried is made anew when they are gone, for
    charon would make it on any of them."""
    if state.await_until is None:
        return state
    since = state.broke_at
    old = [ike for ike in state.ikes.values() if since is not None and ike.since < since]
    if len(old) == len(state.ikes):
        return state
    until = min(state.await_until, _after(now, AWAIT_OLD)) if old else None
    return replace(state, await_until=until)


def _timer_fired(state: IkeState, now: Instant, fraction: float, actions: list[Action]) -> IkeState:
    if state.load_at is not None and state.load_at <= now:
        state = replace(state, load_at=None)
    if state.proof_by is not None and state.proof_by <= now:
        state = _end_old_proof(state, actions)
    if state.turn_at is not None and state.turn_at <= now:
        state = replace(state, turn_at=None)
    if state.await_until is not None and state.await_until <= now:
        state = _reauth(replace(state, await_until=None), now)
    if state.ready and state.reauth_at is not None and state.reauth_at <= now:
        state = _reauth(state, now)
    return _on_flows(state, lambda flow: _flow_timer(flow, now, fraction), fresh=True)


def _flow_timer(flow: IkeFlow, now: Instant, fraction: float) -> IkeFlow:
    if flow.retry_at is not None and flow.retry_at <= now:
        flow = replace(flow, retry_at=None)
    attempt = flow.attempt
    if attempt is not None and now >= attempt.since + flows.ATTEMPT_LIMIT:
        return flows.failed(flow, "charon did not make the CHILD_SA in time", now, fraction)
    return flow


def _end_old_proof(state: IkeState, actions: list[Action]) -> IkeState:
    """What stands on an older proof of identity ends: IKE_SAs, and SAs that no charon keeps."""
    since = state.proof_since
    if since is None:
        raise Bug("no proof is wanted")
    old = [ike.id for ike in state.ikes.values() if ike.since < since]
    actions += [TerminateIke(ike_id) for ike_id in old]
    state = replace(state, proof_since=None, proof_by=None)
    for child, flow in state.flows.items():
        for stray in flow.strays:
            actions.append(RemoveStray(child, stray.spi, stray.inbound))
        held = tuple(one for one in flow.held if one.ike not in old)
        state = _with(state, replace(flow, held=held, strays=()))
    return replace(state, ikes={key: ike for key, ike in state.ikes.items() if key not in old})


def _reauth(state: IkeState, now: Instant) -> IkeState:
    """A fresh IKE_SA, and on it new CHILD_SAs of ours. The peer sees it and follows."""
    reauth_at = None if state.reauth_after is None else _after(now, state.reauth_after)
    state = _on_flows(state, lambda flow: replace(flow, rekey_at=now))
    return replace(state, reauth_at=reauth_at, variant=state.variant + 1)


def _fresh(state: IkeState) -> IkeState:
    """The next CHILD_SA comes over an IKE_SA of its own, if there is one already."""
    return replace(state, variant=state.variant + 1) if state.ikes else state


def _children_changed(
    state: IkeState, event: ChildrenChanged, now: Instant, actions: list[Action]
) -> IkeState:
    kept: dict[ChildId, IkeFlow] = {}
    for child in event.children:
        flow = replace(state.flows.get(child.id, IkeFlow(child)), child=child)
        if flow.taken and child.keying is Keying.IKE:
            flow = replace(flow, taken=False, left=False, back_since=now)
        kept[child.id] = flow
    for child_id, flow in state.flows.items():
        if child_id not in kept:
            _end(flow, actions)
    if not kept:
        state = replace(state, ikes={})  # who gives the connection up looks what they carry
    if [flow.child for flow in state.flows.values()] == [*event.children]:
        return replace(state, flows=kept)
    turn_at = state.turn_at if state.flows else _turn(state, now)
    return _load_again(replace(state, flows=kept, turn_at=turn_at))


def _turn(state: IkeState, now: Instant) -> Instant | None:
    """Until when this host leaves the first IKE_SA to the other."""
    return None if state.first else _after(now, HELP_AFTER)


def _end(flow: IkeFlow, actions: list[Action]) -> None:
    """Take a child away."""
    if flow.pinned is not None:
        actions.append(BlockOutbound(flow.child.id))
    actions += [TerminateChild(one.ike, one.id) for one in flow.held]
    actions += [RemoveStray(flow.child.id, stray.spi, stray.inbound) for stray in flow.strays]


def _adopted(state: IkeState, event: Adopted) -> IkeState:
    strays = [StraySa(sa.spi, True, sa.aead) for sa in event.inbound]
    if event.outbound is not None:
        strays.append(StraySa(event.outbound.spi, False, event.outbound.aead))
    return _on_flow(
        state,
        event.child,
        lambda flow: replace(
            flow,
            strays=(*flow.strays, *strays),
            pinned=event.outbound.spi if event.outbound is not None else None,
        ),
    )


def _load_again(state: IkeState) -> IkeState:
    """What charon has of the connection is not what it should have."""
    return replace(
        state, loaded=None, outdated=state.loading is not None, load_error="", load_at=None
    )


def _charon_ready(state: IkeState, now: Instant) -> IkeState:
    """Load again, list again: what was known may be an earlier charon's.

    A host that has SAs left comes back: the peer still believes in IKE_SAs that may be gone, and
    soon finds this host dead, so nobody waits for a turn.
    """
    state = _on_flows(state, lambda flow: flows.keep_spent(flow, of_before_break(state, flow)))
    state = _on_flows(state, flows.into_strays)
    returns = any(flow.strays for flow in state.flows.values())
    return replace(
        _load_again(replace(state, loading=None)),
        ikes={},
        ready=True,
        listing_since=None,
        listed=False,
        list_at=now,
        turn_at=None if returns else _turn(state, now),
    )


def _charon_away(state: IkeState, reason: str) -> IkeState:
    """The kernel goes on with what it has."""
    return replace(
        _on_flows(state, lambda flow: replace(flow, attempt=None, retry_at=None)),
        ready=False,
        away=reason,
        loaded=None,
        loading=None,
        outdated=False,
        load_at=None,
        listing_since=None,
    )


def _load_ended(state: IkeState, event: LoadEnded, now: Instant, fraction: float) -> IkeState:
    if state.loading is None:
        return state  # an answer to an order of before charon went away
    loaded = None if event.error or state.outdated else event.variant
    return replace(
        state,
        loaded=loaded,
        loading=None,
        outdated=False,
        load_error=event.error,
        load_at=Instant(now + LOAD_AGAIN * (1 + fraction)) if event.error else None,
    )


def _initiate_ended(
    state: IkeState, child: ChildId, error: str, now: Instant, fraction: float
) -> IkeState:
    if not error:
        return state
    return _on_flow(
        state,
        child,
        lambda flow: flows.failed(flow, error, now, fraction) if flow.attempt else flow,
    )


def _listed(
    state: IkeState, event: Listed, now: Instant, fraction: float, actions: list[Action]
) -> IkeState:
    """charon's list, held against what is known: events that overtook it count more."""
    began = state.listing_since
    if began is None:
        return state  # asked before charon went away
    ended = state.ended
    state = replace(state, listing_since=None, ended=frozenset())
    if event.error:
        return _list_again(state, _after(now, LIST_AGAIN))
    state = replace(
        state,
        listed=True,
        list_at=state.list_at or _after(now, state.list_every),
        ikes={ike.id: _seen_ike(state, ike, now) for ike in event.ikes}
        | {key: ike for key, ike in state.ikes.items() if ike.since >= began},
    )
    listed = {(one.id, one.spi_in) for one in event.children}
    state = _on_flows(
        state,
        lambda flow: replace(
            flow,
            held=tuple(
                one for one in flow.held if (one.id, one.spi_in) in listed or one.since >= began
            ),
        ),
    )
    known = {(one.id, one.spi_in) for flow in state.flows.values() for one in flow.held}
    for seen in event.children:
        if (seen.id, seen.spi_in) in known:
            state = _told_again(state, seen, now, fraction)
        elif seen.id not in ended:
            state = _child_up(state, seen, now, fraction, actions)
    state = _on_flows(state, lambda flow: flows.judge_strays(flow, event.strays))
    return _on_flows(state, lambda flow: _judge_attempt(flow, event, now, fraction), fresh=True)


def _told_again(state: IkeState, seen: SeenChild, now: Instant, fraction: float) -> IkeState:
    """charon still has it; the policy may not want it as it is any more."""
    if not (seen.own and seen.outdated):
        return state
    return _on_flow(state, seen.child, lambda flow: flows.renew_soon(flow, now, fraction))


def _list_again(state: IkeState, at: Instant) -> IkeState:
    """charon gave no list; what wanted one waits."""
    return _on_flows(
        replace(state, list_at=at),
        lambda flow: (
            replace(flow, attempt=replace(flow.attempt, look_at=at))
            if flow.attempt is not None
            else flow
        ),
    )


def _seen_ike(state: IkeState, seen: SeenIke, now: Instant) -> KnownIke:
    known = state.ikes.get(seen.id)
    if known is not None and known.own == seen.own:
        return known
    since = Instant(now - seen.age)
    return KnownIke(seen.id, seen.own, since, since)


def _judge_attempt(flow: IkeFlow, event: Listed, now: Instant, fraction: float) -> IkeFlow:
    attempt = flow.attempt
    if attempt is None or attempt.look_at > now:
        return flow
    if event.busy:
        return replace(flow, attempt=replace(attempt, look_at=_after(now, flows.LOOK_AFTER)))
    words = event.words or "charon gave up without a word"
    return flows.failed(flow, words, now, fraction)


def _ike_up(state: IkeState, ike: KnownIke) -> IkeState:
    """Both have proven who they are. A fresh IKE_SA of the peer can cast doubt on older ones.

    Where there was none, what failed until now failed for want of the peer, and waits no longer.
    """
    before = doubted(state)
    if not state.ikes:
        state = _on_flows(state, lambda flow: replace(flow, retry_at=None))
    reauth_after = state.reauth_after
    state = replace(
        state,
        ikes={**state.ikes, ike.id: ike},
        turn_at=None,
        reauth_at=None if reauth_after is None else _after(ike.since, reauth_after),
    )
    state = _awaited(state, ike.since)
    return _fresh(state) if doubted(state) - before else state


def _ike_down(state: IkeState, ike_id: int, now: Instant, fraction: float) -> IkeState:
    """Its CHILD_SAs are told of one by one; those that are not go with it."""
    for flow in state.flows.values():
        for one in flow.held:
            if one.ike == ike_id:
                state = _child_down(state, one.id, now, fraction)
    ikes = {key: ike for key, ike in state.ikes.items() if key != ike_id}
    turn_at = state.turn_at if ikes else _turn(state, now)
    return _awaited(replace(state, ikes=ikes, turn_at=turn_at), now)


def _ike_replaced(state: IkeState, old: int, new: int, now: Instant) -> IkeState:
    before = state.ikes.get(old)
    if before is None:
        return replace(state, list_at=now)
    ikes = {key: ike for key, ike in state.ikes.items() if key != old}
    ikes[new] = replace(before, id=new, alive_at=now)
    state = replace(state, ikes=ikes)
    return _on_flows(
        state,
        lambda flow: replace(
            flow,
            held=tuple(replace(one, ike=new) if one.ike == old else one for one in flow.held),
        ),
    )


def _child_up(
    state: IkeState, seen: SeenChild, now: Instant, fraction: float, actions: list[Action]
) -> IkeState:
    flow = state.flows.get(seen.child)
    if flow is None or any(one.id == seen.id and one.spi_in == seen.spi_in for one in flow.held):
        return state
    if seen.ignored:
        if seen.own:
            actions.append(TerminateChild(seen.ike, seen.id))
        elif seen.stale:  # the peer would make the next one over it too
            actions.append(TerminateIke(seen.ike))
        else:
            flow = flows.add_unfit(flow, seen, now)
            state = _with(state, flow)
        attempt = flow.attempt
        failed = attempt is not None and seen.own and attempt.slot == seen.slot
        if failed or not seen.own:
            return _with(state, flows.failed(flow, seen.ignored, now, fraction))
        return state
    since = Instant(now - seen.age)
    flow = flows.add_child(flow, seen, since=since)
    if seen.own:
        flow = flows.own_is_up(flow, seen.slot, since=since, fraction=fraction)
        if seen.outdated:
            flow = flows.renew_soon(flow, now, fraction)
    if flow.taken:
        flow = flows.take(flow, now)  # too late, or told of again: it drains as the others do
    state = _with(state, flow)
    ike = state.ikes.get(seen.ike)
    if ike is None:  # told later than its first CHILD_SA, or not yet listed
        return replace(state, list_at=now)
    if seen.own and _was_taken_for_fresh(state, ike):
        state = replace(state, variant=state.variant + 1 + int(fraction * FAR))
    if seen.age == 0.0:
        ike = replace(ike, alive_at=now)
    return replace(state, ikes={**state.ikes, ike.id: ike})


def _was_taken_for_fresh(state: IkeState, ike: KnownIke) -> bool:
    """An earlier life of this daemon had an IKE_SA made under the variant of now."""
    broke_at = state.broke_at
    return broke_at is not None and ike.since < broke_at and state.loaded == state.variant


def _child_down(state: IkeState, child_id: int, now: Instant, fraction: float) -> IkeState:
    for flow in state.flows.values():
        for one in flow.held:
            if one.id == child_id:
                state = _with(state, flows.drop_child(flow, one, now, fraction))
                if _has_broken_there(state, flow, one):
                    state = _fresh(state)
    if state.listing_since is not None:
        state = replace(state, ended=state.ended | {child_id})
    return state


def _has_broken_there(state: IkeState, flow: IkeFlow, gone: HeldChild) -> bool:
    """Whether the peer has cut off what a broken connection used, and no more: over that IKE_SA,
    which still serves other flows, it takes nothing new of this one."""
    return (
        flow.child.on_reconnect is OnReconnect.REAUTH
        and gone.own
        and gone.state is not ChildState.DELETING
        and any(
            one.ike == gone.ike and one.state is not ChildState.DELETING
            for other in state.flows.values()
            if other.child.id != flow.child.id
            for one in other.held
        )
    )


def _sa_gone(state: IkeState, event: SaGone, now: Instant, fraction: float) -> IkeState:
    flow = state.flows.get(event.child)
    held = () if flow is None else flow.held
    if flow is not None and any(
        _has_broken_there(state, flow, one)
        for one in held
        if event.spi in (one.spi_in, one.spi_out)
    ):
        state = _fresh(state)  # the kernel tells of it before charon does
    return _on_flow(
        state,
        event.child,
        lambda flow: flows.lose_sa(
            flow, event.spi, inbound=event.inbound, now=now, fraction=fraction
        ),
    )


def _outbound_pinned(
    state: IkeState, event: OutboundPinned, now: Instant, fraction: float
) -> IkeState:
    flow = state.flows.get(event.child)
    if flow is None:
        return state
    if not event.error:
        return _with(state, flows.pin(flow, event.spi, now))
    flow = flows.lose_sa(flow, event.spi, inbound=False, now=now, fraction=fraction)
    return _with(state, replace(flow, reason=event.error))


def _usage_told(
    state: IkeState, sas: Iterable[SaUsage], now: Instant, actions: list[Action]
) -> IkeState:
    for usage in sas:
        flow = state.flows.get(usage.child)
        if flow is None:
            continue
        if not usage.inbound:
            if usage.packets is not None:
                flow = flows.note_volume(flow, volume=usage.volume, packets=usage.packets, now=now)
        else:
            flow = _inbound_told(flow, usage, now, actions)
        state = _with(state, flow)
    return state


def _inbound_told(flow: IkeFlow, usage: SaUsage, now: Instant, actions: list[Action]) -> IkeFlow:
    held: list[HeldChild] = []
    for one in flow.held:
        if one.spi_in == usage.spi:
            one = flows.note_inbound(one, usage.packets, now)
            if one.state is ChildState.DELETING:
                actions.append(TerminateChild(one.ike, one.id))
        held.append(one)
    strays: list[StraySa] = []
    for stray in flow.strays:
        if not stray.inbound or stray.spi != usage.spi:
            strays.append(stray)
        elif usage.packets is not None and usage.packets == stray.packets:
            actions.append(RemoveStray(flow.child.id, stray.spi, True))
        elif usage.packets is not None:
            strays.append(replace(stray, packets=usage.packets))
    return replace(flow, held=tuple(held), strays=tuple(strays))


# What follows


def _pin(state: IkeState, now: Instant, actions: list[Action]) -> IkeState:
    """The SPs pin the best there is; without any, the block SPs hold the flow."""
    doubts = doubted(state)
    for child, flow in state.flows.items():
        if flow.taken:
            continue
        best = flows.best_outbound(flow, doubts, now)
        if best is not None and best != flow.pinned:
            actions.append(PinOutbound(child, best))
            return state
        if best is None and flow.pinned is not None:
            actions.append(BlockOutbound(child))
            state = _with(state, flows.unpin(flow))
    return state


def of_before_break(state: IkeState, flow: IkeFlow) -> frozenset[int]:
    """IKE_SAs that are older than the flow's last break."""
    spent_at = flow.spent_at
    if spent_at is None:
        return frozenset()
    return frozenset(ike.id for ike in state.ikes.values() if ike.since < spent_at)


def _cut(state: IkeState, now: Instant, actions: list[Action]) -> IkeState:
    """What a broken connection has spent goes at once when there is something fresh. An old IKE_SA
    goes as a whole when it carries nothing else: the peer must not make its next CHILD_SA on it."""
    ending: set[int] = set()
    proven: set[int] = set()
    for child, flow in state.flows.items():
        old = of_before_break(state, flow)
        gone = flows.cut(flow, old, now)
        fresh = flow.active is not None and not flows.is_spent(flow, flow.active, old)
        if fresh and flow.proof:
            proven |= old
        # The peer is told of no stray: it may send on it, until it has found out by itself.
        strays = tuple(stray for stray in flows.spent_strays(flow) if not stray.inbound)
        if not fresh or not (gone or strays):
            continue
        actions += [RemoveStray(child, stray.spi, False) for stray in strays]
        ending |= {one.id for one in gone}
        state = _with(state, flows.end(flow, gone, strays, now))
    held = [one for flow in state.flows.values() for one in flow.held]
    needed = {one.ike for one in held if one.state is not ChildState.DELETING}
    over = {ike for ike in proven if ike not in needed}
    actions += [
        TerminateChild(one.ike, one.id) for one in held if one.id in ending and one.ike not in over
    ]
    actions += [TerminateIke(ike) for ike in sorted(over)]
    if not over and not ending:
        return state
    # What charon does not have any more it does not tell of: its list does.
    soon = _after(now, flows.LOOK_AFTER)
    return replace(
        state,
        ikes={key: ike for key, ike in state.ikes.items() if key not in over},
        list_at=soon if state.list_at is None else min(state.list_at, soon),
    )


def _load(state: IkeState, _: Instant, actions: list[Action]) -> IkeState:
    """charon gets the connection as it should be now."""
    if (
        not state.ready
        or not state.flows
        or state.loaded == state.variant
        or state.loading is not None
        or state.load_at is not None
    ):
        return state
    actions.append(LoadConnection(state.variant))
    return replace(state, loaded=None, loading=state.variant)


def _may_begin(state: IkeState, flow: IkeFlow) -> bool:
    return (
        state.ready
        and state.listed
        and state.loading is None
        and state.loaded == state.variant
        and (bool(state.ikes) or state.turn_at is None)
        and state.await_until is None
        and not flow.taken
        and flow.attempt is None
        and flow.retry_at is None
        and flows.free_slot(flow) is not None
    )


def _begin(state: IkeState, now: Instant, actions: list[Action]) -> IkeState:
    """Have charon make what is missing."""
    doubts = doubted(state)
    for child, flow in state.flows.items():
        slot = flows.free_slot(flow)
        if slot is None or not _may_begin(state, flow) or not flows.needs_own(flow, doubts, now):
            continue
        actions.append(Initiate(child, slot))
        attempt = Attempt(slot, now, _after(now, flows.LOOK_AFTER))
        state = _with(state, replace(flow, attempt=attempt))
    return state


def _list(state: IkeState, now: Instant, actions: list[Action]) -> IkeState:
    looks = [flow.attempt.look_at for flow in state.flows.values() if flow.attempt is not None]
    due = any(at <= now for at in looks) or (state.list_at is not None and state.list_at <= now)
    if not due or not state.ready or state.listing_since is not None:
        return state
    actions.append(ListSas())
    return replace(state, listing_since=now, list_at=None, ended=frozenset())


def _drain(state: IkeState, now: Instant, actions: list[Action]) -> IkeState:
    """Outbound strays that nothing uses go; looks at the others are scheduled."""
    doubts = doubted(state)
    after: dict[ChildId, IkeFlow] = {}
    for child, before in state.flows.items():
        flow = flows.supersede_spares(flows.supersede_older_of_peer(before, doubts, now), now)
        gone = flows.drained_outbound_strays(flow, now)
        if gone:
            actions += [RemoveStray(child, stray.spi, False) for stray in gone]
            left = tuple(stray for stray in flow.strays if stray not in gone)
            flow = replace(flow, strays=left)
        after[child] = flows.schedule_looks(flow, doubts, now)
    same = all(after[child] is flow for child, flow in state.flows.items())
    return state if same else replace(state, flows=after)


def _look(state: IkeState, now: Instant, actions: list[Action]) -> IkeState:
    looks = [
        (child, spi, inbound)
        for child, flow in state.flows.items()
        for spi, inbound in flows.due_looks(flow, now)
    ]
    if not looks:
        return state
    actions.append(ReadSaUsage(tuple(looks)))
    return _on_flows(state, lambda flow: flows.looked(flow, now))


def _sweep(state: IkeState, now: Instant, actions: list[Action]) -> IkeState:
    """End IKE_SAs that carry nothing, unless something is on its way."""
    busy = any(flow.attempt is not None for flow in state.flows.values())
    carrying = {one.ike for flow in state.flows.values() for one in flow.held}
    ikes: dict[int, KnownIke] = {}
    for key, ike in state.ikes.items():
        if key in carrying or busy or not state.ready:
            ikes[key] = ike if ike.empty_since is None else replace(ike, empty_since=None)
        elif ike.empty_since is None:
            ikes[key] = replace(ike, empty_since=now)
        elif now >= ike.empty_since + EMPTY_FOR:
            actions.append(TerminateIke(key))
        else:
            ikes[key] = ike
    return replace(state, ikes=ikes)


# Small things


def _with(state: IkeState, flow: IkeFlow) -> IkeState:
    return replace(state, flows={**state.flows, flow.child.id: flow})


def _on_flow(state: IkeState, child: ChildId, change: Callable[[IkeFlow], IkeFlow]) -> IkeState:
    flow = state.flows.get(child)
    return state if flow is None else _with(state, change(flow))


def _on_flows(
    state: IkeState, change: Callable[[IkeFlow], IkeFlow], *, fresh: bool = False
) -> IkeState:
    """Change every flow; with `fresh` a failure makes the next attempt go over a fresh IKE_SA."""
    after = {child: change(flow) for child, flow in state.flows.items()}
    worse = any(after[child].failures > flow.failures for child, flow in state.flows.items())
    state = replace(state, flows=after)
    return _fresh(state) if fresh and worse else state


def _after(now: Instant, span: Seconds) -> Instant:
    return Instant(now + span)


def check(state: IkeState) -> None:
    """Raise Bug if the state breaks what the machine promises; the simulation calls it always."""
    for child, flow in state.flows.items():
        if flow.taken and flow.pinned is not None:
            raise Bug(f"{child}: pinned and taken")
