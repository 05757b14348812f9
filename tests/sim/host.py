"""One host of a simulation: what a crash leaves, what a reboot leaves, and what neither does."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tests.sim.charon import FakeCharon
from tests.sim.charon_link import CharonLink
from tests.sim.kernel import FakeKernel, Packet
from tests.sim.tcp import FakeSockets, FakeSynGate
from tunsec.daemon.engine import Engine
from tunsec.daemon.scope import Scope
from tunsec.keying.claims import NO_CLAIMS, KnownClaims
from tunsec.keying.newest import Newest
from tunsec.keying.ring import Keyring
from tunsec.model.errors import Unavailable
from tunsec.model.flow import ChildId
from tunsec.model.guard import Guard, GuardDrops, VniMarks
from tunsec.model.names import Address, HostName, Mark, TenantName
from tunsec.model.rdma import RdmaDevice
from tunsec.model.underlay import Underlay
from tunsec.ports import OverlayDevice


class FakeGuard:
    """The nftables table: there or not, and with which content."""

    def __init__(self) -> None:
        self.guard: Guard | None = None

    def put(self, guard: Guard) -> None:
        """Replace the table."""
        self.guard = guard

    def intact(self, guard: Guard) -> bool:
        """Whether the table is just this one."""
        return self.guard == guard

    def drops(self) -> dict[str, GuardDrops]:
        """Nothing is counted here."""
        return {}

    def remove(self) -> None:
        """Delete the table."""
        self.guard = None

    def mark_of(self, child: ChildId) -> int:
        """What a tunnel device sets on packets of a child; 0 where there are no tenants."""
        for flow in () if self.guard is None else self.guard.flows:
            if flow.flow == child.flow:
                marks: dict[TenantName | None, Mark | None] = {None: flow.others}
                marks |= {one.tenant: one.mark for one in flow.tenants}
                mark = marks.get(child.tenant)
                return 0 if mark is None else mark.value
        return 0

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


class NoMarks:
    """No filters: the simulation's packets bear the marks of their tenants from the beginning."""

    def put(self, wanted: Sequence[VniMarks]) -> None:
        """Nothing to do."""

    def drift(self, wanted: Sequence[VniMarks]) -> tuple[str, ...]:
        """Nothing differs."""
        return ()


class FakeLinks:
    """No tunnel devices: the simulation's packets need none. Every address is on eth0, and by one
    NIC at most packets go to every peer."""

    def __init__(self, addresses: Iterable[Address], kernel: FakeKernel) -> None:
        self.held = frozenset(addresses)
        """The host's own, and service addresses that were moved here."""
        self.kernel = kernel

    def addresses(self) -> Mapping[Address, str]:
        """What it holds."""
        return dict.fromkeys(sorted(self.held, key=str), "eth0")

    def overlay_devices(self) -> tuple[OverlayDevice, ...]:
        """None."""
        return ()

    def underlay_mtu(self, to: Address) -> int | None:
        """As Ethernet has it."""
        return 1500

    def underlay(self, local: Address, remote: Address) -> Underlay | None:
        """The newest NIC."""
        if not self.kernel.nics:
            return None
        nic = self.kernel.nics[max(self.kernel.nics)]
        return Underlay(nic.ifindex, nic.name, nic.esp)


class FakeRdma:
    """RDMA devices that come and go as a test wishes."""

    def __init__(self) -> None:
        self.found: tuple[RdmaDevice, ...] = ()
        self.trouble = ""

    def devices(self) -> tuple[RdmaDevice, ...]:
        """Those of now."""
        if self.trouble:
            raise Unavailable(self.trouble)
        return self.found


@dataclass(slots=True)
class SimHost:
    """One host."""

    name: HostName
    kernel: FakeKernel
    guard: FakeGuard
    scope: Scope
    """What the state folder keeps: the policy in force, and what was released or retired."""
    charon: FakeCharon = field(init=False)
    sockets: FakeSockets = field(default_factory=FakeSockets)
    syns: FakeSynGate = field(init=False)
    link: CharonLink | None = None
    """What the daemon has of it."""
    links: FakeLinks = field(init=False)
    rdma: FakeRdma = field(default_factory=FakeRdma)
    newest: Newest = field(default_factory=Newest)
    claims: KnownClaims = NO_CLAIMS
    """The state folder's memory of who holds service addresses."""
    engine: Engine | None = None
    ring: Keyring | None = None
    certificate: int = 1
    """Issue number of its certificate."""
    revoked: frozenset[tuple[str, int]] = frozenset()
    """What its crl.pem says: hosts and issue numbers."""
    life: int = 0
    closed: set[tuple[Packet, bool]] = field(default_factory=set)
    """Packets, and whether they leave, that were held back at some check since the last reboot."""
    tampered: bool = False
    """Somebody changed SPs by hand and the daemon has not repaired it yet."""
    crash_in: int | None = None
    """Kernel steps until the daemon dies."""
    dies_unanswered: bool = False
    """The daemon dies when the directory has written and before it learns so."""
    disk_full: bool = False
    """The state folder takes nothing: what a daemon learns dies with it."""
    held_down: bool = False
    """Nobody starts the daemon."""
    on_start: Callable[["SimHost"], None] = lambda host: None
    """Called with the engine made and not started: planted faults."""
