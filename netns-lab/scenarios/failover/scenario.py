"""What a scenario is: a trouble, what it may cost, and who must prove anew who he is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from scenarios.failover.stage import Stage
from scenarios.failover.traffic import KINDS, Traffic
from tunsec.model.flow import Keying

BOTH: Final = frozenset(Keying)
NONE: Final[frozenset[Keying]] = frozenset()
BY_IKE: Final = frozenset({Keying.IKE})
BY_DIRECTORY: Final = frozenset({Keying.DIRECTORY})
BACK_WITHIN: Final = 1.0
"""Seconds after a trouble has ended."""
STUCK: Final = 3.0
"""Seconds in which nothing comes where nothing may be lost: less is what TCP makes of a machine
that has other work."""


class Cost(StrEnum):
    """What a trouble may cost."""

    NOTHING = "0 lost"
    """Beyond what the wire itself loses, where the scenario makes it lose."""
    GAP = "back within 1 s"
    """After the trouble has ended."""


def nothing_to_prepare(stage: Stage) -> None:
    """Most scenarios need a cluster and no more."""


@dataclass(frozen=True)
class Scenario:
    """`trouble` begins a trouble and returns when it has ended: the daemon or the link is back, the
    clock is right again."""

    name: str
    story: str
    """What it does, for docs/failover.md."""
    trouble: Callable[[Stage], None]
    gap: frozenset[Keying] = NONE
    """By which keying it may cost a gap; by the others it may cost nothing."""
    reauth: frozenset[Keying] = NONE
    """By which keying both ends must prove anew who they are."""
    reconnects: bool = False
    """Connections break: then flows that say so in `on_reconnect` prove anew by either keying."""
    keyings: frozenset[Keying] = BOTH
    """Where it applies."""
    kinds: Mapping[str, Traffic] = field(default_factory=lambda: KINDS)
    """What runs meanwhile, by its kind of flow: on these it applies."""
    defaults: str = ""
    """In `defaults:` of the policy while the trouble lasts, and not before and after: a cluster
    that rekeys every second is never at rest."""
    prepare: Callable[[Stage], None] = field(default=nothing_to_prepare)
    """What must be so before the first daemon starts."""

    def cost(self, keying: Keying) -> Cost:
        """What it may cost by a keying."""
        return Cost.GAP if keying in self.gap else Cost.NOTHING
