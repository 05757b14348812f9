"""Trials of many hosts, up to fifty, in circles that share a flow. All of it from a seed."""

import random
from dataclasses import replace

from tests.sim.cast import QUIET, policy
from tests.sim.chaos import Chaos
from tests.sim.script import Script
from tests.sim.trial import Stage, play
from tests.sim.world import World

SIZES = (50, 12, 20, 30)
"""Hosts, one after the other."""
CIRCLE = 3
"""Hosts of a flow; the last of one is the first of the next."""
SHORT = 3.0
"""Seconds of trouble at most: much happens in few, and all of it is checked."""


def large_stage(script: Script) -> Stage:
    """A chain of circles, each with a flow of its own."""
    dice = random.Random(f"large stage {script.seed}")
    hosts = script.hosts_of(SIZES[script.seed % len(SIZES)])
    return Stage(
        policy(hosts, after=dice.choice(["4s", "8s"]), circle=CIRCLE),
        policy(hosts, after=QUIET, hard=None, circle=CIRCLE),
    )


def large_trial(script: Script) -> World:
    """As chaos_trial, with many hosts; raises with seed and story when something is wrong."""
    script = replace(script, span=min(script.trouble, SHORT))
    played = large_stage(script)
    dice = random.Random(f"large trial {script.seed}")
    world = World(script.seed, played.intent)
    play(world, Chaos(world, script), played, dice)
    return world
