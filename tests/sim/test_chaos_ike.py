"""Whole clusters with charons under every trouble at once, from seeds: a fifth of TUNSEC_SIM_SEEDS.

A failure names its seed; `python -m tests.sim.soak --trial ike-chaos --seed N` plays it again.
"""

import pytest

from tests.sim.ike_trial import ike_chaos_trial, ike_restless_trial
from tests.sim.test_chaos import CHUNK
from tests.sim.test_chaos import SEEDS as ALL_SEEDS

SEEDS = max(1, ALL_SEEDS // 5)


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_trouble_of_every_kind(first: int) -> None:
    """The laws hold at every step, and afterwards nothing is missing and nothing is left over, in
    the kernels, in the daemons and in the charons."""
    for seed in range(first, min(first + CHUNK, SEEDS)):
        ike_chaos_trial(seed)


@pytest.mark.parametrize("first", range(0, max(1, SEEDS // 4), CHUNK))
def test_no_packet_is_lost_without_faults(first: int) -> None:
    """Rekeys all the time, daemons that die, charons that are killed or held for a moment, flows
    that move between keyings: not one packet is lost."""
    for seed in range(first, first + CHUNK):
        ike_restless_trial(seed)
