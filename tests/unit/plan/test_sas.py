"""Lifetimes: who asks first, who ends first."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.sim.cast import policy
from tunsec.model.aead import Aead
from tunsec.model.clock import Seconds
from tunsec.model.flow import Child, RekeyRule
from tunsec.model.names import Spi
from tunsec.model.sa import Lifetimes, Offload, OffloadKind
from tunsec.model.underlay import Nic
from tunsec.plan.sas import inbound_sa, lifetimes, outbound_sa
from tunsec.policy.desired import desired

COUNTS = st.one_of(st.none(), st.integers(1000, 1 << 50))
RULES = st.builds(
    lambda after, factor, soft_bytes, soft_packets: RekeyRule(
        after=Seconds(after),
        jitter=0.1,
        hard_after=Seconds(after * factor),
        soft_bytes=soft_bytes,
        soft_packets=soft_packets,
    ),
    st.floats(0.5, 86_400.0),
    st.floats(2.0, 10.0),
    COUNTS,
    COUNTS,
)

LIMITS: list[Callable[[Lifetimes], tuple[int | None, int | None]]] = [
    lambda life: (life.soft_bytes, life.hard_bytes),
    lambda life: (life.soft_packets, life.hard_packets),
    lambda life: (life.soft_seconds, life.hard_seconds),
]


def _child() -> Child:
    intent = policy(2)
    return desired(intent, "h0").children[0]


@given(RULES)
def test_there_is_room_between_soft_and_hard(rule: RekeyRule) -> None:
    for inbound in (True, False):
        for limit in LIMITS:
            soft, hard = limit(lifetimes(rule, inbound=inbound))
            assert (soft is None) is (hard is None)
            assert soft is None or hard is None or 1 <= soft <= hard


@given(RULES)
def test_the_receiver_asks_first_and_ends_last(rule: RekeyRule) -> None:
    """Nobody sends on an SA whose twin has ended, and both do not ask at once."""
    receives, sends = lifetimes(rule, inbound=True), lifetimes(rule, inbound=False)
    for limit in LIMITS[:2]:
        (soft_in, hard_in), (soft_out, hard_out) = limit(receives), limit(sends)
        if soft_in is None or soft_out is None or hard_in is None or hard_out is None:
            continue
        assert soft_in < soft_out
        assert hard_in > hard_out
    assert receives.hard_seconds is not None
    assert sends.hard_seconds is not None
    assert receives.hard_seconds >= sends.hard_seconds


@given(RULES)
def test_no_sa_outlives_what_the_policy_says(rule: RekeyRule) -> None:
    sends = lifetimes(rule, inbound=False)
    assert sends.hard_seconds is not None
    assert sends.hard_seconds - rule.hard_after < 1  # exact, where a sum would be rounded


@pytest.mark.parametrize("aead", Aead)
def test_both_ends_of_an_sa_agree(aead: Aead) -> None:
    child = _child()
    ours = inbound_sa(child, Spi(0x1000), aead=aead, key=None)
    theirs = outbound_sa(child, Spi(0x1000), aead=aead, key=None)
    assert (ours.id.dst, ours.src) == (child.id.local, child.id.remote)
    assert (theirs.id.dst, theirs.src) == (child.id.remote, child.id.local)
    for sa in (ours, theirs):
        assert sa.reqid == child.reqid
        assert sa.replay.esn
        assert sa.replay.window == child.replay_window


def test_a_nic_that_carries_whole_packets_has_a_narrow_window() -> None:
    child = _child()
    for kind, window in ((OffloadKind.CRYPTO, child.replay_window), (OffloadKind.PACKET, 256)):
        nic = Nic(kind, 7, "nic0")
        for make, inbound in ((inbound_sa, True), (outbound_sa, False)):
            sa = make(child, Spi(0x1000), aead=Aead.AES_128_GCM, key=None, nic=nic)
            assert sa.offload == Offload(kind, 7, inbound)
            assert sa.replay.window == window
            assert sa.replay.esn
    short = replace(child, esn=False)
    assert not inbound_sa(short, Spi(0x1000), aead=Aead.AES_128_GCM, key=None).replay.esn
