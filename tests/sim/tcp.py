"""Transport connections between the hosts of a simulation: dialled, held by gates, broken.

Law 7 is checked at the moment that a connection begins: the SA that brought its first packet was
made, at both ends, under an authentication that is younger than the pair's last break.
"""

import itertools
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from tests.sim.kernel import EspPacket, Packet
from tunsec.model.connection import Connection, ConnectionEnded, Ends, Syn
from tunsec.model.flow import ChildId
from tunsec.model.names import Address, HostName, Spi
from tunsec.model.selector import TCP

if TYPE_CHECKING:
    from tests.sim.host import SimHost
    from tests.sim.world import World

SYN_AGAIN = 1.0
"""Seconds until TCP sends a SYN again, doubled each time (RFC 6298)."""
GIVES_UP = 6


class FakeSockets:
    """The TCP connections of a host."""

    def __init__(self) -> None:
        self.there: dict[Ends, Connection] = {}

    def connections(self, port: int) -> tuple[Connection, ...]:
        """Those with this port at either end."""
        return tuple(
            one for ends, one in self.there.items() if port in (ends.local_port, ends.remote_port)
        )


@dataclass(slots=True)
class FakeSynGate:
    """SYNs that a host's kernel holds; those of a dead daemon are dropped."""

    tcp: "Tcp"
    host: "SimHost"
    held: dict[int, tuple[Syn, EspPacket | None]] = field(default_factory=dict)

    def let(self, syn: Syn) -> None:
        """It goes on."""
        found = self.held.pop(syn.id, None)
        if found is not None:
            self.tcp.released(self.host, syn, found[1])

    def drop(self, syn: Syn) -> None:
        """It is gone."""
        self.held.pop(syn.id, None)


def _other(ends: Ends) -> Ends:
    return Ends(ends.remote, ends.remote_port, ends.local, ends.local_port)


@dataclass(frozen=True, slots=True)
class _Break:
    """What was there when a connection broke: everything up to this is spent."""

    at: float
    offers: dict[HostName, int]


class Tcp:
    """All connections of a world."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._ports = itertools.count(40_000)
        self._ids = itertools.count(1)
        self._breaks: dict[frozenset[Address], _Break] = {}
        self.begun = 0
        """Connections that were let begin."""
        self.waits: list[float] = []
        """Seconds from the dial to the first packet's arrival, of each."""
        self._dialled: dict[Ends, float] = {}
        self._made: dict[tuple[HostName, Spi], tuple[float, dict[HostName, int]]] = {}
        """How each inbound SA was authenticated: since when by IKE, or by which offers."""
        self.asks_proof = True
        """Whether flows have `on_reconnect: reauth`; with `rekey` fresh keys will do."""

    # What a story does

    def dial(self, host: "SimHost", child: ChildId) -> Ends:
        """A program, or RDS, opens a connection."""
        flow = next(flow for flow in self._world.intent.flows if flow.name == child.flow)
        ends = Ends(child.local, next(self._ports), child.remote, flow.port)
        host.sockets.there[ends] = Connection(ends, alive=True, carried=False)
        self._dialled[ends] = self._world.now
        self._syn(host, ends, self._world.dice.getrandbits(32), 0)
        return ends

    def up(self, host: "SimHost", ends: Ends) -> bool:
        """Whether a connection is open at both ends."""
        one = host.sockets.there.get(ends)
        return one is not None and one.carried

    def reset(self, host: "SimHost", child: ChildId, *, peer_sees: bool = True) -> None:
        """All connections of a relation end here and, by RST, at the peer."""
        peer = self._world.hosts[child.peer]
        self._world.tell(f"{host.name} resets what it has with {child.peer}")
        pair = frozenset((child.local, child.remote))
        mine = [ends for ends in host.sockets.there if _between(ends, child)]
        theirs = [ends for ends in peer.sockets.there if _between(_other(ends), child)]
        if any(host.sockets.there[ends].carried for ends in mine):
            self._breaks[pair] = _Break(self._world.now, self._used())
        self._close(host, mine)
        if peer_sees:
            self._close(peer, theirs)

    def _used(self) -> dict[HostName, int]:
        """Each host's newest offer that is in an SA on which somebody may send."""
        self.note()
        used: dict[HostName, int] = {}
        for host in self._world.hosts.values():
            for sa_id, _ in host.kernel.all_sas():
                receiver = self._host_of(sa_id.dst)
                if receiver is host:
                    continue
                _, offers = self._made.get((receiver.name, sa_id.spi), (0.0, {}))
                for name, offer in offers.items():
                    used[name] = max(offer, used.get(name, 0))
        return used

    def _host_of(self, address: Address) -> "SimHost":
        return next(
            one
            for one in self._world.hosts.values()
            if address in self._world.intent.host(one.name).addresses
        )

    def _close(self, host: "SimHost", gone: list[Ends]) -> None:
        for ends in gone:
            ended = ConnectionEnded(replace(host.sockets.there.pop(ends), alive=False))
            if self._world.dice.random() >= self._world.lose_events:
                self._tell_later(host, ended)

    def _tell_later(self, host: "SimHost", ended: ConnectionEnded) -> None:
        def tell() -> None:
            self._world.with_engine(host, lambda engine: engine.on_connections([ended]))

        self._world.later(self._world.dice.uniform(0.001, 0.026), tell)

    # A first packet's way

    def _syn(self, host: "SimHost", ends: Ends, sequence: int, tries: int) -> None:
        one = host.sockets.there.get(ends)
        if one is None or one.carried or tries > GIVES_UP:
            return
        self._held(host, Syn(next(self._ids), ends, True, sequence), None)
        again = SYN_AGAIN * 2**tries
        self._world.later(again, lambda: self._syn(host, ends, sequence, tries + 1))

    def _held(self, host: "SimHost", syn: Syn, packet: EspPacket | None) -> None:
        if host.guard.guard is None or host.engine is None:
            return  # the rule has no bypass
        host.syns.held[syn.id] = (syn, packet)
        self._world.with_engine(host, lambda engine: engine.on_syn(syn))

    def released(self, host: "SimHost", syn: Syn, packet: EspPacket | None) -> None:
        """A verdict lets a SYN go on: out to the peer, or in to its socket."""
        if packet is not None:
            self._begins(host, syn, packet)
            return
        ends = syn.ends
        sent = host.kernel.send(
            Packet(ends.local, ends.remote, TCP, ends.local_port, ends.remote_port)
        )
        if not isinstance(sent, EspPacket):
            return
        peer = self._host_of(ends.remote)

        def arrive() -> None:
            parted = self._world.wire.parted(host.name, peer.name)
            if not parted and peer.kernel.receive(sent):
                into = Syn(next(self._ids), _other(ends), False, syn.sequence, 0, Spi(sent.spi))
                self._held(peer, into, sent)

        for trip in self._world.wire.trips(self._world.dice):
            self._world.later(trip, arrive)

    def _begins(self, host: "SimHost", syn: Syn, packet: EspPacket) -> None:
        """The other end has taken the SYN; its answer goes back by what it sends on."""
        ends = syn.ends
        dialler = self._host_of(ends.remote)
        if _other(ends) not in dialler.sockets.there:
            return  # the answer finds no socket, and is reset
        self._law_7(host, ends, packet.spi)
        host.sockets.there[ends] = Connection(ends, alive=True, carried=True)
        back = host.kernel.send(
            Packet(ends.local, ends.remote, TCP, ends.local_port, ends.remote_port)
        )
        there = dialler.sockets.there
        if isinstance(back, EspPacket) and dialler.kernel.receive(back) and _other(ends) in there:
            there[_other(ends)] = Connection(_other(ends), alive=True, carried=True)
            self.begun += 1
            self.waits.append(self._world.now - self._dialled.pop(_other(ends), self._world.now))

    def note(self) -> None:
        """Remember how inbound SAs were authenticated: a later life of a daemon does not know."""
        for host in self._world.hosts.values():
            if host.engine is None or not host.engine.gates.needed:
                continue
            for pair in host.engine.pairs.values():
                for flow in pair.flows.values():
                    for sa in flow.inbound:
                        if sa.own_offer is not None and sa.peer_offer is not None:
                            offers: dict[HostName, int] = {
                                host.name: sa.own_offer,
                                pair.peer: sa.peer_offer,
                            }
                            self._made.setdefault((host.name, sa.spi), (0.0, offers))
            for connection, ike_flow in host.engine.ike.flows():
                for one in ike_flow.held:
                    if one.ike in connection.state.ikes:
                        since = connection.state.ikes[one.ike].since
                        self._made.setdefault((host.name, one.spi_in), (since, {}))

    def _law_7(self, host: "SimHost", ends: Ends, spi: Spi) -> None:
        broke = self._breaks.get(frozenset((ends.local, ends.remote)))
        if broke is None or host.engine is None or not self.asks_proof:
            return
        if (host.name, spi) not in self._made:
            self.note()
        since, offers = self._made.get((host.name, spi), (0.0, {}))
        fresh = since >= broke.at or (
            bool(offers) and all(offers[name] > broke.offers.get(name, 0) for name in offers)
        )
        if not fresh:
            self._world.laws.breaks(
                f"law 7: {host.name} takes a connection from {ends.remote} by {spi:08x}, "
                f"which is of before the break at {broke.at:.3f}"
            )


def _between(ends: Ends, child: ChildId) -> bool:
    return (ends.local, ends.remote) == (child.local, child.remote)
