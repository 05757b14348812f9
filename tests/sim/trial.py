"""One trial: a cluster, trouble, healing, and the look at what is left. All of it from a seed."""

import functools
import random
from dataclasses import dataclass

from tests.sim.aftermath import nothing_missing_nothing_left
from tests.sim.cast import QUIET, policy, without_host
from tests.sim.chaos import Chaos
from tests.sim.host import SimHost
from tests.sim.laws import Broken
from tests.sim.script import Script
from tests.sim.strangers import move_in, stand_in_the_way
from tests.sim.stream import Stream
from tests.sim.world import World
from tunsec.daemon.engine import FAREWELL
from tunsec.machines import pair
from tunsec.machines.flow import Phase
from tunsec.model.sp import SpDirection
from tunsec.policy.intent import Intent

BACK_WITHIN = 30.0
"""Seconds from the end of trouble until every flow is protected."""
SETTLED_WITHIN = 180.0
"""Seconds from a quiet policy until old SAs have drained and old private keys are wiped."""
OUTAGE = 30.0
"""Seconds for which the directory may be away and nothing is lost."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Where a trial is played: the policy in force, and the quiet one for the end."""

    intent: Intent
    quiet: Intent


def stage(script: Script) -> Stage:
    """Mostly two or three hosts, now and then many."""
    dice = random.Random(f"stage {script.seed}")
    [drawn] = dice.choices([2, 3, 4, 5, 6, 8, 10], [120, 56, 14, 4, 2, 2, 1])
    hosts = script.hosts_of(drawn)
    flows = 1 if script.plain or hosts > 4 else dice.choice([1, 1, 2])
    both_families = hosts < 5 and not script.plain and dice.random() < 0.3
    tenants, others = tenancy(script) if hosts < 4 else (0, "blocked")
    return Stage(
        policy(
            hosts,
            after=dice.choice(["1s", "2s", "4s"]),
            hard=dice.choice(["12s", "10m"]),
            flows=flows,
            both_families=both_families,
            soft_packets=dice.choice([None, None, 25]),
            tenants=tenants,
            others=others,
        ),
        policy(
            hosts,
            after=QUIET,
            hard=None,
            flows=flows,
            both_families=both_families,
            tenants=tenants,
            others=others,
        ),
    )


def tenancy(script: Script) -> tuple[int, str]:
    """How many tenants there are in a trial, and what becomes of other VNIs: mostly no tenants."""
    if script.plain:
        return 0, "blocked"
    dice = random.Random(f"tenants {script.seed}")
    return dice.choice([(0, "blocked")] * 6 + [(2, "blocked"), (1, "shared")])


def chaos_trial(script: Script) -> World:
    """Trouble of every kind, then healing, then a host that leaves; raises with seed and story when
    something is wrong."""
    played = stage(script)
    dice = random.Random(f"trial {script.seed}")
    world = World(script.seed, played.intent, start_within=dice.choice([0.5, 1.0, 6.0]))
    for host in world.hosts.values():
        if dice.random() < 0.4 and not script.plain:
            move_in(world, host)
    if dice.random() < 0.1 and not script.plain:
        host = dice.choice(list(world.hosts.values()))
        stand_in_the_way(
            world,
            host,
            dice.choice(host.scope.children).id,
            direction=dice.choice([SpDirection.OUT, SpDirection.OUT, SpDirection.IN]),
            opening=dice.random() < 0.5,
        )
    play(world, Chaos(world, script), played, dice)
    return world


def play(world: World, chaos: Chaos, played: Stage, dice: random.Random) -> None:
    """Trouble, healing, a quiet policy; now and then one is revoked, or a host leaves.
    Raises when something is wrong."""
    chaos.begin()
    world.run(chaos.script.trouble + 1.0)
    chaos.heal()
    for host in world.hosts.values():
        world.apply(host, played.intent)
    world.run_until(world.protected, BACK_WITHIN)
    world.run(dice.uniform(0.0, 3.0))
    stream = Stream(world, pause=1.0)  # that a peer has moved to IKE is heard by its packets
    if played.quiet.uses_ike:
        stream.start()
    for host in world.hosts.values():
        world.apply(host, played.quiet)
    world.run_until(world.settled, SETTLED_WITHIN, look=1.0)
    if played.quiet.uses_ike:
        world.run(FAREWELL)  # a pair whose last flow went over to IKE says so for a while
        world.run_until(world.settled, SETTLED_WITHIN, look=1.0)
        stream.stop()
    nothing_missing_nothing_left(world)
    if dice.random() < 0.15 and not played.quiet.uses_ike:
        _one_is_revoked(world, dice)
        nothing_missing_nothing_left(world)
    if dice.random() < 0.4:
        _one_leaves(world, played.quiet, dice)
        nothing_missing_nothing_left(world)


def _one_is_revoked(world: World, dice: random.Random) -> None:
    """A certificate is revoked, and the others hear of it, running or dead; its host goes on as if
    nothing had happened, until it gets another one."""
    victim = dice.choice(list(world.hosts.values()))
    others = [host for host in world.hosts.values() if host is not victim]
    for host in others:
        if dice.random() < 0.4:
            _dies_for_a_moment(world, host, dice)
        world.revoke(host, victim)
        world.run(dice.uniform(0.0, 0.5))
    for host in (victim, *others):
        if dice.random() < 0.2:
            _dies_for_a_moment(world, host, dice)
    world.run(dice.uniform(3.0, 6.0))
    for host in others:
        all_blocked_as_revoked(world, host, victim)
    if dice.random() < 0.3:
        _dies_for_a_moment(world, victim, dice)
    world.reissue(victim)
    world.run_until(world.protected, BACK_WITHIN)
    world.run_until(world.settled, SETTLED_WITHIN, look=1.0)


def all_blocked_as_revoked(world: World, host: SimHost, peer: SimHost) -> None:
    """No flow with a revoked peer is up, and each says why."""
    if host.engine is None:
        raise Broken(f"{host.name} has no daemon\n{world.tale()}")
    for state, flow in host.engine.flows():
        if flow.child.id.peer == peer.name and not world.obstructed_here(host, flow.child):
            reason = pair.blocked_reason(state, flow)
            if flow.phase is not Phase.BLOCKED or "was revoked" not in reason:
                where = f"{flow.child.id} of {host.name}"
                raise Broken(f"revoked: {where}: {flow.phase} {reason!r}\n{world.tale()}")


def _one_leaves(world: World, intent: Intent, dice: random.Random) -> None:
    """A policy under which one host takes part in nothing. Some daemons are dead when it comes,
    some die while their last words are still in the directory."""
    then = without_host(intent, dice.choice(list(world.hosts)))
    for host in world.hosts.values():
        if dice.random() < 0.3:
            _dies_for_a_moment(world, host, dice)
        world.apply(host, then)
        if dice.random() < 0.3:
            at = dice.uniform(0.0, FAREWELL)
            world.later(at, functools.partial(_dies_for_a_moment, world, host, dice))
    world.run(FAREWELL + 3.0)
    world.run_until(world.settled, SETTLED_WITHIN, look=1.0)


def _dies_for_a_moment(world: World, host: SimHost, dice: random.Random) -> None:
    world.crash(host)
    world.start_later(host, dice.uniform(0.0, 2.0))


def restless_trial(script: Script) -> World:
    """No fault but those that must cost no packet; raises when one is lost."""
    dice = random.Random(f"restless {script.seed}")
    outage = dice.choice([0.0, OUTAGE])
    world = World(
        script.seed,
        policy(
            script.hosts_of(dice.choice([2, 2, 3])),
            after="1s",
            flows=1 if script.plain else dice.choice([1, 2]),
            both_families=not script.plain and dice.random() < 0.3,
        ),
    )
    faults = world.directory.faults
    faults.longest_delay = dice.choice([0.02, 0.1, 0.3])
    faults.repeat, faults.replay_old = 0.3, 0.2
    world.wire.longest_trip = dice.choice([0.001, 0.02])
    world.run_until(world.protected, BACK_WITHIN)
    stream = Stream(world, pause=0.02)
    stream.start()
    world.run(dice.uniform(3.0, 5.0))
    if outage:
        world.directory_away(outage)
    world.run(dice.choice([dice.uniform(0.0, outage), outage + dice.uniform(0.0, 2.0)]))
    victim = dice.choice(list(world.hosts.values()))
    world.crash(victim)
    world.start_later(victim, dice.uniform(0.01, 3.0))
    world.run(outage + 4.0)
    stream.stop()
    world.run(0.1)
    assert world.protected(), world.tale()
    for name, probe in stream.probes.items():
        assert probe.sent > 300, world.tale()
        assert not probe.lost, f"{name}: {probe.lost} of {probe.sent} lost\n{world.tale()}"
    return world
