"""Waiting longer after each failure, with jitter so that peers do not act in step."""

from typing import Final

from tunsec.model.clock import Seconds

FIRST: Final = Seconds(0.1)
LONGEST: Final = Seconds(30.0)


def backoff(failures: int, fraction: float) -> Seconds:
    """Span before the next try after `failures` (1 or more) in a row.

    Doubles from FIRST to LONGEST; `fraction` in [0, 1) takes away up to half (equal jitter).
    """
    span = min(LONGEST, FIRST * 2.0 ** min(failures - 1, 16))
    return Seconds(span * (1.0 - fraction / 2))
