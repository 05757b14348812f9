"""All charons of a world, and what happens to them."""

from typing import TYPE_CHECKING

from tests.sim.charon import FakeCharon
from tests.sim.charon_net import IkeNetwork
from tunsec.model.clock import Instant
from tunsec.model.names import Address, HostName

if TYPE_CHECKING:
    from tests.sim.host import SimHost
    from tests.sim.world import World

SILENT_SECONDS = 7.0
"""adapters/charon.py: 2 s without a word, then 5 s without an answer."""


class Charons:
    """Breaks and mends them, and the wire between them."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self.net = IkeNetwork(world.dice, world.later, cut_off=self._cut_off)
        self._owners: dict[Address, HostName] = {}

    def give(self, host: "SimHost", addresses: tuple[Address, ...]) -> None:
        """A host gets its charon, which starts at once and stands idle until it is asked."""
        world = self._world
        host.charon = FakeCharon(
            net=self.net,
            addresses=addresses,
            kernel=lambda: host.kernel,
            dice=world.dice,
            now=lambda: Instant(world.now),
            later=world.later,
        )
        host.charon.around.lets_go = world.excuse
        host.charon.around.tell = lambda event: None if host.link is None else host.link.hear(event)
        host.charon.start()
        self._owners |= dict.fromkeys(addresses, host.name)

    def address_comes(self, host: "SimHost", addresses: frozenset[Address]) -> None:
        """The wire takes what is sent to a service address to the host that had it last."""
        self.net.charons |= dict.fromkeys(addresses, host.charon)
        self._owners |= dict.fromkeys(addresses, host.name)

    def _cut_off(self, src: Address, dst: Address) -> bool:
        return self._world.wire.parted(self._owners[src], self._owners[dst])

    def crash(self, host: "SimHost") -> None:
        """kill -9."""
        self._world.tell(f"charon of {host.name} is killed")
        host.charon.crash()
        self._lost(host, "charon is gone")

    def stop(self, host: "SimHost") -> None:
        """A clean stop."""
        self._world.tell(f"charon of {host.name} stops")
        host.charon.stop()
        self._lost(host, "charon is gone")

    def start(self, host: "SimHost") -> None:
        """It starts, if it does not run."""
        if not host.charon.running:
            self._world.tell(f"charon of {host.name} starts")
            host.charon.start()

    def freeze(self, host: "SimHost", span: float) -> None:
        """It is held for a while, and found silent if that is long."""
        self._world.tell(f"charon of {host.name} is held for {span:.1f} s")
        host.charon.freeze()
        if span > SILENT_SECONDS:
            self._world.later(SILENT_SECONDS, lambda: self._found_silent(host))
        self._world.later(span, host.charon.thaw)

    def _found_silent(self, host: "SimHost") -> None:
        if host.charon.frozen:
            self._lost(host, "charon is silent")

    def _lost(self, host: "SimHost", reason: str) -> None:
        link = host.link
        if link is not None:
            link.answer(lambda: link.lose(reason))

    def heal(self) -> None:
        """All run, none is held, the wire is whole."""
        self.net.lose = self.net.repeat = 0.0
        self.net.disbelieved.clear()
        for host in self._world.hosts.values():
            host.charon.around.careless = False
            host.charon.thaw()
            self.start(host)
