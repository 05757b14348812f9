"""What is played of a trial: all that its seed says, or less, so that a story gets short."""

import random
from dataclasses import dataclass

SPANS = (1.0, 2.0, 2.0, 3.0, 8.0)
"""Seconds of trouble: mostly few, as most faults need two or three strikes."""
STRIKES_PER_SECOND = 1.2


@dataclass(frozen=True, slots=True)
class Script:
    """A seed, and what is left out of what follows from it. None: nothing."""

    seed: int
    hosts: int | None = None
    """At most so many."""
    span: float | None = None
    """Seconds of trouble, at most."""
    strikes: frozenset[int] | None = None
    """These alone, by their numbers."""
    plain: bool = False
    """One flow, one IP version, no tenants, no other programs."""

    def hosts_of(self, drawn: int) -> int:
        """Hosts that there are."""
        return drawn if self.hosts is None else max(2, min(self.hosts, drawn))

    @property
    def trouble(self) -> float:
        """Seconds of trouble."""
        drawn = random.Random(f"trouble {self.seed}").choice(SPANS)
        return drawn if self.span is None else min(self.span, drawn)

    @property
    def struck(self) -> dict[int, float]:
        """Which strikes fall, and how many seconds from the beginning."""
        dice, at, instants = random.Random(f"strikes {self.seed}"), 0.0, []
        while at < self.trouble:
            at += dice.expovariate(STRIKES_PER_SECOND)
            instants.append(at)
        return {
            number: instant
            for number, instant in enumerate(instants)
            if self.strikes is None or number in self.strikes
        }

    def dice_of(self, strike: int) -> random.Random:
        """What a strike does follows from its number, whichever others there are."""
        return random.Random(f"strike {strike} of {self.seed}")

    @property
    def options(self) -> list[str]:
        """What to give to `python -m tests.sim.soak` to play it."""
        words = ["--seed", str(self.seed)]
        if self.hosts is not None:
            words += ["--hosts", str(self.hosts)]
        if self.span is not None:
            words += ["--span", f"{self.span:g}"]
        if self.strikes is not None:
            words += ["--strikes", ",".join(map(str, sorted(self.strikes))) or "none"]
        return [*words, "--plain"] if self.plain else words
