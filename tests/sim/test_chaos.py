"""Whole clusters under every trouble at once, from seeds. TUNSEC_SIM_SEEDS says how many.

A failure names its seed and tells its story; `python -m tests.sim.soak --seed N` plays it again.
"""

import os

import pytest

from tests.sim.trial import chaos_trial, restless_trial

SEEDS = int(os.environ.get("TUNSEC_SIM_SEEDS", "500"))
CHUNK = 5
"""Seeds of one test, so that several processes share them."""


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_trouble_of_every_kind(first: int) -> None:
    """The laws hold at every step, and afterwards nothing is missing and nothing is left over."""
    for seed in range(first, min(first + CHUNK, SEEDS)):
        chaos_trial(seed)


@pytest.mark.parametrize("first", range(0, max(1, SEEDS // 10), CHUNK))
def test_no_packet_is_lost_without_faults(first: int) -> None:
    """A rollover every second, a slow and repetitive directory that goes away for half a minute,
    a daemon killed and started again: not one packet is lost."""
    for seed in range(first, first + CHUNK):
        restless_trial(seed)
