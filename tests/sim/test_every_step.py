"""A daemon that dies at any one of the kernel steps of its life, whichever that is."""

import pytest

from tests.sim.aftermath import nothing_missing_nothing_left
from tests.sim.cast import QUIET, policy, without_flows
from tests.sim.trial import BACK_WITHIN, SETTLED_WITHIN
from tests.sim.world import World
from tunsec.daemon.engine import FAREWELL
from tunsec.model.names import HostName

NEVER = 1_000_000
PARTS = 4
"""Tests that share the steps."""
AGAIN = 0.5
"""Seconds between two attempts to start a daemon that is dead."""


def life(*, dies_at: int, by_ike: int) -> int:
    """It starts, rolls over, loses a flow, gets it back, and rolls over again; how many kernel
    steps that took. Raises when a law is broken, or when not all is well again in the end."""
    intent = policy(2, after="2s", by_ike=by_ike)
    world = World(dies_at, intent, start_within=0.2)
    host = world.hosts[HostName("h0")]
    host.crash_in = dies_at
    for attempt in range(1, 20):
        world.start_later(host, AGAIN * attempt)
    world.run(3.5)
    world.apply(host, without_flows(intent, ["overlay0"]))
    world.run(1.0)
    world.apply(host, intent)
    world.run(4.5)
    steps = NEVER - (host.crash_in or 0)
    host.crash_in = None
    world.start(host)
    world.apply(host, intent)
    world.run_until(world.protected, BACK_WITHIN)
    for one in world.hosts.values():
        world.apply(one, policy(2, after=QUIET, hard=None, by_ike=by_ike))
    world.run(FAREWELL)
    world.run_until(world.settled, SETTLED_WITHIN, look=1.0)
    nothing_missing_nothing_left(world)
    return steps


@pytest.mark.parametrize("by_ike", [0, 1])
@pytest.mark.parametrize("part", range(PARTS))
def test_a_daemon_dies_before_each_of_its_steps(part: int, by_ike: int) -> None:
    steps = life(dies_at=NEVER, by_ike=by_ike)
    assert steps > 3 * PARTS
    for step in range(part, steps, PARTS):
        life(dies_at=step, by_ike=by_ike)
