"""Trials of clusters in which a service address moves, whoever keys. All of it from a seed."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.sim.aftermath import nothing_missing_nothing_left
from tests.sim.cast import QUIET, VIP, policy, with_service_address
from tests.sim.host import SimHost
from tests.sim.ike_chaos import IkeChaos
from tests.sim.laws import Broken
from tests.sim.script import Script
from tests.sim.stream import Stream
from tests.sim.trial import BACK_WITHIN, SETTLED_WITHIN, Stage
from tests.sim.world import World
from tunsec.daemon.engine import FAREWELL
from tunsec.machines.vip import VipPhase


@dataclass(slots=True)
class VipChaos(IkeChaos):
    """Trouble of every kind, and an address that comes and goes, to one host or to several."""

    owners: list[SimHost] = field(default_factory=list)

    def strikes(self) -> list[tuple[int, Callable[[SimHost], None]]]:
        """What may go wrong besides."""
        return [*IkeChaos.strikes(self), (6, self._moves), (3, self._comes), (3, self._goes)]

    def _moves(self, _: SimHost) -> None:
        for owner in self.owners:
            self._goes(owner)
        self._comes(self.dice.choice(self.owners))

    def _comes(self, host: SimHost) -> None:
        """Now and then to a host that is no owner."""
        if not self.world.service(VIP) <= host.links.held:
            self.world.move_in(host, VIP)

    def _goes(self, host: SimHost) -> None:
        if self.world.service(VIP) <= host.links.held:
            self.world.move_out(host, VIP)

    def heal(self) -> None:
        """One owner has the address."""
        IkeChaos.heal(self)
        keeper = self.dice.choice(self.owners)
        for host in self.world.hosts.values():
            if host is not keeper:
                self._goes(host)
        self._comes(keeper)


def vip_stage(script: Script) -> Stage:
    """Two to four hosts, two or all of them owners, one or two flows."""
    dice = random.Random(f"vip stage {script.seed}")
    hosts, flows = script.hosts_of(dice.choice([2, 3, 3, 4])), dice.choice([1, 2])
    by_ike = dice.choice([0, 0, flows])
    owners = [f"h{number}" for number in range(dice.choice([2, hosts]))]
    return Stage(
        with_service_address(
            policy(hosts, after=dice.choice(["2s", "4s"]), flows=flows, by_ike=by_ike), owners
        ),
        with_service_address(
            policy(hosts, after=QUIET, hard=None, flows=flows, by_ike=by_ike), owners
        ),
    )


def vip_trial(script: Script) -> World:
    """Raises with seed and story when something is wrong."""
    played = vip_stage(script)
    dice = random.Random(f"vip trial {script.seed}")
    world = World(script.seed, played.intent, start_within=dice.choice([0.5, 1.0, 6.0]))
    [service] = played.intent.service_addresses
    owners = [world.hosts[owner] for owner in service.owners]
    world.move_in(dice.choice(owners), VIP)
    chaos = VipChaos(world, script, owners=owners)
    chaos.begin()
    world.run(script.trouble + 1.0)
    chaos.heal()
    for host in world.hosts.values():
        world.apply(host, played.intent)
    world.run_until(world.protected, BACK_WITHIN)
    one_holds_it(world)
    stream = Stream(world, pause=1.0)  # that a peer has moved to IKE is heard by its packets
    stream.start()
    for host in world.hosts.values():
        world.apply(host, played.quiet)
    world.run_until(world.settled, SETTLED_WITHIN, look=1.0)
    world.run(FAREWELL)
    world.run_until(world.settled, SETTLED_WITHIN, look=1.0)
    stream.stop()
    nothing_missing_nothing_left(world)
    return world


def one_holds_it(world: World) -> None:
    """Whoever has the address is its holder, and everybody knows."""
    [holder] = [host for host in world.hosts.values() if world.service(VIP) <= host.links.held]
    world.run_until(lambda: _agreed(world) == {holder.name}, BACK_WITHIN)
    [standing] = holder.engine.vips.standings() if holder.engine else [None]
    if standing is None or standing.own is None or standing.own.phase is not VipPhase.OWNED:
        raise Broken(f"{holder.name} has the address and does not hold it\n{world.tale()}")


def _agreed(world: World) -> set[str | None]:
    """Holders, as all hosts have them."""
    return {
        host.engine.vips.holders().get(VIP) if host.engine else None
        for host in world.hosts.values()
    }
