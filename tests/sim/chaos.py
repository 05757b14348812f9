"""Random trouble for a world: everything that may go wrong, chosen by the seed."""

from collections.abc import Callable
from dataclasses import dataclass

from tests.sim.world import SimHost, World
from tunsec.model.ownership import is_our_sa, is_our_sp
from tunsec.model.sp import SpAction
from tunsec.model.step import RemoveSa, RemoveSp


@dataclass(slots=True)
class Chaos:
    """Strikes a world again and again, then lets it heal."""

    world: World

    def strike_for(self, span: float) -> None:
        """Faults at random instants for `span` seconds."""
        world = self.world
        world.directory.faults.longest_delay = world.dice.choice([0.01, 0.05, 0.3])
        world.directory.faults.repeat = world.dice.choice([0.0, 0.2])
        world.directory.faults.replay_old = world.dice.choice([0.0, 0.1])
        world.directory.faults.fail = world.dice.choice([0.0, 0.1])
        world.lose_events = world.dice.choice([0.0, 0.1])
        at = 0.0
        while at < span:
            at += world.dice.expovariate(1.0)
            world.later(at, self._strike)

    def heal(self) -> None:
        """Everything works again; daemons that are dead start."""
        world = self.world
        world.directory.away = False
        world.directory.faults.fail = 0.0
        world.directory.faults.replay_old = 0.0
        world.lose_events = 0.0
        for host in world.hosts.values():
            host.crash_in = None
            world.start(host)

    def _strike(self) -> None:
        host = self.world.dice.choice(list(self.world.hosts.values()))
        strikes: list[tuple[int, Callable[[SimHost], None]]] = [
            (4, self._crash),
            (4, self._crash_in_the_middle),
            (2, self._reboot),
            (2, self._directory_away),
            (2, self._remove_an_sa),
            (2, self._remove_sps),
            (1, self._flush_sas),
            (1, self._guard_gone),
        ]
        weights = [weight for weight, _ in strikes]
        [(_, strike)] = self.world.dice.choices(strikes, weights)
        strike(host)

    def _again(self, host: SimHost) -> None:
        self.world.later(self.world.dice.uniform(0.0, 3.0), lambda: self.world.start(host))

    def _crash(self, host: SimHost) -> None:
        self.world.crash(host)
        self._again(host)

    def _crash_in_the_middle(self, host: SimHost) -> None:
        host.crash_in = self.world.dice.randint(0, 12)
        for attempt in range(8):
            self.world.later(0.5 + attempt, lambda: self.world.start(host))

    def _reboot(self, host: SimHost) -> None:
        self.world.reboot(host)
        self._again(host)

    def _directory_away(self, _: SimHost) -> None:
        world = self.world
        world.directory.away = True
        world.tell("directory is away")

        def back() -> None:
            world.directory.away = False
            world.tell("directory is back")

        world.later(world.dice.uniform(0.1, 5.0), back)

    def _remove_an_sa(self, host: SimHost) -> None:
        ours = [sa_id for sa_id, sa in host.kernel.all_sas() if is_our_sa(sa)]
        if ours:
            victim = self.world.dice.choice(ours)
            self.world.tell(f"by hand on {host.name}: SA {victim} removed")
            self.world.laws.orphan_excuses.add(victim)
            host.kernel.by_hand(RemoveSa(victim))

    def _remove_sps(self, host: SimHost) -> None:
        if host.engine is None:
            return  # nobody would repair it, and nobody could
        ours = [sp for sp in host.kernel.sps().values() if is_our_sp(sp)]
        if ours:
            victim = self.world.dice.choice(ours)
            self.world.tell(f"by hand on {host.name}: SP {victim} removed")
            host.tampered = True
            host.kernel.by_hand(RemoveSp(victim))

    def _flush_sas(self, host: SimHost) -> None:
        self.world.tell(f"by hand on {host.name}: SAs flushed")
        self.world.laws.orphan_excuses |= {sa_id for sa_id, _ in host.kernel.all_sas()}
        host.kernel.flush_sas()
        self.world.laws.own_foreign(host)

    def _guard_gone(self, host: SimHost) -> None:
        if host.engine is None or host.tampered:
            return
        self.world.tell(f"by hand on {host.name}: guard table removed")
        host.guard.guard = None
        engine = host.engine
        engine.on_guard_changed()


def block_sps(host: SimHost) -> int:
    """How many block SPs of ours a host holds."""
    return sum(
        is_our_sp(sp) and sp.action is SpAction.BLOCK for sp in host.kernel.sps().values()
    )
