"""Stories of a flow that moves from one keying to the other under load, whatever happens meanwhile:
the laws hold at every step, no packet is lost, and nothing of the old keying is left."""

import random

import pytest

from tests.sim.aftermath import nothing_missing_nothing_left
from tests.sim.cast import keyed_by_ike, policy
from tests.sim.host import SimHost
from tests.sim.test_stories import Two, quiet
from tunsec.daemon import report
from tunsec.daemon.engine import FAREWELL
from tunsec.model.clock import Instant
from tunsec.model.flow import Keying
from tunsec.plan.image import Image

MOVED_WITHIN = 180.0
ORDERS = ["left first", "right first", "at once"]


def apply(two: Two, keying: Keying, *hosts: SimHost) -> None:
    """Hosts get a policy under which IKE keys the flow, or the directory does."""
    flows = [flow.name for flow in two.world.intent.flows] if keying is Keying.IKE else []
    for host in hosts:
        two.world.apply(host, keyed_by_ike(two.world.intent, flows))


def other(keying: Keying) -> Keying:
    """Where a flow comes from."""
    return Keying.DIRECTORY if keying is Keying.IKE else Keying.IKE


def moved(two: Two, keying: Keying) -> bool:
    """Whether every host has the flow keyed as it should be, and is done with it."""
    return two.world.settled() and all(
        host.engine is not None
        and not host.engine.is_moving(two.child(host))
        and host.engine.pinned_by_ike(two.child(host)) is (keying is Keying.IKE)
        for host in two.both
    )


def finish(two: Two, keying: Keying) -> None:
    """The move is done, and nothing of the old keying is left."""
    two.world.run_until(lambda: moved(two, keying), MOVED_WITHIN, look=0.5)
    two.world.run(FAREWELL + 1.0)
    nothing_missing_nothing_left(two.world)


@pytest.mark.parametrize("order", ORDERS)
def test_a_flow_moves_to_ike_and_back(order: str) -> None:
    two = Two(quiet()).start()
    hosts = list(two.both) if order != "right first" else list(reversed(two.both))
    for keying in (Keying.IKE, Keying.DIRECTORY):
        apply(two, keying, hosts[0])
        if order != "at once":
            two.world.run(7.0)
            assert not moved(two, keying)
            keyed, [warning] = told(two, hosts[0])
            assert keyed is other(keying)
            assert f"on its way to keying {keying}: " in warning
        apply(two, keying, hosts[1])
        finish(two, keying)
        assert {told(two, host) for host in hosts} == {(keying, ())}
    two.nothing_lost()


def test_a_host_that_moves_alone_goes_on_with_fresh_keys() -> None:
    two = Two(policy(2, after="5s")).start()
    apply(two, Keying.IKE, two.left)
    before = two.key(two.left)
    two.world.run(30.0)
    assert two.key(two.left) != before
    apply(two, Keying.IKE, two.right)
    finish(two, Keying.IKE)
    two.nothing_lost()


def test_a_flow_waits_for_charon_on_its_old_keys_over_a_restart_too() -> None:
    two = Two(policy(2, after="5s")).start()
    for host in two.both:
        two.world.charons.crash(host)
    apply(two, Keying.IKE, *two.both)
    waiting = "on its way to keying ike: charon was not reached yet"
    for _ in range(2):
        before = two.key(two.left)
        two.world.run(30.0)
        assert two.key(two.left) != before
        assert told(two, two.left) == (Keying.DIRECTORY, (waiting,))
        two.world.crash(two.left)
        two.world.start(two.left)
    for host in two.both:
        two.world.charons.start(host)
    finish(two, Keying.IKE)
    two.nothing_lost()


@pytest.mark.parametrize("keying", Keying)
def test_the_policy_changes_while_no_daemon_runs(keying: Keying) -> None:
    two = Two(quiet()).start()
    if keying is Keying.DIRECTORY:
        apply(two, Keying.IKE, *two.both)
        finish(two, Keying.IKE)
    for host in two.both:
        two.world.crash(host)
    two.world.run(5.0)
    apply(two, keying, *two.both)
    for host in two.both:
        two.world.start(host)
        two.world.run(3.0)
    finish(two, keying)
    two.nothing_lost()


@pytest.mark.parametrize("keying", Keying)
@pytest.mark.parametrize("seed", range(6))
def test_a_daemon_dies_anywhere_in_a_move(keying: Keying, seed: int) -> None:
    two, dice = Two(quiet(), seed=seed).start(), random.Random(f"dies {seed}")
    for step in (other(keying), keying):
        apply(two, step, two.left)
        two.world.run(dice.choice([0.0, 1.0]))
        apply(two, step, two.right)
        for _ in range(3):
            host = dice.choice(two.both)
            two.world.run(dice.choice([0.02, 0.05, 0.2, 1.0, 9.0]) * dice.random())
            two.world.crash(host)
            two.world.run(dice.choice([0.1, 2.0]) * dice.random())
            two.world.start(host)
        finish(two, step)
    two.nothing_lost()


@pytest.mark.parametrize("seed", [*range(6), 12, 28, 47])
def test_a_policy_goes_back_and_forth(seed: int) -> None:
    two, dice = Two(quiet(), seed=seed).start(), random.Random(f"back and forth {seed}")
    for _ in range(20):
        hosts = dice.choice([two.both, (two.left,), (two.right,)])
        apply(two, dice.choice(list(Keying)), *hosts)
        two.world.run(dice.choice([0.01, 0.1, 1.0, 12.0]) * dice.random())
    for keying in Keying:
        apply(two, keying, *two.both)
        finish(two, keying)
    two.nothing_lost()


def test_what_the_peer_sends_on_stays_though_its_charon_has_a_child_sa() -> None:
    """The peer's daemon dies between charon's work and its own: no packet flows meanwhile, so
    that nothing but idleness could tell whether the peer still sends by directory keying."""
    two = Two(quiet())
    for host in two.both:
        two.world.start(host)
    two.world.run_until(two.world.settled, 120.0)
    apply(two, Keying.IKE, *two.both)
    two.world.run_until(lambda: peers_of(two.left) > 0, 20.0, look=0.001)
    engine = two.right.engine
    assert engine is not None
    assert not engine.pinned_by_ike(two.child(two.right)), "too late"
    two.world.crash(two.right)
    two.world.run(60.0)
    two.stream.start()
    two.world.run(1.0)
    two.world.start(two.right)
    finish(two, Keying.IKE)
    two.nothing_lost()


def told(two: Two, host: SimHost) -> tuple[str, tuple[str, ...]]:
    """Who keys the flow by a host's status, and the warnings beside it."""
    engine = host.engine
    assert engine is not None
    [flow] = report.flow_statuses(engine, have=Image(), now=Instant(two.world.now))
    assert flow.protected
    return flow.keying, flow.warnings


def peers_of(host: SimHost) -> int:
    """How many CHILD_SAs a host knows on which its peer is to send."""
    if host.engine is None:
        return 0
    return sum(not one.own for _, flow in host.engine.ike.flows() for one in flow.held)
