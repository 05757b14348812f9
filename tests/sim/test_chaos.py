"""Whole clusters under every trouble at once, from seeds. TUNSEC_SIM_SEEDS says how many.

A failure tells the shortest story that was found, and how to play it again.
"""

import os

import pytest

from tests.sim.repertoire import SHARES, play_all

SEEDS = int(os.environ.get("TUNSEC_SIM_SEEDS", "500"))
CHUNK, FEW = 10, 2
"""Seeds of one test, so that several processes share them; few where one takes long."""


def chunks() -> list[tuple[str, int, int]]:
    """Kinds of trials, and from which seed up to which."""
    counts = {name: max(1, SEEDS * share // 1000) for name, share in SHARES.items()}
    sizes = {name: CHUNK if name == "chaos" else FEW for name in counts}
    return [
        (name, first, min(first + sizes[name], count))
        for name, count in counts.items()
        for first in range(0, count, sizes[name])
    ]


@pytest.mark.parametrize(("name", "first", "end"), chunks())
def test_the_laws_hold(name: str, first: int, end: int) -> None:
    """At every step; and afterwards nothing is missing and nothing is left over. Where there is no
    fault but those that must cost no packet (restless), not one is lost."""
    play_all(name, range(first, end))
