"""What happens to the hosts on which day: drawn from a seed, so that it can happen again.

Each day is drawn by itself: a day of a long diary can be lived alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from scenarios.failover.scenario import Scenario
from tunsec.model.flow import Keying

DAY: Final = 86_400.0
WEEK: Final = 7
RENEWAL_AT: Final = 600.0
"""Before all troubles: a clock that goes back an hour must not find a certificate of the future."""
CHANGE_AT: Final = 3600.0
TROUBLES_FROM: Final = 2.5 * 3600.0
TROUBLES_UNTIL: Final = DAY - 1800.0
APART: Final = 1200.0
"""Least span between two troubles: each is over before the next begins."""
REBOOT: Final = "host-rebooted"
"""Of the catalogue: each host once a week, on a day of its own, and by chance."""
POLICIES: Final = (
    "",
    "rekey: {after: 45m}",
    "rekey: {after: 1h, jitter: 50%}",
    "aead: aes-256-gcm",
    "aead: chacha20-poly1305",
    "sequence_numbers: 32-bit",
)
"""What a day's policy may have in `defaults:`, beside its keying."""


@dataclass(frozen=True)
class Entry:
    """`turn` is the host that it happens to."""

    at: float
    """Seconds of the day."""
    trouble: str
    """As in the catalogue."""
    turn: int

    def __str__(self) -> str:
        return f"{clock(self.at)} {self.trouble}"


@dataclass(frozen=True)
class Day:
    """One day of the hosts."""

    number: int
    keying: Keying
    policy: str
    renewal: int | None
    """Whose certificate is renewed."""
    troubles: tuple[Entry, ...]


def clock(seconds: float) -> str:
    """Seconds of a day as people say it."""
    minutes, left = divmod(int(seconds), 60)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{left:02d}"


def day(number: int, *, seed: int, hosts: int, known: Sequence[Scenario], troubles: int) -> Day:
    """A day of the diary of that seed, with so many troubles of those that are `known`, and the
    week's reboots and renewals."""
    dice = Random(f"{seed} {number}")
    keying = dice.choice(list(Keying))
    policy = dice.choice(POLICIES)
    names = [each.name for each in known if keying in each.keyings]
    chosen = [(dice.choice(names), dice.randrange(hosts)) for _ in range(troubles)]
    today = number % WEEK
    reboots, renewals = range(1, 2 * hosts, 2), range(0, 2 * hosts, 2)
    if today in reboots:
        chosen.append((REBOOT, reboots.index(today)))
        dice.shuffle(chosen)
    free = TROUBLES_UNTIL - TROUBLES_FROM - APART * len(chosen)
    offsets = sorted(dice.uniform(0.0, free) for _ in chosen)
    return Day(
        number,
        keying,
        policy,
        renewals.index(today) if today in renewals else None,
        tuple(
            Entry(TROUBLES_FROM + offset + APART * place, name, turn)
            for place, (offset, (name, turn)) in enumerate(zip(offsets, chosen, strict=True))
        ),
    )
