"""The gate machine: whether a flow's new connections may begin, between one pair of addresses.

An authentication serves connections until one of them ends. The kernel holds each new connection's
SYN, out and in (wire/nft_text), and asks this machine. A SYN passes while nothing that was said
under the authentication of now has broken off; else it stays held until there is a fresh one at
both ends, with fresh keys, and nothing left of the old::

    UNUSED --let--> IN_USE --broke--> BROKEN --asked--> RENEWING --renewed--> UNUSED or IN_USE
      any of the first three --the peer asks--> RENEWING
      RENEWING --broke: what goes on beside has ended too--> BROKEN

IN_USE is also what several connections at a time are: paths of one RDS connection, or a program's
pool. One that ends without having carried a byte has said nothing, and breaks nothing: RDS opens
and closes such when both ends dial.

A break is seen in three ways: the kernel tells that the socket is destroyed (1 to 26 ms after),
a look at all sockets finds it missing (every few seconds, and at each SYN, for RDS dials within
5 ms), or its ports come again with another sequence number.

What is missing is waited for: only the news of its end tells whether it had carried anything.

Breaks that follow each other quickly are damped: the flow stays closed longer, never open.

A gate that begins where an earlier life left SAs does not know what has broken since. It is BROKEN,
and asks when the next connection wants to begin: what stands meanwhile is not disturbed. What the
peer asks for before that was not asked for after those breaks, and serves none of them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

from tunsec.machines.backoff import backoff
from tunsec.machines.orders import Action
from tunsec.machines.table import Table
from tunsec.model.clock import Deadline, Instant, Seconds
from tunsec.model.connection import Connection, Ends, Syn
from tunsec.model.event import Event
from tunsec.model.flow import ChildId
from tunsec.model.names import Spi

BURST: Final = 5.0
"""Renewals in a row without a wait: a host that restarts breaks several things at once."""
CALM: Final = Seconds(1.0)
"""A break is forgiven after this long."""
FATE_WITHIN: Final = Seconds(0.1)
"""News of an end comes after at most 26 ms (docs/security.md); without any it counts as a break."""
UNKNOWN_FOR: Final = Seconds(1.0)
"""How long an inbound SYN waits for news of the SA that it came by: its host's TCP sends another
by then."""
HELD: Final = 256
"""SYNs held for one relation; the oldest goes first."""


class GateState(StrEnum):
    """How new connections stand."""

    UNUSED = "UNUSED"
    IN_USE = "IN_USE"
    BROKEN = "BROKEN"
    RENEWING = "RENEWING"


OPEN: Final = (GateState.UNUSED, GateState.IN_USE)


class GateFact(StrEnum):
    """What can happen to it."""

    LET = "a new connection was let through"
    BROKE = "a connection that had carried something ended"
    ASKED = "a fresh authentication was asked for"
    PEER_ASKED = "the peer asks for a fresh authentication"
    RENEWED = "it is there, at both ends, and nothing of the old is"


GATE: Final = Table(
    "gate",
    GateState.UNUSED,
    {
        (GateState.UNUSED, GateFact.LET): GateState.IN_USE,
        (GateState.IN_USE, GateFact.BROKE): GateState.BROKEN,
        (GateState.BROKEN, GateFact.ASKED): GateState.RENEWING,
        (GateState.UNUSED, GateFact.PEER_ASKED): GateState.RENEWING,
        (GateState.IN_USE, GateFact.PEER_ASKED): GateState.RENEWING,
        (GateState.BROKEN, GateFact.PEER_ASKED): GateState.RENEWING,
        (GateState.RENEWING, GateFact.BROKE): GateState.BROKEN,
        (GateState.RENEWING, GateFact.RENEWED): GateState.UNUSED,
    },
    {
        (GateState.IN_USE, GateFact.LET): "one more connection under the same authentication",
        (GateState.BROKEN, GateFact.BROKE): "one renewal serves all that broke before it",
        (GateState.RENEWING, GateFact.PEER_ASKED): "both have seen the same break",
    },
)


@dataclass(frozen=True, slots=True)
class Standing:
    """What the flow's keying has, as far as a gate must know it."""

    sends: bool = False
    """The outbound SPs pin an SA."""
    fresh: frozenset[Spi] = frozenset()
    """Inbound SAs of the authentication of now."""
    stale: frozenset[Spi] = frozenset()
    """Inbound SAs of before the break, which are on their way out."""
    renewed: bool = False
    """What was asked for last is there, at both ends."""


@dataclass(frozen=True, slots=True)
class Begun(Event):
    """The gate's rules are in force; `used` when an earlier life left SAs of the flow."""

    connections: tuple[Connection, ...]
    used: bool


@dataclass(frozen=True, slots=True)
class SynHeld(Event):
    """A new connection asks to begin; `connections` are those that there are."""

    syn: Syn
    connections: tuple[Connection, ...]
    standing: Standing


@dataclass(frozen=True, slots=True)
class Ended(Event):
    """The kernel tells that a connection's socket is destroyed; `connections` are those that are
    left: several paths break at once, and are told of one by one."""

    connection: Connection
    connections: tuple[Connection, ...]
    standing: Standing


@dataclass(frozen=True, slots=True)
class Looked(Event):
    """All connections of the flow that there are, and how its keying stands."""

    connections: tuple[Connection, ...]
    standing: Standing


@dataclass(frozen=True, slots=True)
class PeerAsked(Event):
    """The peer has seen a break; `connections` are those that there are now.

    Where `covers`, its renewal spends all that this host has: it serves what is not there any more
    too. Else it was asked for before what this host has used since, and serves none of that.
    """

    connections: tuple[Connection, ...]
    covers: bool


@dataclass(frozen=True, slots=True)
class Let(Action):
    """Let a held SYN go on."""

    syn: Syn


@dataclass(frozen=True, slots=True)
class Drop(Action):
    """Drop a held SYN."""

    syn: Syn


@dataclass(frozen=True, slots=True)
class Renew(Action):
    """Get a fresh authentication for the flow at both ends; Looked tells when it is there."""

    child: ChildId
    reason: str


@dataclass(frozen=True, slots=True)
class Held:
    """A SYN that waits."""

    syn: Syn
    since: Instant
    known: bool = False
    """The SA that it came by is one that counts."""


@dataclass(frozen=True, slots=True)
class Live:
    """A connection that uses the authentication of now."""

    sequence: int | None = None
    """Its initial sequence number, where it was let through by us."""
    carried: bool = False


@dataclass(frozen=True, slots=True)
class Gate:
    """One relation's new connections."""

    child: ChildId
    state: GateState = GateState.UNUSED
    live: Mapping[Ends, Live] = field(default_factory=dict)
    missing: Mapping[Ends, Instant] = field(default_factory=dict)
    """Connections that were used and are not there any more; since when."""
    held: tuple[Held, ...] = ()
    ask_at: Instant | None = None
    """While set, a break is damped until then. None while BROKEN: nobody knows of a break, and the
    next connection asks."""
    debt: float = 0.0
    """Breaks that are not forgiven yet."""
    broke_at: Instant | None = None
    """The last break."""
    renewals: int = 0


@dataclass(frozen=True, slots=True)
class GateStep:
    """A new state and what must be done."""

    state: Gate
    actions: tuple[Action, ...]


GateEvent = Begun | SynHeld | Ended | Looked | PeerAsked


def step(state: Gate, event: GateEvent, now: Instant, fraction: float) -> GateStep:
    """One fact in, orders out. `fraction` in [0, 1) is dice for jitter."""
    actions: list[Action] = []
    standing: Standing | None = None
    match event:
        case Begun(connections, used):
            state = _begun(state, connections, used)
        case SynHeld(syn, connections, standing):
            state = _hold(_notice(state, connections, now, fraction), syn, now, fraction, actions)
        case Ended(connection, connections, standing):
            state = _ended(state, connection, now, fraction)
            if state.state is GateState.BROKEN:
                state = _left(state, connections)  # the renewal is yet to be asked for
        case Looked(connections, standing):
            state = _fates_due(_notice(state, connections, now, fraction), now, fraction)
            if state.state is GateState.RENEWING and standing.renewed and not state.missing:
                state = _renewed(state, connections, actions)
        case PeerAsked(connections, covers):
            state = _peer_asked(state, connections, now, fraction, covers=covers)
    state = _ask(state, now, actions)
    if standing is not None:
        state = _judge(state, standing, now, actions)
    return GateStep(state, tuple(actions))


def deadline(state: Gate) -> Deadline | None:
    """When the gate must be looked at again: a damped renewal is due, or news has not come."""
    found = [Deadline(Instant(since + FATE_WITHIN), "an end") for since in state.missing.values()]
    found += [
        Deadline(Instant(one.since + UNKNOWN_FOR), "an SA of a SYN")
        for one in state.held
        if not one.syn.outbound and not one.known
    ]
    if state.ask_at is not None:
        found.append(Deadline(state.ask_at, "a damped renewal"))
    return min(found, default=None)


def closed_reason(state: Gate) -> str:
    """Why no new connection may begin, for people; empty when one may."""
    if state.state in OPEN:
        return ""
    broke = f"the connection to {state.child.peer} broke"
    if _unasked(state):
        return ""  # there is no new connection
    if state.state is GateState.BROKEN:
        return f"{broke}, again and again: waiting to re-authenticate"
    return f"re-authenticating: {broke}"


# Facts


def _begun(state: Gate, connections: tuple[Connection, ...], used: bool) -> Gate:
    """What an earlier life saw is not known: something may have broken while nobody looked."""
    live = {one.ends: Live(carried=one.carried) for one in connections if one.alive}
    if used:
        state = _moved(_moved(state, GateFact.LET), GateFact.BROKE)
        return replace(state, live=live)
    return _moved(replace(state, live=live), GateFact.LET) if live else state


def _notice(
    state: Gate, connections: tuple[Connection, ...], now: Instant, fraction: float
) -> Gate:
    """Hold what is known to be used against what there is."""
    there = {one.ends: one for one in connections}
    live: dict[Ends, Live] = {}
    missing = dict(state.missing)
    broke = False
    for ends, known in state.live.items():
        one = there.get(ends)
        if one is None:
            if known.carried:
                broke = True
            else:
                missing[ends] = now
        elif one.alive:
            live[ends] = replace(known, carried=known.carried or one.carried)
        elif one.carried or known.carried:
            broke = True
    state = replace(state, live=live, missing=missing)
    return _broke(state, now, fraction) if broke else state


def _peer_asked(
    state: Gate, connections: tuple[Connection, ...], now: Instant, fraction: float, *, covers: bool
) -> Gate:
    if covers and not _unasked(state):
        state = _left(replace(state, ask_at=None), connections)
        return _moved(state, GateFact.PEER_ASKED)
    state = _notice(state, connections, now, fraction)
    # What broke here, or may have, wants a renewal of its own, and waits for it.
    return state if state.state is GateState.BROKEN else _moved(state, GateFact.PEER_ASKED)


def _left(state: Gate, connections: tuple[Connection, ...]) -> Gate:
    """What broke with others needs no renewal of its own."""
    alive = {one.ends for one in connections if one.alive}
    live = {ends: one for ends, one in state.live.items() if ends in alive}
    return replace(state, live=live, missing={})


def _ended(state: Gate, connection: Connection, now: Instant, fraction: float) -> Gate:
    ends = connection.ends
    known = state.live.get(ends)
    if known is None and ends not in state.missing:
        return state  # it ended before the authentication of now, or never began
    state = replace(
        state,
        live={key: one for key, one in state.live.items() if key != ends},
        missing={key: since for key, since in state.missing.items() if key != ends},
    )
    carried = connection.carried or (known is not None and known.carried)
    return _broke(state, now, fraction) if carried else state


def _fates_due(state: Gate, now: Instant, fraction: float) -> Gate:
    """No news came of what is missing: the worst is believed."""
    late = [ends for ends, since in state.missing.items() if now >= since + FATE_WITHIN]
    if not late:
        return state
    missing = {ends: since for ends, since in state.missing.items() if ends not in late}
    return _broke(replace(state, missing=missing), now, fraction)


def _broke(state: Gate, now: Instant, fraction: float) -> Gate:
    if _unasked(state):
        return replace(state, broke_at=now, ask_at=now, missing={})
    if state.state not in (GateState.IN_USE, GateState.RENEWING):
        return state
    forgiven = 0.0 if state.broke_at is None else (now - state.broke_at) / CALM
    debt = max(0.0, state.debt - forgiven) + 1.0
    wait = Seconds(0.0) if debt <= BURST else backoff(int(debt - BURST) + 1, fraction)
    state = _moved(state, GateFact.BROKE)
    return replace(state, debt=debt, broke_at=now, ask_at=Instant(now + wait), missing={})


def _ask(state: Gate, now: Instant, actions: list[Action]) -> Gate:
    if state.state is not GateState.BROKEN or state.ask_at is None or state.ask_at > now:
        return state
    actions.append(Renew(state.child, f"the connection to {state.child.peer} broke"))
    return _moved(replace(state, ask_at=None), GateFact.ASKED)


def _renewed(state: Gate, connections: tuple[Connection, ...], actions: list[Action]) -> Gate:
    """What lives now goes on under the fresh authentication. A held SYN whose socket is gone would
    begin a connection that nobody wants."""
    waiting = {one.syn.ends for one in state.held}
    there = {one.ends for one in connections if one.alive}
    gone = [one for one in state.held if one.syn.outbound and one.syn.ends not in there]
    actions += [Drop(one.syn) for one in gone]
    live = {
        one.ends: Live(carried=one.carried)
        for one in connections
        if one.alive and one.ends not in waiting
    }
    state = replace(
        _moved(state, GateFact.RENEWED),
        live=live,
        missing={},
        held=tuple(one for one in state.held if one not in gone),
        renewals=state.renewals + 1,
    )
    return _moved(state, GateFact.LET) if live else state


def _hold(state: Gate, syn: Syn, now: Instant, fraction: float, actions: list[Action]) -> Gate:
    """A SYN waits for its verdict; one that is sent again takes the place of the first."""
    known = state.live.get(syn.ends)
    if known is not None and known.sequence not in (None, syn.sequence):
        live = {ends: one for ends, one in state.live.items() if ends != syn.ends}
        state = _broke(replace(state, live=live), now, fraction)
    again = [one for one in state.held if one.syn.ends == syn.ends]
    held = [one for one in state.held if one not in again]
    again += held[: max(0, len(held) + 1 - HELD)]
    actions += [Drop(one.syn) for one in again]
    held = [one for one in held if one not in again]
    if _unasked(state):
        state = replace(state, ask_at=now)
    return replace(state, held=(*held, Held(syn, now)))


# What follows


def _judge(state: Gate, standing: Standing, now: Instant, actions: list[Action]) -> Gate:
    """A verdict for each held SYN that can have one now."""
    waiting: list[Held] = []
    for one in state.held:
        syn = one.syn
        known = syn.outbound or syn.spi in standing.fresh
        late = not (one.known or known) and now >= one.since + UNKNOWN_FOR
        if syn.spi in standing.stale or late:
            actions.append(Drop(syn))
        elif known and standing.sends and state.state in OPEN and not state.missing:
            actions.append(Let(syn))
            live = {**state.live, syn.ends: Live(syn.sequence)}
            state = _moved(replace(state, live=live), GateFact.LET)
        else:
            waiting.append(replace(one, known=one.known or known))
    return replace(state, held=tuple(waiting))


def _unasked(state: Gate) -> bool:
    """An earlier life may have seen breaks, and nothing was asked for since."""
    return state.state is GateState.BROKEN and state.ask_at is None


def _moved(state: Gate, fact: GateFact) -> Gate:
    return replace(state, state=GATE.next(state.state, fact))


def of_child(child: ChildId, connections: Iterable[Connection]) -> tuple[Connection, ...]:
    """The connections between a relation's addresses."""
    return tuple(
        one
        for one in connections
        if (one.ends.local, one.ends.remote) == (child.local, child.remote)
    )
