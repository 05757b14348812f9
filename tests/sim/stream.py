"""Packets of every child, again and again."""

from dataclasses import dataclass, field

from tests.sim.world import Probe, World
from tunsec.model.flow import ChildId


@dataclass(slots=True)
class Stream:
    """Sends one packet on every child that the world had at the start, every `pause` seconds,
    whether daemons run or not."""

    world: World
    pause: float
    probes: dict[ChildId, Probe] = field(default_factory=dict)
    _on: bool = False

    def start(self) -> None:
        """From now on."""
        self._on = True
        owners = self.world.children()

        def send() -> None:
            if not self._on:
                return
            for host, child in owners:
                probe = self.probes.setdefault(child, Probe())
                self.world.probe(probe, host, child)
            self.world.later(self.pause, send)

        send()

    def stop(self) -> None:
        """No more."""
        self._on = False

    @property
    def lost(self) -> int:
        """Packets that did not arrive, of all children."""
        return sum(probe.lost for probe in self.probes.values())
