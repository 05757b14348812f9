"""The gates of all flows whose new connections must wait for fresh authentication: facts from the
kernel to the machines, their verdicts back. Synchronous like the engine, which owns it.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Final

from tunsec.daemon.alarm import Alarms
from tunsec.daemon.journal import fields
from tunsec.machines import reconnect
from tunsec.machines.reconnect import (
    OPEN,
    Begun,
    Drop,
    Ended,
    Gate,
    GateState,
    Let,
    Looked,
    PeerAsked,
    Renew,
    Standing,
    SynHeld,
    closed_reason,
)
from tunsec.model.clock import Deadline, Instant, Seconds
from tunsec.model.connection import Connection, ConnectionEnded, Ends, EndsLost, Syn
from tunsec.model.errors import Bug, Refused, Unavailable
from tunsec.model.flow import Child, ChildId, OnReconnect
from tunsec.ports import Clock, Entropy, Sockets, SynGate

POLL_EVERY: Final = Seconds(5.0)
"""Ends are told of; this finds those that were not."""
RENEWING_EVERY: Final = Seconds(0.5)
"""How often a renewal is looked at that only time ends: a peer may have no CHILD_SA of its own."""

log = logging.getLogger("tunsec.gate")

POLL: Final = "poll"


class Gates:
    """One machine for each relation with `on_reconnect`."""

    def __init__(
        self,
        *,
        sockets: Sockets | None,
        syns: SynGate | None,
        clock: Clock,
        entropy: Entropy,
        standing: Callable[[ChildId], Standing],
        renew: Callable[[ChildId, str], None],
    ) -> None:
        """`standing` tells how a child's keying stands, `renew` has it renewed."""
        self._sockets = sockets
        self._syns = syns
        self._clock = clock
        self._entropy = entropy
        self._standing = standing
        self._renew = renew
        self._gates: dict[ChildId, Gate] = {}
        self._ports: dict[ChildId, int] = {}
        self._told: dict[ChildId, Standing] = {}
        self._alarms: Alarms[ChildId | str] = Alarms()
        self._asked: deque[tuple[ChildId, PeerAsked]] = deque()
        self._ordered: set[ChildId] = set()
        """Children whose renewal was ordered, and not yet taken up by their keying."""

    @property
    def needed(self) -> bool:
        """Whether any flow of this host has one."""
        return bool(self._gates)

    def state(self, child: ChildId) -> Gate | None:
        """A child's gate, if it has one."""
        return self._gates.get(child)

    def closed_reason(self, child: ChildId) -> str:
        """Why no new connection of a child may begin; empty when one may."""
        gate = self._gates.get(child)
        return "" if gate is None else closed_reason(gate)

    def set_children(self, children: Iterable[Child], used: Callable[[ChildId], bool]) -> None:
        """The policy's children; `used` tells those that have SAs already."""
        wanted = {
            child.id: child for child in children if child.on_reconnect is not OnReconnect.KEEP
        }
        for child_id in [one for one in self._gates if one not in wanted]:
            gate = self._gates.pop(child_id)
            del self._ports[child_id]
            self._told.pop(child_id, None)
            self._alarms.put(child_id, None)
            for held in gate.held:
                self._perform(child_id, Drop(held.syn))
        for child_id, child in wanted.items():
            self._ports[child_id] = _port(child)
            if child_id not in self._gates:
                self._gates[child_id] = Gate(child_id)
                found = self._connections(child_id)
                begun = Begun(found or (), used(child_id) or found is None)
                self._step(child_id, begun)
        poll = Deadline(Instant(self._clock.now() + POLL_EVERY), "connections are looked at")
        self._alarms.put(POLL, poll if self._gates else None)

    # Facts

    def on_syn(self, syn: Syn) -> None:
        """The kernel holds a SYN."""
        child = self._child_of(syn.ends)
        found = None if child is None else self._connections(child)
        if child is None or found is None:
            log.debug("SYN dropped", extra=fields({"child": child, "syn": syn}))
            if self._syns is not None:
                self._syns.drop(syn)
            return
        self._step(child, SynHeld(syn, found, self._standing(child)))

    def on_ended(self, events: Iterable[ConnectionEnded | EndsLost]) -> None:
        """Sockets were destroyed, whosever."""
        for event in events:
            if isinstance(event, EndsLost):
                self._poll()
                continue
            child = self._child_of(event.connection.ends)
            if child is None:
                continue
            found = self._connections(child)
            if found is None:
                self._look(child)
            else:
                self._step(child, Ended(event.connection, found, self._standing(child)))

    def on_peer_asked(self, child: ChildId, *, covers: bool) -> None:
        """More of what a child has is spent, here or for its peer; `covers` when all of it is.

        Which connections there are is looked at now: those that end later may have used more.
        """
        if child not in self._gates:
            return
        found = self._connections(child)
        asked = PeerAsked(() if found is None else found, covers and found is not None)
        self._asked.append((child, asked))

    # Time

    def deadline(self) -> Deadline | None:
        """When `tick` must be called at the latest."""
        return self._alarms.next()

    def tick(self) -> None:
        """Time has passed."""
        for due in self._alarms.due(self._clock.now()):
            if isinstance(due, ChildId):
                self._look(due)
            else:
                self._poll()
                again = Instant(self._clock.now() + POLL_EVERY)
                self._alarms.put(POLL, Deadline(again, "connections are looked at"))

    def work(self) -> bool:
        """Tell gates that wait what has changed for them, once nothing else is left to be done;
        whether there was anything."""
        worked = bool(self._asked)
        self._ordered.clear()
        while self._asked:
            child, asked = self._asked.popleft()
            if child in self._gates:
                self._step(child, asked)
        for child, gate in list(self._gates.items()):
            if gate.state in OPEN and not gate.held:
                self._told.pop(child, None)
            elif self._standing(child) != self._told.get(child):
                self._look(child)
                worked = True
        return worked

    # Machines

    def _poll(self) -> None:
        for child in list(self._gates):
            self._look(child)

    def _look(self, child: ChildId) -> None:
        self._told[child] = standing = self._standing(child)
        found = self._connections(child)
        if found is None:
            again = Instant(self._clock.now() + RENEWING_EVERY)
            self._alarms.put(child, Deadline(again, "connections could not be read"))
            return
        if child in self._ordered:
            standing = replace(standing, renewed=False)  # it tells of the renewal before
        self._step(child, Looked(found, standing))

    def _step(self, child: ChildId, event: reconnect.GateEvent) -> None:
        before, now = self._gates[child], self._clock.now()
        done = reconnect.step(before, event, now, self._entropy.fraction())
        after = self._gates[child] = done.state
        if before.state is not after.state:
            told = {"child": child, "was": before.state, "state": after.state}
            log.info("gate", extra=fields(told))
        at = reconnect.deadline(after)
        if after.state is GateState.RENEWING:
            again = Deadline(Instant(now + RENEWING_EVERY), "a renewal is looked at")
            at = again if at is None else min(at, again)
        self._alarms.put(child, at)
        for action in done.actions:
            self._perform(child, action)

    def _perform(self, child: ChildId, action: object) -> None:
        match action:
            case Let(syn):
                if self._syns is not None:
                    self._syns.let(syn)
            case Drop(syn):
                if self._syns is not None:
                    self._syns.drop(syn)
            case Renew(_, reason):
                self._ordered.add(child)
                self._renew(child, reason)
            case _:
                raise Bug(f"nobody performs {action}")

    # Sockets

    def _connections(self, child: ChildId) -> tuple[Connection, ...] | None:
        """A child's connections; None when the kernel does not tell."""
        if self._sockets is None:
            return None
        try:
            found = self._sockets.connections(self._ports[child])
        except (Refused, Unavailable) as error:
            log.warning("connections not read", extra=fields({"error": error}))
            return None
        return reconnect.of_child(child, found)

    def _child_of(self, ends: Ends) -> ChildId | None:
        for child, port in self._ports.items():
            if (child.local, child.remote) == (ends.local, ends.remote) and port in (
                ends.local_port,
                ends.remote_port,
            ):
                return child
        return None


def _port(child: Child) -> int:
    """The port of a flow's connections."""
    for selector in child.outbound:
        if selector.dport.mask:
            return selector.dport.port
    raise Bug(f"{child.id} has no port")
