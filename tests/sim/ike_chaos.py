"""Trouble for clusters in which charon keys: what it may suffer, beside everything else."""

import functools
from collections.abc import Callable

from tests.sim.cast import keyed_by_ike
from tests.sim.chaos import Chaos
from tests.sim.host import SimHost


class IkeChaos(Chaos):
    """Strikes charons, the wire between them, and flows on their way between keyings."""

    def strikes(self) -> list[tuple[int, Callable[[SimHost], None]]]:
        """What may go wrong, and how often beside the rest."""
        return [
            *super().strikes(),
            (5, self._kill_charon),
            (2, self._kill_all_charons),
            (3, self._stop_charon),
            (4, self._freeze_charon),
            (3, self._cut_off_all),
            (3, self._bad_wire),
            (2, self._nobody_believes),
            (4, self._careless_charon),
            (5, self._keyings_change),
        ]

    def _kill_charon(self, host: SimHost) -> None:
        world = self.world
        world.charons.crash(host)
        world.later(self.dice.uniform(0.0, 3.0), lambda: world.charons.start(host))

    def _kill_all_charons(self, _: SimHost) -> None:
        for host in self.world.hosts.values():
            self._kill_charon(host)

    def _stop_charon(self, host: SimHost) -> None:
        world = self.world
        world.charons.stop(host)
        world.later(self.dice.uniform(0.0, 2.0), lambda: world.charons.start(host))

    def _freeze_charon(self, host: SimHost) -> None:
        self.world.charons.freeze(host, self.dice.choice([0.3, 2.0, 5.0, 9.0, 14.0]))

    def _cut_off_all(self, host: SimHost) -> None:
        """No packet reaches a host or leaves it, ESP or IKE."""
        world = self.world
        span = self.dice.choice([0.2, 1.0, 3.0, 6.0])
        world.tell(f"{host.name} is cut off for {span} s")
        world.wire.cut_off.add(host.name)
        world.later(span, lambda: world.wire.cut_off.discard(host.name))

    def _bad_wire(self, _: SimHost) -> None:
        net = self.world.charons.net
        net.lose = self.dice.choice([0.1, 0.4])
        net.repeat = self.dice.choice([0.0, 0.3])
        net.longest_delay = self.dice.choice([0.005, 0.1, 0.6])
        self.world.tell(f"the wire loses {net.lose}, repeats {net.repeat}")

        def mends() -> None:
            net.lose = net.repeat = 0.0

        self.world.later(self.dice.uniform(0.5, 5.0), mends)

    def _nobody_believes(self, host: SimHost) -> None:
        disbelieved = self.world.charons.net.disbelieved
        self.world.tell(f"nobody believes {host.name}")
        disbelieved.add(host.name)
        span = self.dice.uniform(0.5, 6.0)
        self.world.later(span, lambda: disbelieved.discard(host.name))

    def _careless_charon(self, host: SimHost) -> None:
        around = host.charon.around
        self.world.tell(f"charon of {host.name} gets careless")
        around.careless = True

        def minds() -> None:
            around.careless = False

        self.world.later(self.dice.uniform(0.5, 3.0), minds)

    def _keyings_change(self, _: SimHost) -> None:
        """Flows move between keyings; each host hears of it at its own time."""
        world = self.world
        names = [flow.name for flow in world.intent.flows]
        chosen = self.dice.sample(names, self.dice.randint(0, len(names)))
        intent = keyed_by_ike(world.intent, chosen)
        world.tell(f"IKE is to key {', '.join(chosen) or 'nothing'}")
        for host in world.hosts.values():
            delay = self.dice.uniform(0.0, 1.5)
            world.later(delay, functools.partial(self._apply, host, intent))
