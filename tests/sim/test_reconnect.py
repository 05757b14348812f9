"""Connections break and begin anew: law 7 is checked at each first packet (tests/sim/tcp.py)."""

from functools import partial

import pytest

from tests.sim.cast import with_connections
from tests.sim.host import SimHost
from tests.sim.laws import Broken
from tests.sim.test_stories import Two
from tunsec.machines import flow as flows
from tunsec.machines.flow import Spent
from tunsec.machines.reconnect import GateState
from tunsec.model.connection import Ends
from tunsec.model.flow import Keying, OnReconnect

SOON = 4.0
BREAKS = 20
AFTER_KILLS = 60.0
"""What a killed charon leaves drains first: nobody tells its peer that it is gone."""


class Pair(Two):
    """Two hosts with a gated flow, and the connections between them."""

    def __init__(
        self,
        keying: Keying,
        *,
        seed: int = 1,
        on_reconnect: OnReconnect = OnReconnect.REAUTH,
        beside: bool = False,
    ) -> None:
        intent = with_connections(keying=keying, on_reconnect=on_reconnect, beside=beside)
        super().__init__(intent, seed=seed)
        for host in self.both:
            self.world.start(host)
        self.protected_within(2 * SOON)  # an exchange may be lost, and tried again

    def reset(self, host: SimHost, *, peer_sees: bool = True) -> None:
        """A host resets all that it has with the other."""
        self.world.tcp.reset(host, host.scope.children[0].id, peer_sees=peer_sees)

    def dial(self, host: SimHost) -> Ends:
        """A host opens a connection."""
        return self.world.tcp.dial(host, host.scope.children[0].id)

    def open(self, host: SimHost | None = None, *, within: float = SOON) -> Ends:
        """A connection that is dialled and comes up."""
        host = host or self.left
        ends = self.dial(host)
        self.world.run_until(lambda: self.world.tcp.up(host, ends), within, look=0.01)
        return ends

    def gates(self) -> list[GateState]:
        """How the gates of both hosts stand."""
        found = []
        for host in self.both:
            assert host.engine is not None
            gate = host.engine.gates.state(host.scope.children[0].id)
            assert gate is not None
            found.append(gate.state)
        return found


@pytest.mark.parametrize("keying", list(Keying))
def test_the_first_connection_passes_at_once_and_more_beside_it(keying: Keying) -> None:
    pair = Pair(keying)
    for host in (*pair.both, *pair.both):
        pair.open(host, within=0.1)
    assert pair.gates() == [GateState.IN_USE] * 2


@pytest.mark.parametrize("peer_sees", [True, False])
@pytest.mark.parametrize("keying", list(Keying))
def test_twenty_breaks(keying: Keying, peer_sees: bool) -> None:
    """Either host breaks and dials; the other sees the break, or has no idea."""
    pair = Pair(keying)
    pair.open()
    for number in range(BREAKS):
        host = pair.both[number % 2]
        before = {pair.out(host) for host in pair.both}
        pair.reset(host, peer_sees=peer_sees)
        pair.open(host)
        assert before.isdisjoint(pair.ours(pair.left) | pair.ours(pair.right))
        pair.world.run(1.0)
    assert pair.world.tcp.begun == BREAKS + 1


@pytest.mark.parametrize("peer_sees", [True, False])
@pytest.mark.parametrize("keying", list(Keying))
def test_beside_other_flows_it_takes_no_more_than_a_second(keying: Keying, peer_sees: bool) -> None:
    """What others have stays on the old IKE_SA for a while; what broke does not go back to it."""
    pair = Pair(keying, beside=True)
    pair.open()
    for number in range(BREAKS):
        host = pair.both[number % 2]
        pair.reset(host, peer_sees=peer_sees)
        pair.open(host)
        pair.world.run(1.5)
    assert max(pair.world.tcp.waits) < 1.0


@pytest.mark.parametrize("keying", list(Keying))
def test_rds_dials_before_anybody_is_told_of_the_break(keying: Keying) -> None:
    pair = Pair(keying)
    pair.open()
    pair.world.lose_events = 1.0
    pair.reset(pair.left)
    pair.open()
    assert pair.world.tcp.begun == 2


@pytest.mark.parametrize("keying", list(Keying))
def test_without_a_daemon_there_is_no_new_connection(keying: Keying) -> None:
    pair = Pair(keying)
    pair.open()
    pair.world.crash(pair.right)
    pair.reset(pair.left)
    ends = pair.dial(pair.left)
    pair.world.run(10.0)
    assert not pair.world.tcp.up(pair.left, ends)
    pair.world.start(pair.right)
    pair.world.run_until(lambda: pair.world.tcp.up(pair.left, ends), 60.0)


@pytest.mark.parametrize("keying", list(Keying))
def test_a_storm_is_damped_and_never_opens(keying: Keying) -> None:
    pair = Pair(keying)
    pair.open()
    for _ in range(400):
        pair.reset(pair.left)
        pair.dial(pair.left)
        pair.world.run(0.05)
    assert pair.left.engine is not None
    gate = pair.left.engine.gates.state(pair.left.scope.children[0].id)
    assert gate is not None
    assert gate.renewals <= 45, "twenty seconds at about one a second, and as many of the peer's"
    pair.world.run(60.0)
    pair.open()


@pytest.mark.parametrize("keying", list(Keying))
def test_rekey_wants_fresh_keys_alone(keying: Keying) -> None:
    pair = Pair(keying, on_reconnect=OnReconnect.REKEY)
    pair.world.tcp.asks_proof = False
    pair.open()
    for _ in range(3):
        before = {pair.out(host) for host in pair.both}
        pair.reset(pair.left)
        pair.open()
        assert before.isdisjoint(pair.ours(pair.left) | pair.ours(pair.right))
        pair.world.run(1.0)


# Faults on purpose


def forgets_what_is_spent(patch: pytest.MonkeyPatch) -> None:
    """The old authentication is taken for a fresh one."""
    patch.setattr(Spent, "has", lambda self, sa: False)
    patch.setattr(flows.FlowState, "renewed", property(lambda self: True))
    patch.setattr("tunsec.machines.ike_flow.is_spent", lambda flow, one, old: False)
    patch.setattr("tunsec.daemon.ike_desk.is_spent", lambda flow, one, old: False)
    patch.setattr("tunsec.daemon.ike_desk.renewed", lambda flow, old, now: True)


@pytest.mark.parametrize("plant", [forgets_what_is_spent])
@pytest.mark.parametrize("keying", list(Keying))
def test_a_fault_is_caught(keying: Keying, plant: object, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair(keying)
    pair.open()
    plant(monkeypatch)  # type: ignore[operator]
    with pytest.raises(Broken, match="law 7"):
        break_again(pair)


def break_again(pair: Pair) -> None:
    """Some breaks in a row."""
    for _ in range(5):
        pair.reset(pair.left)
        pair.open()


# Anything, in any order


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("keying", list(Keying))
def test_whatever_happens_connections_come_back_and_never_by_the_old(
    keying: Keying, seed: int
) -> None:
    pair = Pair(keying, seed=seed)
    world = pair.world
    pair.open()
    for _ in range(12):
        host = world.dice.choice(pair.both)
        match world.dice.randrange(9):
            case 0 | 1:
                pair.reset(host, peer_sees=world.dice.random() < 0.7)
            case 2 | 3 | 4:
                pair.dial(host)
            case 5:
                world.lose_events = world.dice.choice([0.0, 0.5])
            case 6 if keying is Keying.DIRECTORY:
                world.directory_away(world.dice.uniform(0.1, 2.0))
            case 6 | 7 if keying is Keying.IKE:
                world.charons.crash(host)
                world.later(world.dice.uniform(0.1, 2.0), partial(world.charons.start, host))
            case _:
                world.crash(host)
                world.start_later(host, world.dice.uniform(0.1, 2.0))
        world.run(world.dice.uniform(0.0, 1.0))
    world.lose_events = 0.0
    world.run(30.0)
    for host in pair.both:
        pair.reset(host)
        pair.open(host, within=AFTER_KILLS)
