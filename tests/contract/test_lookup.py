"""The look-up of `tunsec explain` finds the SP that the simulation's kernel finds, and what is not
known of a packet leaves open what it must. Linux is asked in test_kernel_xfrm.py."""

import random

from hypothesis import given
from hypothesis import strategies as st

from tests.contract.overlapping import HERE, THERE, some
from tests.sim.kernel import FakeKernel
from tests.sim.kernel import Packet as SimPacket
from tunsec.model.clock import Instant
from tunsec.model.packet import Packet
from tunsec.model.selector import UDP
from tunsec.model.sp import SpDirection
from tunsec.model.step import AddSp
from tunsec.plan.lookup import Match, ruling, sp_match


@given(st.randoms(use_true_random=False))
def test_the_simulations_kernel_finds_the_same(rng: random.Random) -> None:
    kernel = FakeKernel(lambda: Instant(1000.0))
    sps = some(rng, 8, marks=False)
    kernel.apply([AddSp(sp) for sp in sps.values()])
    for sport in (4790, 50_000):
        for dport in (4789, 4790, 4791):
            packet = SimPacket(HERE, THERE, UDP, sport, dport)
            asked = Packet(HERE, THERE, UDP, sport, dport)
            found = ruling(kernel.sps().values(), SpDirection.OUT, asked)
            assert found.rules == kernel.lookup(SpDirection.OUT, packet)
            assert not found.may


@given(st.randoms(use_true_random=False))
def test_what_is_not_known_leaves_every_outcome_open_and_no_other(rng: random.Random) -> None:
    """An SP rules some packet of those that are asked about, or it is not named as one."""
    sps = list(some(rng, 8, marks=True).values())
    asked = Packet(HERE, THERE, UDP, None, None, mark=None)
    found = ruling(sps, SpDirection.OUT, asked)
    open_still = {*(sp.id for sp in found.may), *([found.rules.id] if found.rules else [])}
    for sport in (4790, 50_000):
        for dport in (4788, 4789, 4791, 0x1234):
            for mark in (0, 1, 0x10, 0x11):
                exact = Packet(HERE, THERE, UDP, sport, dport, mark)
                ruler = ruling(sps, SpDirection.OUT, exact).rules
                assert ruler is None or ruler.id in open_still
                if found.rules is not None:
                    assert ruler is not None
    for sp in found.may:
        assert sp_match(sp, SpDirection.OUT, asked) is Match.MAYBE
