"""Waiting longer after each failure, within bounds."""

from hypothesis import given
from hypothesis import strategies as st

from tunsec.machines.backoff import FIRST, LONGEST, backoff

FRACTIONS = st.floats(0.0, 1.0, exclude_max=True)


@given(st.integers(1, 1_000_000), FRACTIONS)
def test_never_too_soon_and_never_too_late(failures: int, fraction: float) -> None:
    assert FIRST / 2 < backoff(failures, fraction) <= LONGEST


@given(st.integers(1, 1_000), FRACTIONS)
def test_the_next_span_is_no_shorter(failures: int, fraction: float) -> None:
    assert backoff(failures + 1, fraction) >= backoff(failures, fraction)


@given(st.integers(1, 1_000))
def test_dice_take_away_half_at_most(failures: int) -> None:
    assert backoff(failures, 0.999999) >= backoff(failures, 0.0) / 2
