"""What carries packets between the hosts of a simulation: it delays, reorders, loses, repeats, and
may be cut in two."""

import random
from dataclasses import dataclass, field

from tunsec.model.names import HostName


@dataclass(slots=True)
class Wire:
    """Spans in seconds, chances in 0..1."""

    longest_trip: float = 0.001
    """Packets that are on their way for different times change places."""
    lose: float = 0.0
    repeat: float = 0.0
    cut_off: set[HostName] = field(default_factory=set)
    """To and from these nothing goes; the directory they may reach."""
    side: frozenset[HostName] = frozenset()
    """Hosts that reach each other, and no others, while the wire is cut in two."""

    def parted(self, one: HostName, other: HostName) -> bool:
        """Whether nothing goes between two hosts."""
        if one in self.cut_off or other in self.cut_off:
            return True
        return (one in self.side) is not (other in self.side)

    def trips(self, dice: random.Random) -> list[float]:
        """When a packet that is sent now arrives: mostly once."""
        times = 2 if self.repeat and dice.random() < self.repeat else 1
        return [
            dice.uniform(0.0, self.longest_trip)
            for _ in range(times)
            if not self.lose or dice.random() >= self.lose
        ]

    def mend(self) -> None:
        """It carries everything, once."""
        self.lose = self.repeat = 0.0
        self.cut_off.clear()
        self.side = frozenset()
