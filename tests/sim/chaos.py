"""Random trouble for a world: everything that may go wrong, chosen by the seed."""

import functools
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from tests.sim.cast import without_flows
from tests.sim.host import SimHost
from tests.sim.laws import opened_by_others
from tests.sim.script import Script
from tests.sim.strangers import move_in
from tests.sim.world import Probe, World
from tunsec.model.ownership import is_our_sa, is_our_sp
from tunsec.model.sa import SaId
from tunsec.model.step import RemoveSa, RemoveSp
from tunsec.policy.intent import Intent


@dataclass(slots=True)
class Chaos:
    """Strikes a world again and again, then lets it heal."""

    world: World
    script: Script
    dice: random.Random = field(default_factory=random.Random)
    """Of the strike that falls: what it does follows from its number alone."""
    probes: Probe = field(default_factory=Probe)
    _dead_for_long: set[str] = field(default_factory=set)
    _busy: bool = True

    def begin(self) -> None:
        """From now on there is trouble, under packets."""
        world = self.world
        faults = world.directory.faults
        faults.longest_delay = world.dice.choice([0.01, 0.05, 0.3])
        faults.lose = world.dice.choice([0.0, 0.0, 0.2])
        faults.repeat = world.dice.choice([0.0, 0.2])
        faults.replay_old = world.dice.choice([0.0, 0.1])
        faults.fail = world.dice.choice([0.0, 0.1])
        world.lose_events = world.dice.choice([0.0, 0.1])
        world.wire.longest_trip = world.dice.choice([0.001, 0.02])
        world.wire.lose = world.dice.choice([0.0, 0.1])
        world.wire.repeat = world.dice.choice([0.0, 0.1])
        for number, at in self.script.struck.items():
            world.later(at, functools.partial(self._strike, number))
        self._send_now_and_then(world.dice.choice([0.05, 0.2]))

    def heal(self) -> None:
        """Everything works again; daemons that are dead start."""
        world = self.world
        self._busy = False
        faults = world.directory.faults
        faults.fail = faults.replay_old = faults.lose = 0.0
        faults.full = False
        world.lose_events = 0.0
        world.skew.clear()
        world.directory.cut_off.clear()
        world.directory_back()
        world.wire.mend()
        world.charons.heal()
        for host in world.hosts.values():
            host.crash_in = None
            host.dies_unanswered = False
            host.held_down = host.disk_full = False
            host.kernel.silent = False
            world.start(host)

    def _send_now_and_then(self, longest_pause: float) -> None:
        if not self._busy:
            return
        children = self.world.children()
        if children:
            host, child = self.world.dice.choice(children)
            self.world.probe(self.probes, host, child)
        pause = self.world.dice.uniform(0.0, longest_pause)
        self.world.later(pause, lambda: self._send_now_and_then(longest_pause))

    def _strike(self, number: int) -> None:
        if not self._busy:
            return
        self.dice = self.script.dice_of(number)
        host = self.dice.choice(list(self.world.hosts.values()))
        strikes = self.strikes()
        [(_, strike)] = self.dice.choices(strikes, [weight for weight, _ in strikes])
        strike(host)

    def strikes(self) -> list[tuple[int, Callable[[SimHost], None]]]:
        """What may go wrong, and how often beside the rest."""
        return [
            (4, self._crash),
            (4, self._crash_in_the_middle),
            (2, self._crash_unanswered),
            (1, self._die_for_long),
            (2, self._reboot),
            (2, self._directory_away),
            (1, self._cut_off),
            (2, self._partition),
            (1, self._directory_full),
            (2, self._disk_full),
            (2, self._remove_an_sa),
            (2, self._remove_an_sp),
            (1, self._flush_sas),
            (1, self._flush_sps),
            (1, self._guard_gone),
            (1, self._kernel_silent),
            (2, self._clock_jumps),
            (2, self._policy_changes),
            (1, self._release),
            (1, self._stranger),
        ]

    # Daemons and hosts

    def _again(self, host: SimHost) -> None:
        self.world.start_later(host, self.dice.uniform(0.0, 3.0))

    def _crash(self, host: SimHost) -> None:
        self.world.crash(host)
        self._again(host)

    def _crash_in_the_middle(self, host: SimHost) -> None:
        host.crash_in = self.dice.randint(0, 12)
        for attempt in range(8):
            self.world.start_later(host, 0.5 + attempt)

    def _crash_unanswered(self, host: SimHost) -> None:
        host.dies_unanswered = True
        for attempt in range(8):
            self.world.start_later(host, 0.5 + attempt)

    def _die_for_long(self, host: SimHost) -> None:
        self.world.crash(host)
        host.held_down = True

    def _reboot(self, host: SimHost) -> None:
        self.world.reboot(host)
        self._again(host)

    def _kernel_silent(self, host: SimHost) -> None:
        """The command lane hangs for a moment: what should have gone stays till the next look."""
        kernel = host.kernel
        kernel.silent = True
        self.world.tell(f"the kernel of {host.name} does not answer")

        def answers() -> None:
            kernel.silent = False
            self.world.laws.excuse(sa_id for sa_id, _ in kernel.all_sas())

        self.world.laws.excuse(sa_id for sa_id, _ in kernel.all_sas())

        self.world.later(self.dice.uniform(0.0, 0.5), answers)

    def _clock_jumps(self, host: SimHost) -> None:
        span = self.dice.choice([-86_400.0, -3.0, 0.0, 3.0, 30.0, 86_400.0])
        self.world.skew[host.name] = span
        self.world.tell(f"{host.name}: the clock is set {span:+.0f} s off")

    # The directory

    def _directory_away(self, _: SimHost) -> None:
        if not self.world.directory.away:
            self.world.directory_away(self.dice.choice([0.5, 2.0, 5.0, 20.0]))

    def _cut_off(self, host: SimHost) -> None:
        world = self.world
        world.directory.cut_off.add(host.name)
        world.tell(f"{host.name} does not reach the directory")

        def joins() -> None:
            world.directory.cut_off.discard(host.name)
            world.tell(f"{host.name} reaches the directory")

        world.later(self.dice.uniform(0.5, 6.0), joins)

    def _directory_full(self, _: SimHost) -> None:
        world, faults = self.world, self.world.directory.faults
        world.tell("directory has no room")
        faults.full = True

        def has_room() -> None:
            faults.full = False
            world.tell("directory has room")

        world.later(self.dice.uniform(0.5, 6.0), has_room)

    # The wire and the disk

    def _partition(self, _: SimHost) -> None:
        """The cluster is cut in two, and one side from the directory."""
        world = self.world
        names = list(world.hosts)
        side = frozenset(self.dice.sample(names, self.dice.randint(1, len(names) - 1)))
        world.tell(f"{', '.join(sorted(side))} and the directory are parted from the others")
        away = world.hosts.keys() - side
        world.wire.side = side
        world.directory.cut_off |= away

        def joins() -> None:
            world.tell("the two sides join")
            world.wire.side = frozenset()
            world.directory.cut_off -= away

        world.later(self.dice.choice([0.3, 1.0, 3.0, 6.0]), joins)

    def _disk_full(self, host: SimHost) -> None:
        self.world.tell(f"the disk of {host.name} is full")
        host.disk_full = True

        def has_room() -> None:
            host.disk_full = False

        self.world.later(self.dice.choice([0.5, 3.0, 8.0]), has_room)

    # The admin's hand, and other programs

    def _by_hand(self, host: SimHost, what: str, gone: Iterable[SaId] = ()) -> None:
        self.world.tell(f"by hand on {host.name}: {what}")
        self.world.laws.excuse(gone)

    def _remove_an_sa(self, host: SimHost) -> None:
        ours = [sa_id for sa_id, sa in host.kernel.all_sas() if is_our_sa(sa)]
        if ours:
            victim = self.dice.choice(ours)
            self._by_hand(host, f"SA {victim} removed", [victim])
            host.kernel.by_hand(RemoveSa(victim))

    def _remove_an_sp(self, host: SimHost) -> None:
        ours = [sp for sp in host.kernel.spd() if is_our_sp(sp)]
        if ours and self._two_layers(host):
            victim = self.dice.choice(ours)
            self._by_hand(host, f"SP {victim} removed")
            host.tampered = True
            host.kernel.by_hand(RemoveSp(victim))

    def _flush_sas(self, host: SimHost) -> None:
        self._by_hand(host, "SAs flushed", [sa_id for sa_id, _ in host.kernel.all_sas()])
        host.kernel.flush_sas()
        self.world.laws.foreign_changed(host)

    def _flush_sps(self, host: SimHost) -> None:
        if self._two_layers(host):
            self._by_hand(host, "SPs flushed")
            host.tampered = True
            host.kernel.flush_sps()
            self.world.laws.foreign_changed(host)

    def _guard_gone(self, host: SimHost) -> None:
        engine = host.engine
        if engine is not None and self._two_layers(host):
            self._by_hand(host, "guard table removed")
            host.guard.guard = None
            engine.on_guard_changed()

    def _two_layers(self, host: SimHost) -> bool:
        """Whether both layers stand, and a daemon that would repair one. Who takes both away at
        once opens the host."""
        return (
            host.engine is not None
            and host.guard.guard is not None
            and not host.tampered
            and not opened_by_others(host)
        )

    def _policy_changes(self, _: SimHost) -> None:
        """A new policy for all, that each host gets at its own time."""
        world = self.world
        names = [flow.name for flow in world.intent.flows]
        gone = self.dice.sample(names, self.dice.randint(0, len(names)))
        intent = without_flows(world.intent, gone)
        for host in world.hosts.values():
            delay = self.dice.uniform(0.0, 1.5)
            world.later(delay, functools.partial(self._apply, host, intent))

    def _apply(self, host: SimHost, intent: Intent) -> None:
        if self._busy:
            self.world.apply(host, intent, keep_released=self.world.dice.random() < 0.5)

    def _release(self, host: SimHost) -> None:
        names = [flow.name for flow in self.world.intent.flows]
        self.world.release(host, self.dice.choice([None, *names]))

    def _stranger(self, host: SimHost) -> None:
        if not any(not is_our_sp(sp) for sp in host.kernel.spd()):
            move_in(self.world, host)
