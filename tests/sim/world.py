"""A cluster in one process: real engines and machines, fake kernels and directory, virtual time.

Everything that may vary comes from the seed; what must never vary (the laws) is checked after every
step. Private keys alone come from the operating system: no key ever comes from a seed.
"""

import heapq
import itertools
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tests.sim.cast import EPOCH, identity, trust
from tests.sim.directory import Directory
from tests.sim.kernel import EspPacket, FakeKernel, Packet
from tests.sim.laws import Laws
from tunsec.daemon.engine import Engine, Ports
from tunsec.daemon.post import PostRoom
from tunsec.daemon.scope import Scope
from tunsec.keying.newest import Newest
from tunsec.keying.ring import Keyring
from tunsec.machines.flow import Phase
from tunsec.model.aead import Aead, AeadSpeed
from tunsec.model.clock import Instant, WallTime
from tunsec.model.event import EventsLost, KernelEvent
from tunsec.model.flow import ChildId
from tunsec.model.guard import Guard, GuardDrops
from tunsec.model.names import MAX_SPI, MIN_SPI, Address, Boot, HostName
from tunsec.model.secret import Secret
from tunsec.model.step import Step
from tunsec.policy.intent import Intent
from tunsec.ports import OverlayDevice, Record

SPEEDS = (AeadSpeed(Aead.AES_128_GCM, 100_000_000), AeadSpeed(Aead.CHACHA20_POLY1305, 190_000_000))


class Crashed(Exception):
    """The daemon dies in the middle of what it does."""


class FakeGuard:
    """The nftables table: there or not, and with which content."""

    def __init__(self) -> None:
        self.guard: Guard | None = None

    def put(self, guard: Guard) -> None:
        self.guard = guard

    def intact(self, guard: Guard) -> bool:
        return self.guard == guard

    def drops(self) -> dict[str, GuardDrops]:
        return {}

    def remove(self) -> None:
        self.guard = None

    def drops_clear(self, packet: Packet) -> bool:
        """Whether the table holds back a packet that no SA covers, out or in."""
        if self.guard is None:
            return False
        return any(
            flow.proto == packet.proto
            and packet.dport in flow.ports
            and (packet.src in flow.peers or packet.dst in flow.peers)
            for flow in self.guard.flows
        )


class NoLinks:
    """No devices: the simulation's packets need none."""

    def addresses(self) -> frozenset[Address]:
        return frozenset()

    def overlay_devices(self) -> tuple[OverlayDevice, ...]:
        return ()


@dataclass(slots=True)
class SimHost:
    """One host: what a crash leaves, and what it does not."""

    name: HostName
    kernel: FakeKernel
    guard: FakeGuard
    newest: Newest = field(default_factory=Newest)
    engine: Engine | None = None
    ring: Keyring | None = None
    life: int = 0
    closed: bool = False
    """No clear packet could leave or enter at some check since the last reboot."""
    tampered: bool = False
    """Somebody changed SPs by hand and the daemon has not seen it yet."""
    rebooted_at: float = -1.0
    crash_in: int | None = None
    """Kernel steps until the daemon dies."""


@dataclass(slots=True)
class Probe:
    """Counts of packets sent between two hosts."""

    sent: int = 0
    delivered: int = 0


class World:
    """Everything there is. `run` pops the earliest event until a given time."""

    def __init__(self, seed: int, intent: Intent, *, start: bool = True) -> None:
        self.seed = seed
        self.dice = random.Random(seed)
        self.now = 1000.0
        self.intent = intent
        self.skew: dict[HostName, float] = {}
        self.directory = Directory(self.dice, self.later, lambda: Instant(self.now))
        self.hosts = {host.name: self._host(host.name) for host in intent.hosts}
        self.story: list[str] = []
        self.laws = Laws(self)
        self.clear_delivered = 0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        if start:
            for host in self.hosts.values():
                self.later(self.dice.uniform(0.0, 1.0), lambda host=host: self.start(host))

    def _host(self, name: HostName) -> SimHost:
        host = SimHost(name, FakeKernel(lambda: Instant(self.now)), FakeGuard())
        host.kernel.before_step = lambda step: self._maybe_crash(host, step)
        host.kernel.listeners.append(lambda event, ours: self._kernel_event(host, event, ours))
        return host

    # Time

    def later(self, delay: float, act: Callable[[], None]) -> None:
        """Have something happen `delay` seconds from now."""
        heapq.heappush(self._heap, (self.now + delay, next(self._order), act))

    def run(self, span: float) -> None:
        """Let `span` seconds pass, checking the laws after every event."""
        end = self.now + span
        while True:
            at = self._next()
            if at is None or at > end:
                break
            self.now = max(self.now, at)
            self._one_event()
            self.laws.check()
        self.now = end

    def _next(self) -> float | None:
        times = [self._heap[0][0]] if self._heap else []
        for host in self.hosts.values():
            expiry = host.kernel.next_expiry()
            if expiry is not None:
                times.append(expiry)
            deadline = host.engine.deadline() if host.engine else None
            if deadline is not None:
                times.append(deadline.at)
        return min(times, default=None)

    def _one_event(self) -> None:
        for host in self.hosts.values():
            expiry = host.kernel.next_expiry()
            if expiry is not None and expiry <= self.now:
                host.kernel.expire()
                return
            deadline = host.engine.deadline() if host.engine else None
            if deadline is not None and deadline.at <= self.now:
                self._with_engine(host, lambda engine: engine.tick())
                return
        if self._heap and self._heap[0][0] <= self.now:
            _, _, act = heapq.heappop(self._heap)
            act()

    # Daemons

    def start(self, host: SimHost, intent: Intent | None = None) -> None:
        """Start the daemon of a host, or start it again."""
        if host.engine is not None:
            return
        host.life += 1
        self.tell(f"{host.name} starts, life {host.life}")
        scope = Scope(host.name, intent or self.intent, "sim")
        clock = _SimClock(self, host.name)
        entropy = _SimEntropy(random.Random(self.dice.getrandbits(64)))
        host.ring = Keyring(
            identity(host.name), trust(), grants=scope.grants, newest=host.newest
        )
        post = PostRoom(
            host=host.name,
            boot=Boot(f"{self.dice.getrandbits(128):032x}"),
            keyring=host.ring,
            clock=clock,
            entropy=entropy,
            aeads=SPEEDS,
        )
        host.engine = Engine(
            host=host.name,
            ports=Ports(
                kernel=host.kernel,
                guard=host.guard,
                links=NoLinks(),
                directory=_SimDirectory(self, host),
                clock=clock,
                entropy=entropy,
            ),
            post=post,
        )
        self._with_engine(host, lambda engine: engine.start(scope))
        self.directory.watch(host.name, lambda records: self._records(host, records))

    def _records(self, host: SimHost, records: Sequence[Record]) -> None:
        self._with_engine(host, lambda engine: engine.on_records(records))

    def _with_engine(self, host: SimHost, act: Callable[[Engine], object]) -> None:
        if host.engine is None:
            return
        try:
            act(host.engine)
            if host.ring is not None:
                host.newest = host.ring.newest()
        except Crashed:
            self.crash(host)

    def _maybe_crash(self, host: SimHost, step: Step) -> None:
        if host.crash_in is None:
            return
        host.crash_in -= 1
        if host.crash_in < 0:
            host.crash_in = None
            self.tell(f"{host.name} dies before: {step}")
            raise Crashed

    def crash(self, host: SimHost) -> None:
        """kill -9: the kernel keeps what it has."""
        if host.engine is not None:
            host.engine.close()
        host.engine = None
        host.ring = None
        self.directory.unwatch(host.name)
        self.tell(f"{host.name} is dead")

    def reboot(self, host: SimHost) -> None:
        """The kernel forgets everything; the host says nothing until its daemon starts."""
        self.crash(host)
        host.crash_in = None
        fresh = FakeKernel(lambda: Instant(self.now))
        fresh.before_step = lambda step: self._maybe_crash(host, step)
        fresh.listeners.append(lambda event, ours: self._kernel_event(host, event, ours))
        self.laws.kernel_replaced(host)
        host.kernel = fresh
        host.guard.guard = None
        host.closed = False
        host.rebooted_at = self.now
        self.tell(f"{host.name} rebooted")

    # Events of kernels

    lose_events = 0.0
    """Chance that an event is lost to an overrun."""

    def _kernel_event(self, host: SimHost, event: KernelEvent, ours: bool) -> None:
        lost = self.dice.random() < self.lose_events
        fact: KernelEvent = EventsLost() if lost else event

        def arrive() -> None:
            self._with_engine(host, lambda engine: engine.on_kernel_events([(fact, ours)]))

        self.later(self.dice.uniform(0.0, 0.02), arrive)

    # Packets

    def packet(self, child: ChildId, *, outbound: bool, owner: HostName) -> Packet:
        """A packet of a child, as its own host sends or receives it."""
        flow = next(flow for flow in self.intent.flows if flow.name == child.flow)
        src, dst = (child.local, child.remote) if outbound else (child.remote, child.local)
        return Packet(src, dst, 17, 40_000, flow.port)

    def probe(self, probe: Probe, owner: SimHost, child: ChildId, delay: float = 0.001) -> None:
        """Send one packet of a child to its peer."""
        packet = self.packet(child, outbound=True, owner=owner.name)
        sent = owner.kernel.send(packet)
        probe.sent += 1
        if sent is None:
            return
        peer = self.hosts[child.peer]

        def arrive() -> None:
            if isinstance(sent, EspPacket) and peer.kernel.receive(sent):
                probe.delivered += 1

        self.later(delay, arrive)

    # Looking

    def protected(self) -> bool:
        """Whether every child of every host is INSTALLED or REKEYING."""
        return all(
            host.engine is not None
            and all(
                flow.phase in (Phase.INSTALLED, Phase.REKEYING)
                for _, flow in host.engine.flows()
            )
            for host in self.hosts.values()
        )

    def settled(self) -> bool:
        """Whether every child has one SA each way and nothing in progress."""
        return all(
            host.engine is not None
            and all(flow.phase is Phase.INSTALLED for _, flow in host.engine.flows())
            for host in self.hosts.values()
        )

    def run_until(self, done: Callable[[], bool], limit: float) -> float:
        """Run until something holds; returns the seconds it took, raises after `limit`."""
        began = self.now
        while not done():
            if self.now - began >= limit:
                raise AssertionError(f"not within {limit} s\n{self.tale()}")
            self.run(0.05)
        return self.now - began

    def tell(self, line: str) -> None:
        """Add a line to the story."""
        self.story.append(f"{self.now:10.3f} {line}")

    def tale(self) -> str:
        """Seed and story, and where every flow stands: enough to replay a failure."""
        lines = [f"seed {self.seed}", *self.story[-80:]]
        for host in self.hosts.values():
            if host.engine is None:
                lines.append(f"{host.name}: no daemon")
                continue
            for state, flow in host.engine.flows():
                inbound = ", ".join(f"{sa.spi:08x} {sa.state}" for sa in flow.inbound)
                outbound = ", ".join(f"{sa.spi:08x} {sa.state}" for sa in flow.outbound)
                lines.append(
                    f"{host.name}: {flow.child.id}: {flow.phase} {flow.reason} in [{inbound}] "
                    f"out [{outbound}] own {state.own_offer} peer {state.peer_offer}"
                )
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class _SimClock:
    world: World
    name: HostName

    def now(self) -> Instant:
        return Instant(self.world.now)

    def wall(self) -> WallTime:
        return WallTime(EPOCH + self.world.now + self.world.skew.get(self.name, 0.0))


@dataclass(frozen=True, slots=True)
class _SimEntropy:
    dice: random.Random

    def spi(self) -> int:
        return self.dice.randint(MIN_SPI, MAX_SPI)

    def private_value(self) -> Secret:
        return Secret(os.urandom(32))

    def token(self, count: int) -> bytes:
        return self.dice.randbytes(count)

    def fraction(self) -> float:
        return self.dice.random()


@dataclass(frozen=True, slots=True)
class _SimDirectory:
    """A host's own view; what comes back to a dead daemon is dropped."""

    world: World
    host: SimHost

    def publish(
        self, records: Sequence[Record], *, done: Callable[[Exception | None], None]
    ) -> None:
        life = self.host.life

        def ended(error: Exception | None) -> None:
            if self.host.engine is not None and self.host.life == life:
                self.world._with_engine(self.host, lambda engine: done(error))

        self.world.directory.write(records, ended)

    def withdraw(self, paths: Sequence[str], *, done: Callable[[Exception | None], None]) -> None:
        raise NotImplementedError
