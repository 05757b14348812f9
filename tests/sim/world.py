"""A cluster in one process: real engines and machines, fake kernels and directory, virtual time.

Everything that may vary comes from the seed; what must never vary (the laws) is checked after every
step. Private keys alone come from the operating system: no key ever comes from a seed.
"""

import functools
import heapq
import itertools
import math
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.sim.cast import EPOCH, identity, trust
from tests.sim.charon_link import CharonLink
from tests.sim.charons import Charons
from tests.sim.directory import Directory
from tests.sim.host import FakeGuard, FakeLinks, NoMarks, SimHost
from tests.sim.kernel import EspPacket, FakeKernel, Packet
from tests.sim.laws import Laws
from tests.sim.standing import Standing, standings
from tests.sim.tcp import FakeSynGate, Tcp
from tests.sim.wire import Wire
from tunsec.daemon.engine import Engine, Ports
from tunsec.daemon.post import PostRoom
from tunsec.daemon.scope import Scope
from tunsec.keying.claims import ClaimBook
from tunsec.keying.ring import Keyring
from tunsec.machines.flow import PROTECTED, Phase
from tunsec.model.aead import Aead, AeadSpeed
from tunsec.model.clock import Instant, WallTime
from tunsec.model.errors import Unavailable
from tunsec.model.event import EventsLost, KernelEvent
from tunsec.model.flow import Child, ChildId
from tunsec.model.names import MAX_SPI, MIN_SPI, Address, Boot, FlowName, HostName, Spi
from tunsec.model.ownership import is_our_sp
from tunsec.model.sa import SaId
from tunsec.model.secret import Secret
from tunsec.model.step import Step
from tunsec.policy.desired import inbound_sps, outbound_sps
from tunsec.policy.intent import Intent
from tunsec.policy.kinds import ON_WIRE
from tunsec.ports import Directory as DirectoryPort
from tunsec.ports import Record

SPEEDS = (AeadSpeed(Aead.AES_128_GCM, 100_000_000), AeadSpeed(Aead.CHACHA20_POLY1305, 190_000_000))


class Crashed(Exception):
    """The daemon dies in the middle of what it does."""


@dataclass(slots=True)
class Probe:
    """Counts of packets sent between two hosts."""

    sent: int = 0
    delivered: int = 0
    held_back: int = 0
    """Not sent at all: blocked, or no SA."""

    @property
    def lost(self) -> int:
        """Sent or held back, and not delivered."""
        return self.sent - self.delivered


class World:
    """Everything there is. `run` pops the earliest event until a given time."""

    def __init__(self, seed: int, intent: Intent, *, start_within: float | None = 1.0) -> None:
        """Daemons start within some seconds, each at its own time; None: by hand."""
        self.seed = seed
        self.dice = random.Random(seed)
        self.now = 1000.0
        self.intent = intent
        self.skew: dict[HostName, float] = {}
        self.lose_events = 0.0
        """Chance that a kernel event is lost to an overrun."""
        self.crowded = False
        """Whether another program's SP was ever put in the way of a child."""
        self.wire = Wire()
        self.charons = Charons(self)
        self.directory = Directory(self.dice, self.later, lambda: Instant(self.now))
        self.tcp = Tcp(self)
        self.hosts = {host.name: self._host(host.name) for host in intent.hosts}
        self.story: list[str] = []
        self.laws = Laws(self)
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        if start_within is not None:
            for host in self.hosts.values():
                self.start_later(host, self.dice.uniform(0.0, start_within))

    def _host(self, name: HostName) -> SimHost:
        kernel = FakeKernel(lambda: Instant(self.now))
        host = SimHost(name, kernel, FakeGuard(), Scope(name, self.intent, "sim"))
        host.links = FakeLinks(self.intent.host(name).addresses, kernel)
        host.syns = FakeSynGate(self.tcp, host)
        self.charons.give(host, self.intent.host(name).addresses)
        self._wire(host, kernel)
        return host

    def _wire(self, host: SimHost, kernel: FakeKernel) -> None:
        kernel.before_step = lambda step: self._maybe_crash(host, step)
        kernel.somebody_listens = lambda: host.engine is not None
        kernel.listeners.append(lambda event, ours: self._kernel_event(host, event, ours))
        kernel.listeners.append(lambda event, ours: host.charon.on_kernel_event(event))

    # Time

    def later(self, delay: float, act: Callable[[], None]) -> None:
        """Have something happen `delay` seconds from now."""
        heapq.heappush(self._heap, (self.now + delay, next(self._order), act))

    def run(self, span: float) -> None:
        """Let `span` seconds pass, checking the laws after every event."""
        end = self.now + span
        while True:
            at, act = self._next()
            if at > end:
                break
            self.now = max(self.now, at)
            act()
            self.laws.check()
            self.tcp.note()
        self.now = end

    def _next(self) -> tuple[float, Callable[[], object]]:
        """What happens first, and when: an SA expires, a daemon's deadline comes, or what was put
        off is due."""
        at, due, expires = math.inf, None, False
        for host in self.hosts.values():
            expiry = host.kernel.next_expiry()
            if expiry is not None and expiry < at:
                at, due, expires = expiry, host, True
            deadline = host.engine.deadline() if host.engine else None
            if deadline is not None and deadline.at < at:
                at, due, expires = deadline.at, host, False
        if self._heap and self._heap[0][0] < at:
            return self._heap[0][0], lambda: heapq.heappop(self._heap)[2]()
        if due is None:
            return at, lambda: None
        return at, functools.partial(self._expire if expires else self._tick, due)

    def _expire(self, host: SimHost) -> None:
        self.laws.may_expire(host)
        host.kernel.expire()

    def _tick(self, host: SimHost) -> None:
        self.with_engine(host, lambda engine: engine.tick())

    def run_until(self, done: Callable[[], bool], limit: float, *, look: float = 0.05) -> float:
        """Run until something holds, looking every `look` seconds; returns the seconds it took,
        raises after `limit`."""
        began = self.now
        while not done():
            if self.now - began >= limit:
                raise AssertionError(f"not within {limit} s\n{self.tale()}")
            self.run(look)
        return self.now - began

    # Daemons

    def start_later(self, host: SimHost, delay: float) -> None:
        """Somebody starts a daemon in a while."""
        self.later(delay, lambda: self.start(host))

    def start(self, host: SimHost) -> None:
        """Start the daemon of a host, or start it again."""
        if host.engine is not None or host.held_down:
            return
        host.life += 1
        self.tell(f"{host.name} starts, life {host.life}")
        clock = _SimClock(self, host.name)
        entropy = _SimEntropy(random.Random(self.dice.getrandbits(64)))
        host.ring = Keyring(
            identity(host.name, host.certificate),
            trust(host.revoked),
            grants=host.scope.grants,
            newest=host.newest,
        )
        post = PostRoom(
            host=host.name,
            boot=Boot(f"{self.dice.getrandbits(128):032x}"),
            keyring=host.ring,
            clock=clock,
            entropy=entropy,
            aeads=SPEEDS,
        )
        directory = _SimDirectory(self, host.name, self._answering(host))
        host.link = CharonLink(self, host, self._in_this_life(host))
        host.links.kernel = host.kernel
        ports = Ports(
            host.kernel,
            host.guard,
            NoMarks(),
            host.links,
            host.rdma,
            directory,
            clock,
            entropy,
            host.link,
            host.sockets,
            host.syns,
        )
        book = ClaimBook(
            identity(host.name, host.certificate),
            trust(host.revoked),
            owners={},
            known=host.claims,
        )
        served = host.claims.served
        host.engine = Engine(host=host.name, ports=ports, post=post, claims=book, served=served)
        host.on_start(host)
        self.laws.drops_late(host)
        if not self.with_engine(host, lambda engine: engine.start(host.scope)):
            self.crash(host)  # a daemon that cannot close does not run on
        else:
            self.directory.watch(host.name, lambda records: self._records(host, records))
            host.link.answer(host.link.renew)

    def _in_this_life(self, host: SimHost) -> Callable[[Callable[[], None]], None]:
        """What comes back to a daemon that is dead, or to an earlier life of it, is dropped."""
        life = host.life

        def answer(act: Callable[[], None]) -> None:
            if host.engine is not None and host.life == life:
                self.with_engine(host, lambda _: act())

        return answer

    def _answering(self, host: SimHost) -> Callable[[Callable[[], None]], None]:
        """How the directory answers a daemon; it may die at that."""
        answer = self._in_this_life(host)

        def hear_or_die(act: Callable[[], None]) -> None:
            if host.dies_unanswered:
                self.tell(f"{host.name} dies, written and unanswered")
                self.crash(host)
            else:
                act()

        return lambda act: answer(lambda: hear_or_die(act))

    def _records(self, host: SimHost, records: Sequence[Record]) -> None:
        self.with_engine(host, lambda engine: engine.on_records(records))

    def with_engine(self, host: SimHost, act: Callable[[Engine], object]) -> bool:
        """Have a daemon do something. Whether the daemon was there and lived through it."""
        if host.engine is None:
            return False
        try:
            act(host.engine)
        except Crashed:
            self.crash(host)
            return False
        except Unavailable as error:
            self.tell(f"{host.name}: {error}")  # as daemon/service.py: not now
            return False
        if host.ring is not None and not host.disk_full:
            host.newest = host.ring.newest()
            host.claims = host.engine.vips.remember()
        if host.link is not None and host.link.up and not host.link.engine.uses_ike:
            host.link.renew()  # directory keying has taken the last flow over
        return True

    def _maybe_crash(self, host: SimHost, step: Step) -> None:
        if host.crash_in is None or host.engine is None:
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
        if host.disk_full:
            self.laws.forgets(host)
        host.engine = host.ring = host.link = None
        host.dies_unanswered = False
        host.syns.held.clear()
        self.directory.unwatch(host.name)
        self.tell(f"{host.name} is dead")

    def reboot(self, host: SimHost) -> None:
        """The kernel forgets everything; the host says nothing until its daemon starts. charon
        comes back on its own."""
        self.crash(host)
        host.charon.crash()
        self.later(self.dice.uniform(0.0, 2.0), lambda: self.charons.start(host))
        host.crash_in = None
        fresh = FakeKernel(lambda: Instant(self.now))
        self._wire(host, fresh)
        self.laws.kernel_replaced(host)
        host.kernel = fresh
        host.guard.guard = None
        host.sockets.there.clear()
        host.links.held = frozenset(self.intent.host(host.name).addresses)
        host.closed.clear()
        self.tell(f"{host.name} rebooted")

    # Service addresses

    def move_in(self, host: SimHost, service: str) -> None:
        """A service address comes to a host, whoever else has it."""
        self.tell(f"{service} comes to {host.name}")
        host.links.held |= self.service(service)
        self.charons.address_comes(host, self.service(service))
        self.with_engine(host, lambda engine: engine.on_links_changed())

    def move_out(self, host: SimHost, service: str) -> None:
        """A service address goes from a host."""
        self.tell(f"{service} goes from {host.name}")
        host.links.held -= self.service(service)
        for other in self.hosts.values():
            if self.service(service) <= other.links.held:
                self.charons.address_comes(other, self.service(service))
        self.with_engine(host, lambda engine: engine.on_links_changed())

    def service(self, name: str) -> frozenset[Address]:
        """Addresses of a service."""
        return next(
            frozenset(one.addresses) for one in self.intent.service_addresses if one.name == name
        )

    # Admins

    def apply(self, host: SimHost, intent: Intent, *, keep_released: bool = False) -> None:
        """`tunsec apply`, or a reload that leaves flows released; without a daemon, the policy
        file is changed."""
        scope = host.scope.with_policy(intent, "sim", keep_released=keep_released)
        names = ", ".join(flow.name for flow in intent.flows)
        self.tell(f"{host.name} gets a policy with {names or 'no flow'}")
        self.laws.may_drop(host, scope)
        if host.engine is None:
            host.scope = scope
            return
        lived = self.with_engine(host, lambda engine: engine.change_scope(scope))
        self._renew_link(host)
        if lived or self.dice.random() < 0.5:  # a policy file outlives the daemon that read it
            self._keep(host, scope)

    def release(self, host: SimHost, flow: FlowName | None) -> None:
        """`tunsec release`: from now on packets of a flow may go in clear here."""
        if host.engine is None:
            return
        self.tell(f"{host.name} releases {flow or 'everything'}")
        scope = host.scope.without(flow)
        self.laws.may_open(host, scope)
        self._keep(host, scope)
        self.with_engine(host, lambda engine: engine.release(engine.scope.without(flow)))
        self._renew_link(host)

    def _keep(self, host: SimHost, scope: Scope) -> None:
        if not host.disk_full:
            host.scope = scope

    def _renew_link(self, host: SimHost) -> None:
        if host.link is not None:
            host.link.answer(host.link.renew)

    def revoke(self, host: SimHost, peer: SimHost, *, number: int | None = None) -> None:
        """A host gets a list with a peer's certificate on it, the present one unless another is
        said, and reads it if a daemon runs."""
        number = number or peer.certificate
        self.tell(f"{host.name} hears that certificate {number} of {peer.name} is revoked")
        host.revoked |= {(peer.name, number)}
        self.laws.may_cut_off(host, peer)
        self._reload_identity(host)

    def reissue(self, host: SimHost) -> None:
        """A host gets another certificate, and reads it if a daemon runs."""
        host.certificate += 1
        self.tell(f"{host.name} has certificate {host.certificate}")
        self._reload_identity(host)

    def _reload_identity(self, host: SimHost) -> None:
        self.with_engine(
            host,
            lambda engine: engine.renew_identity(
                identity(host.name, host.certificate), trust(host.revoked)
            ),
        )

    # The directory as a whole

    def directory_away(self, span: float) -> None:
        """Nobody reaches the directory for a while; then daemons look at all of it anew."""
        self.directory.away = True
        self.tell(f"directory is away for {span:.1f} s")
        self.later(span, self.directory_back)

    def directory_of(self, name: HostName) -> DirectoryPort:
        """The directory as a host has it; answers come whether its daemon runs or not."""
        return _SimDirectory(self, name, lambda act: act())

    def directory_back(self) -> None:
        """The directory is back."""
        self.directory.away = False
        self.tell("directory is back")
        for host in self.hosts.values():
            self.with_engine(host, lambda engine: engine.on_directory_back())
            self.directory.retell(host.name)

    def excuse(self, ids: Sequence[SaId]) -> None:
        """Inbound SAs that go whatever their peer sends on them."""
        self.laws.excuse(ids)

    # Events of kernels

    def _kernel_event(self, host: SimHost, event: KernelEvent, ours: bool) -> None:
        lost = self.dice.random() < self.lose_events
        fact: KernelEvent = EventsLost() if lost else event

        def arrive() -> None:
            self.with_engine(host, lambda engine: engine.on_kernel_events([(fact, ours)]))

        self.later(self.dice.uniform(0.0, 0.02), arrive)

    # Packets

    def packet(self, child: ChildId) -> Packet:
        """A packet of a child, as its own host sends it: with its tenant's mark, which what the
        guard says sets whether a daemon runs or not."""
        flow = next(flow for flow in self.intent.flows if flow.name == child.flow)
        owner = next(host for host in self.hosts.values() if child.local in host.links.held)
        mark = owner.guard.mark_of(child)
        return Packet(child.local, child.remote, ON_WIRE[flow.kind].proto, 40_000, flow.port, mark)

    def probe(self, probe: Probe, owner: SimHost, child: ChildId) -> None:
        """Send one packet of a child to its peer."""
        sent = owner.kernel.send(self.packet(child))
        probe.sent += 1
        if sent is None:
            probe.held_back += 1
            return
        peer = self.hosts[child.peer]

        def arrive() -> None:
            if self.wire.parted(owner.name, child.peer):
                return
            if isinstance(sent, EspPacket) and peer.kernel.receive(sent):
                probe.delivered += 1

        for trip in self.wire.trips(self.dice):
            self.later(trip, arrive)

    # Looking

    def protected(self) -> bool:
        """Whether every child that can be is INSTALLED or REKEYING."""
        return self._all_are(PROTECTED)

    def settled(self) -> bool:
        """Whether every child that can be has the SAs it should and nothing in progress, every host
        one private key, and the directory all that was written."""
        return self._all_are((Phase.INSTALLED,), moving=False) and all(
            host.engine.outbox.idle
            and not any(
                ike.empty_since is not None
                for connection in host.engine.ike.connections
                for ike in connection.state.ikes.values()
            )
            and (host.engine.scope.rollover is None or len(host.engine.offers.offers) == 1)
            for host in self.hosts.values()
            if host.engine is not None
        )

    def records_of(self, host: SimHost) -> set[str]:
        """Paths in the directory of which a host is the author."""
        return {path for path in self.directory.records if path.split("/")[-1] == host.name}

    def standings(self, host: SimHost) -> list[Standing]:
        """How the children of a host stand; none without a daemon."""
        return [] if host.engine is None else standings(host.engine, Instant(self.now))

    def _all_are(self, phases: tuple[Phase, ...], *, moving: bool = True) -> bool:
        """Every daemon runs, and has its children in one of these phases; those that move from one
        keying to the other only if that counts."""
        return all(host.engine is not None for host in self.hosts.values()) and all(
            (one.phase in phases and (moving or not one.moving))
            or (self.crowded and self.in_the_way(host, one.child))
            for host in self.hosts.values()
            for one in self.standings(host)
        )

    def in_the_way(self, host: SimHost, child: Child) -> bool:
        """Whether another program's SP stands under a selector of a child, here or at the peer."""
        if self.obstructed_here(host, child):
            return True
        peer = self.hosts[child.id.peer]
        return any(
            self.obstructed_here(peer, other)
            for other in peer.scope.children
            if (other.id.flow, other.id.local) == (child.id.flow, child.id.remote)
            and other.id.remote == child.id.local
        )

    def obstructed_here(self, host: SimHost, child: Child) -> bool:
        """Whether another program's SP stands under a selector of a child on its own host."""
        foreign = {sp.id for sp in host.kernel.spd() if not is_our_sp(sp)}
        return bool(foreign) and not foreign.isdisjoint(
            sp.id for sp in (*inbound_sps(child), *outbound_sps(child, Spi(0)))
        )

    def children(self) -> list[tuple[SimHost, ChildId]]:
        """Every child of every host that runs, but those that another program obstructs."""
        return [
            (host, child.id)
            for host in self.hosts.values()
            if host.engine is not None
            for child in host.engine.scope.children
            if not (self.crowded and self.in_the_way(host, child))
        ]

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
            lines += [f"{host.name}: {one}" for one in self.standings(host)]
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
    """A host's own view."""

    world: World
    name: HostName
    answer: Callable[[Callable[[], None]], None]

    def publish(
        self, records: Sequence[Record], *, done: Callable[[Exception | None], None]
    ) -> None:
        self.world.directory.write(
            self.name, records, lambda error: self.answer(lambda: done(error))
        )

    def withdraw(self, paths: Sequence[str], *, done: Callable[[Exception | None], None]) -> None:
        self.world.directory.remove(
            self.name, paths, lambda error: self.answer(lambda: done(error))
        )

    def claim(
        self, service: str, token: int, body: bytes, *, done: Callable[[int | Exception], None]
    ) -> None:
        self.world.directory.claim(
            self.name, service, token, body, lambda found: self.answer(lambda: done(found))
        )
