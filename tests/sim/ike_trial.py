"""Trials of clusters in which charon keys, alone or beside the directory. All of it from a seed."""

import random
from functools import partial

from tests.sim.cast import QUIET, keyed_by_ike, policy
from tests.sim.ike_chaos import IkeChaos
from tests.sim.script import Script
from tests.sim.strangers import move_in
from tests.sim.stream import Stream
from tests.sim.trial import BACK_WITHIN, Stage, play, tenancy
from tests.sim.world import World


def ike_stage(script: Script) -> Stage:
    """Two or three hosts, one to three flows, at least one of them by IKE."""
    dice = random.Random(f"ike stage {script.seed}")
    [drawn] = dice.choices([2, 3, 4], [12, 5, 1])
    hosts = script.hosts_of(drawn)
    flows = 1 if script.plain else dice.choice([1, 2, 3])
    by_ike = dice.randint(1, flows)
    both_families = dice.random() < 0.2 and not script.plain
    dead_after = dice.choice(["never", "never", "5s"])
    tenants, others = tenancy(script) if hosts < 4 else (0, "blocked")
    return Stage(
        policy(
            hosts,
            after=dice.choice(["1s", "2s", "4s"]),
            hard=dice.choice(["12s", "10m"]),
            flows=flows,
            both_families=both_families,
            soft_packets=dice.choice([None, None, 25]),
            by_ike=by_ike,
            ike_rekey=dice.choice([4.0, 15.0, 3600.0]),
            dead_after=dead_after,
            tenants=tenants,
            others=others,
        ),
        policy(
            hosts,
            after=QUIET,
            hard=None,
            flows=flows,
            both_families=both_families,
            by_ike=by_ike,
            dead_after=dead_after,
            tenants=tenants,
            others=others,
        ),
    )


def ike_chaos_trial(script: Script) -> World:
    """Trouble of every kind with charons in it; raises with seed and story when something is
    wrong."""
    played = ike_stage(script)
    dice = random.Random(f"ike trial {script.seed}")
    world = World(script.seed, played.intent, start_within=dice.choice([0.5, 1.0, 6.0]))
    for host in world.hosts.values():
        if dice.random() < 0.2 and not script.plain:
            move_in(world, host)
    play(world, IkeChaos(world, script), played, dice)
    return world


def ike_restless_trial(script: Script) -> World:
    """No fault but those that must cost no packet; raises when one is lost."""
    dice = random.Random(f"ike restless {script.seed}")
    killed = dice.random() < 0.4
    flows = 1 if script.plain else dice.choice([1, 2])
    intent = policy(
        script.hosts_of(dice.choice([2, 2, 3])),
        after=QUIET if killed else "2s",
        hard=None if killed else "10m",
        flows=flows,
        by_ike=dice.randint(1, flows),
        ike_rekey=3600.0 if killed else dice.choice([5.0, 3600.0]),
    )
    world = World(script.seed, intent)
    world.charons.net.longest_delay = dice.choice([0.005, 0.05])
    world.charons.net.repeat = 0.3
    world.directory.faults.longest_delay = dice.choice([0.02, 0.1])
    world.wire.longest_trip = dice.choice([0.001, 0.02])
    world.run_until(world.protected, BACK_WITHIN)
    stream = Stream(world, pause=0.02)
    stream.start()
    if killed:
        _charons_are_killed(world, dice)
    else:
        _all_goes_on(world, dice)
    stream.stop()
    world.run(0.1)
    assert world.protected(), world.tale()
    for name, probe in stream.probes.items():
        assert probe.sent > 300, world.tale()
        assert not probe.lost, f"{name}: {probe.lost} of {probe.sent} lost\n{world.tale()}"
    return world


def _charons_are_killed(world: World, dice: random.Random) -> None:
    """Some or all, at about the same time; they come back soon or late."""
    world.run(10.0)
    hosts = list(world.hosts.values())
    for host in dice.sample(hosts, dice.randint(1, len(hosts))):
        world.charons.crash(host)
        world.later(dice.uniform(0.05, 20.0), partial(world.charons.start, host))
        world.run(dice.uniform(0.0, 1.0))
    world.run(30.0)


def _all_goes_on(world: World, dice: random.Random) -> None:
    """Rekeys all the time; a daemon dies, a charon is held, a flow moves and comes back."""
    hosts = list(world.hosts.values())
    for _ in range(3):
        world.run(dice.uniform(1.0, 3.0))
        host = dice.choice(hosts)
        world.crash(host)
        world.start_later(host, dice.uniform(0.01, 3.0))
        world.run(dice.uniform(0.0, 3.0))
        world.charons.freeze(dice.choice(hosts), dice.uniform(0.1, 1.5))
    names = [flow.name for flow in world.intent.flows]
    for chosen in (dice.sample(names, dice.randint(0, len(names))), names):
        for host in hosts:
            then = partial(world.apply, host, keyed_by_ike(world.intent, chosen))
            world.later(dice.uniform(0.0, 3.0), then)
        world.run(dice.uniform(3.0, 25.0))
    world.run(5.0)
