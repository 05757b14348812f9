"""Trials of clusters in which charon keys, alone or beside the directory. All of it from a seed."""

import random

from tests.sim.cast import QUIET, policy
from tests.sim.ike_chaos import IkeChaos
from tests.sim.strangers import move_in
from tests.sim.trial import Stage, play
from tests.sim.world import World


def ike_stage(seed: int) -> Stage:
    """Two or three hosts, one to three flows, at least one of them by IKE."""
    dice = random.Random(f"ike stage {seed}")
    [hosts] = dice.choices([2, 3, 4], [12, 5, 1])
    flows = dice.choice([1, 2, 3])
    by_ike = dice.randint(1, flows)
    both_families = dice.random() < 0.2
    dead_after = dice.choice(["never", "never", "5s"])
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
        ),
        policy(
            hosts,
            after=QUIET,
            hard=None,
            flows=flows,
            both_families=both_families,
            by_ike=by_ike,
            dead_after=dead_after,
        ),
    )


def ike_chaos_trial(seed: int) -> World:
    """Trouble of every kind with charons in it; raises with seed and story when something is
    wrong."""
    played = ike_stage(seed)
    dice = random.Random(f"ike trial {seed}")
    world = World(seed, played.intent, start_within=dice.choice([0.5, 1.0, 6.0]))
    for host in world.hosts.values():
        if dice.random() < 0.2:
            move_in(world, host)
    play(world, IkeChaos(world), played, dice)
    return world
