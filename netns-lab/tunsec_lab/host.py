"""A topology made real: a namespace per host, a switch namespace with the wires.

    +--- host a ---+        +------ switch ------+        +--- host b ---+
    | vx41         |        |   bridge "wire"    |        |         vx41 |
    |    eth0 -----+--------+- a.eth0    b.eth0 -+--------+----- eth0    |
    +--------------+        +--------------------+        +--------------+

The switch outlives its hosts: a host can be destroyed and made anew (a reboot) while captures on
the wires go on. All that is made is undone at the end, whatever happened meanwhile.
"""

import os
import re
import secrets
import select
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final

from tunsec_lab.carrier import LinkEvents
from tunsec_lab.errors import LabError
from tunsec_lab.faults import Faults
from tunsec_lab.namespaces import inside, ip, processes_in, set_sysctls
from tunsec_lab.process import Completed, Process, private_run
from tunsec_lab.topology import (
    Address,
    Family,
    HostSpec,
    Interface,
    Overlay,
    OverlayKind,
    Topology,
    load_topology,
    port_name,
)

RDMA_DEVICES: Final = Path("/sys/class/infiniband")
SHARED_MEMORY: Final = Path("/dev/shm")  # a tmpfs on every Linux, and not hidden by a private /run
COMMAND_TIMEOUT_SECONDS: Final = 30.0
KILL_TIMEOUT_SECONDS: Final = 10.0
# The switch's own pair of devices, through which a capture is told "up to here".
MARK_IN, MARK_OUT = "mark0", "mark1"
PING_SUMMARY: Final = re.compile(r"(\d+) packets transmitted, (\d+) received")

# No address is "tentative" (unusable) for a second, and nobody solicits routers.
HOST_SYSCTLS: Final = tuple(
    (f"net/ipv6/conf/{scope}/{name}", "0")
    for scope in ("all", "default")
    for name in (
        "accept_dad",
        "dad_transmits",
        "accept_ra",
        "router_solicitations",
        "router_solicitation_delay",
    )
)
# The switch only forwards frames; it says nothing of its own.
SWITCH_SYSCTLS: Final = tuple(
    (f"net/ipv6/conf/{scope}/disable_ipv6", "1") for scope in ("all", "default")
)


@dataclass(frozen=True)
class PingResult:
    sent: int
    received: int

    @property
    def lost(self) -> int:
        return self.sent - self.received


@dataclass
class Host:
    """One host of a lab. Its folders and log files outlive `destroy`, but for the run folder."""

    name: str
    spec: HostSpec
    lab: "Lab"
    alive: bool = False
    started: list[Process] = field(default_factory=list)

    @property
    def netns(self) -> str:
        return f"{self.lab.prefix}-{self.name}"

    @property
    def rxe(self) -> str:
        """Its Soft-RoCE device. All namespaces see all RDMA devices (`rdma system`: netns shared),
        so each has a name of its own."""
        return f"rxe_{self.netns}"

    @property
    def folder(self) -> Path:
        return self.lab.folder / self.name

    @property
    def run_dir(self) -> Path:
        """For sockets and what does not survive a reboot."""
        return self.folder / "run"

    @property
    def state_dir(self) -> Path:
        """For what survives a reboot."""
        return self.folder / "state"

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Of the underlay, both families."""
        return tuple(plug.ip for link in self.spec.links for plug in link.addresses)

    @property
    def ipv4(self) -> Address:
        return self._address(Family.IPV4)

    @property
    def ipv6(self) -> Address:
        return self._address(Family.IPV6)

    def _address(self, family: Family) -> Address:
        address = self.spec.address(family)
        if address is None:
            raise LabError(f"host {self.name} has no {family} address")
        return address

    def overlay_addresses(self, overlay: str) -> tuple[Address, ...]:
        """This host's addresses inside an overlay, in the order of the topology."""
        found = next(each for each in self.lab.topology.overlays if each.name == overlay)
        return tuple(plug.ip for plug in found.members[self.name])

    # -- programs ---------------------------------------------------------------------------

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        check: bool = True,
        timeout: float = COMMAND_TIMEOUT_SECONDS,
        stdin: str = "",
        env: Mapping[str, str] | None = None,
    ) -> Completed:
        """Runs a command to its end. `check`: a status other than 0 is an error."""
        words = tuple(map(str, argv))
        with inside(self.netns):
            popen = subprocess.Popen(
                words,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                env=None if env is None else {**os.environ, **env},
                start_new_session=True,
            )
        try:
            stdout, stderr = popen.communicate(stdin, timeout=timeout)
        except BaseException as error:
            with suppress(ProcessLookupError):
                os.killpg(popen.pid, signal.SIGKILL)
            stdout, stderr = popen.communicate()
            if isinstance(error, subprocess.TimeoutExpired):
                said = f"{stdout}{stderr}"[-2000:]
                raise LabError(
                    f"host {self.name}: {' '.join(words)} still ran after {timeout:g} s\n{said}"
                ) from None
            raise
        done = Completed(words, popen.returncode, stdout, stderr)
        return done.checked(self.name) if check else done

    def spawn(
        self,
        argv: Sequence[str | Path],
        *,
        name: str = "",
        own_run: bool = False,
        env: Mapping[str, str] | None = None,
    ) -> Process:
        """Starts a daemon. `own_run`: it gets a private /run, as each charon needs."""
        words = tuple(map(str, argv))
        label = name or Path(words[0]).name
        log = self.folder / "log" / f"{len(self.started):03d}-{label}.log"
        with log.open("wb") as output, inside(self.netns):
            popen = subprocess.Popen(
                private_run(words) if own_run else words,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=None if env is None else {**os.environ, **env},
                start_new_session=True,
            )
        process = Process(f"{self.name}/{label}", popen, log)
        self.started.append(process)
        return process

    def ip(self, *lines: str) -> None:
        """Many `ip` commands at the cost of one process."""
        ip(*lines, netns=self.netns)

    def nft(self, ruleset: str) -> None:
        self.run(["nft", "-f", "-"], stdin=ruleset)

    def ping(
        self,
        to: "Host | Address | str",
        *,
        count: int = 3,
        interval: float | None = None,
        wait: float = 2.0,
        size: int | None = None,
    ) -> PingResult:
        """All packets at once, with `wait` seconds for the answers; or one each `interval`. An ARP
        request that was lost is repeated after one.

        Once anything was answered, ping itself waits for twice the slowest answer so far or for an
        interval, whichever is longer: with short ones an answer that comes 10 ms late is "lost".
        """
        target = to.addresses[0] if isinstance(to, Host) else to
        pace = [f"-l{count}", f"-i{wait:g}"] if interval is None else [f"-i{interval:g}"]
        argv = ["ping", "-n", "-q", f"-c{count}", *pace, f"-W{wait:g}"]
        argv += [] if size is None else [f"-s{size}", "-Mdo"]
        limit = count * max(interval or 0, wait) + 10
        done = self.run([*argv, str(target)], check=False, timeout=limit)
        found = PING_SUMMARY.search(done.stdout)
        if not found:
            raise LabError(f"host {self.name}: ping {target}: {done.stderr.strip() or done.stdout}")
        return PingResult(int(found[1]), int(found[2]))

    def reaches(self, to: "Host | Address | str", *, wait: float = 1.0) -> bool:
        return self.ping(to, count=1, wait=wait).received == 1

    # -- life -------------------------------------------------------------------------------

    def destroy(self) -> None:
        """Power off: processes killed, links gone, namespace gone, run folder empty."""
        self.lab.destroy(self)

    def recreate(self) -> None:
        """Power on after `destroy`: same addresses (and MAC addresses), nothing running."""
        self.lab.create(self)

    def know_neighbours(self) -> None:
        """Enters every other host's addresses for good, on wires and overlays: what ARP and
        neighbour discovery cost (a second for each question that is lost) is not counted then.

        A reboot forgets them.
        """
        self.ip(*self.lab.neighbours_of(self))

    def raise_overlays(self) -> None:
        """Brings the overlay devices up, for a lab made with overlays_up=False."""
        self._set_overlays("up")

    def lower_overlays(self) -> None:
        """Takes the overlay devices down: what a host that runs no daemon yet must not use."""
        self._set_overlays("down")

    def _set_overlays(self, state: str) -> None:
        self.ip(*(f"link set {each.device} {state}" for each in self.lab.overlays_of(self)))


class Lab:
    """The hosts of a topology, from `with` to the end of the block.

    `overlays_up=False` leaves overlay devices down, so that not even their own neighbour and
    multicast packets are sent before the scenario says `raise_overlays`.
    """

    def __init__(self, topology: Topology | str | Path, *, overlays_up: bool = True) -> None:
        self.topology = topology if isinstance(topology, Topology) else load_topology(topology)
        self.overlays_up = overlays_up
        self.prefix = f"lab{secrets.token_hex(3)}"
        self.switch = f"{self.prefix}-switch"
        self.folder = Path()
        self.hosts = {spec.name: Host(spec.name, spec, self) for spec in self.topology.hosts}
        self.faults = Faults(
            self.switch,
            self._ports(),
            {spec.name: f"{self.prefix}-{spec.name}" for spec in self.topology.hosts},
        )

    def __enter__(self) -> "Lab":
        if os.geteuid() != 0:
            raise LabError("labs need root", remedy="run in the lab: netns-lab/lab exec -- COMMAND")
        self.folder = Path(tempfile.mkdtemp(prefix=f"{self.prefix}-", dir=SHARED_MEMORY))
        try:
            self._make_switch()
            self.create(*self.hosts.values())
        except BaseException:
            self._undo()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._undo()

    def speak_over_overlays(self) -> None:
        """The first host reaches every other one over each overlay that they share.

        Devices speak by themselves while they are up, so all are down again when it returns.
        """
        for host in self.hosts.values():
            host.raise_overlays()
        first, *others = self.hosts.values()
        for overlay in self.overlays_of(first):
            for other in others:
                if other.name in overlay.members:
                    address = other.overlay_addresses(overlay.name)[0]
                    if not first.reaches(address):
                        raise LabError(f"{first.name} does not reach {address} over {overlay.name}")
        for host in self.hosts.values():
            host.lower_overlays()

    def overlays_of(self, host: Host) -> list[Overlay]:
        return [overlay for overlay in self.topology.overlays if host.name in overlay.members]

    def _ports(self) -> dict[str, dict[str, str]]:
        """Host -> port of the switch -> the wire it belongs to."""
        return {
            spec.name: {port_name(spec.name, link.name): link.network for link in spec.links}
            for spec in self.topology.hosts
        }

    def _make_switch(self) -> None:
        ip(f"netns add {self.switch}")
        with inside(self.switch):
            set_sysctls(SWITCH_SYSCTLS)
        bridge = "type bridge stp_state 0 forward_delay 0 mcast_snooping 0"
        ip(
            *(f"link add {wire.name} mtu {wire.mtu} {bridge}" for wire in self.topology.networks),
            *(f"link set {wire.name} up" for wire in self.topology.networks),
            f"link add {MARK_IN} type veth peer name {MARK_OUT}",
            f"link set {MARK_OUT} up",
            f"link set {MARK_IN} up",
            netns=self.switch,
        )

    def create(self, *hosts: Host) -> None:
        """Makes the namespaces of hosts that do not exist, with links, addresses and overlays."""
        for host in hosts:
            if host.alive:
                raise LabError(f"host {host.name} is there already", remedy="destroy it first")
            for folder in ("run", "state", "log"):
                (host.folder / folder).mkdir(parents=True, exist_ok=True)
        ip(*(f"netns add {host.netns}" for host in hosts))
        for host in hosts:
            host.alive = True
            with inside(host.netns):
                set_sysctls(HOST_SYSCTLS)
        ip(*(line for host in hosts for line in self._cables(host)))
        with LinkEvents(self.switch) as events:
            # The switch's end comes up first: then the host's end has a carrier as it comes up,
            # and the kernel configures its addresses at once and not at the next link watch.
            ip(*(line for host in hosts for line in self._plugs(host)), netns=self.switch)
            for host in hosts:
                host.ip(*self._addresses(host), *self._overlays(host))
                ip(*self._floods(host), netns=host.netns, program="bridge")
            events.wait_until_up(port for host in hosts for port in self._ports()[host.name])

    def _cables(self, host: Host) -> list[str]:
        return [
            f"link add {link.name} address {mac(0, self._index(host), number)} mtu {mtu} "
            f"netns {host.netns} type veth peer name {port_name(host.name, link.name)} "
            f"mtu {mtu} netns {self.switch}"
            for number, link in enumerate(host.spec.links)
            for mtu in [self.topology.network(link.network).mtu]
        ]

    def _plugs(self, host: Host) -> list[str]:
        return [
            f"link set {port_name(host.name, link.name)} master {link.network} up"
            for link in host.spec.links
        ]

    def _addresses(self, host: Host) -> list[str]:
        lines = ["link set lo up"]
        for link in host.spec.links:
            lines += [f"addr add {plug} dev {link.name}{no_dad(plug)}" for plug in link.addresses]
            lines.append(f"link set {link.name} up")
        return lines

    def _overlays(self, host: Host) -> list[str]:
        lines = []
        for number, overlay in enumerate(self.overlays_of(host)):
            address = mac(1, self._index(host), number)
            lines.append(self._tunnel(host, overlay, address))
            lines += [
                f"addr add {plug} dev {overlay.device}{no_dad(plug)}"
                for plug in overlay.members[host.name]
            ]
            if self.overlays_up:
                lines.append(f"link set {overlay.device} up")
        return lines

    def _tunnel(self, host: Host, overlay: Overlay, address: str) -> str:
        remotes = self._remotes(host, overlay)
        local = host.spec.address(overlay.family)
        remote = f"remote {remotes[0]}" if len(remotes) == 1 else ""
        match overlay.kind:
            case OverlayKind.VXLAN:
                rest = f"vxlan id {overlay.vni} local {local} {remote} dstport {overlay.port}"
            case OverlayKind.GENEVE:
                rest = f"geneve id {overlay.vni} {remote} dstport {overlay.port}"
        return f"link add {overlay.device} address {address} mtu {overlay.mtu} type {rest}"

    def _floods(self, host: Host) -> list[str]:
        """Where a VXLAN device with several remotes sends what it has no entry for."""
        return [
            f"fdb append 00:00:00:00:00:00 dev {overlay.device} dst {remote}"
            for overlay in self.overlays_of(host)
            for remote in self._remotes(host, overlay)
            if len(overlay.members) > 2
        ]

    def neighbours_of(self, host: Host) -> list[str]:
        """Lines of `ip` that enter them."""
        lines = []
        for other in (other for other in self.hosts.values() if other is not host):
            for number, link in enumerate(other.spec.links):
                near = next((e.name for e in host.spec.links if e.network == link.network), "")
                lines += [
                    f"neigh replace {plug.ip} lladdr {mac(0, self._index(other), number)} "
                    f"dev {near} nud permanent"
                    for plug in link.addresses
                    if near
                ]
            for number, overlay in enumerate(self.overlays_of(other)):
                lines += [
                    f"neigh replace {plug.ip} lladdr {mac(1, self._index(other), number)} "
                    f"dev {overlay.device} nud permanent"
                    for plug in overlay.members[other.name]
                    if host.name in overlay.members
                ]
        return lines

    def _remotes(self, host: Host, overlay: Overlay) -> list[Address | None]:
        others = (name for name in overlay.members if name != host.name)
        return [self.topology.host(name).address(overlay.family) for name in others]

    def _index(self, host: Host) -> int:
        return list(self.hosts).index(host.name)

    def reboot(self, *hosts: Host) -> None:
        """All off, then all on: nothing is left of what their kernels knew."""
        self.destroy(*hosts)
        self.create(*hosts)

    def destroy(self, *hosts: Host) -> None:
        there = [host for host in hosts if host.alive]
        kill_all(there)
        remove_rxe(there)
        ports = [port for host in there for port in self._ports()[host.name]]
        # Deleted by hand: a namespace's own devices go some time after it, and their names with
        # them, too late for a host that is recreated at once.
        ip(*(f"link del {port}" for port in ports), netns=self.switch)
        ip(*(f"netns del {host.netns}" for host in there))
        for host in there:
            host.alive = False
            for entry in host.run_dir.iterdir():
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)
                else:
                    entry.unlink()

    def _undo(self) -> None:
        """Takes down what is there, however far it came."""
        kill_all(list(self.hosts.values()))
        with suppress(LabError):
            remove_rxe(list(self.hosts.values()))
        for netns in (*(host.netns for host in self.hosts.values()), self.switch):
            if Path("/run/netns", netns).exists():
                with suppress(LabError):
                    ip(f"netns del {netns}")
        for host in self.hosts.values():
            host.alive = False
        shutil.rmtree(self.folder, ignore_errors=True)


def kill_all(hosts: Sequence[Host]) -> None:
    """Every process of these hosts, daemons that left their group too, until none is left."""
    names = [host.netns for host in hosts]
    while left := processes_in(names):
        for process in left:
            kill_and_wait(process)
        for host in hosts:
            for started in host.started:
                started.popen.poll()  # reaps
    for host in hosts:
        for started in host.started:
            started.wait()


def remove_rxe(hosts: Sequence[Host]) -> None:
    """Soft-RoCE devices go before what they are on; when this returns they are gone.

    RXE would take them down by itself, a little after their netdev. In between no namespace can be
    made at all: a new one asks each RDMA device for its port (rdma_dev_init_net), and of a netdev
    that is going there is none (ib_get_eth_speed: "No such device").
    """
    names = [host.rxe for host in hosts if (RDMA_DEVICES / host.rxe).exists()]
    ip(*(f"link delete {name}" for name in names), program="rdma")


def kill_and_wait(process: int) -> None:
    """Waits for the end: in virtual time a loop that only looks would never let it come."""
    try:
        end = os.pidfd_open(process)
    except ProcessLookupError:
        return
    try:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(end, signal.SIGKILL)
        select.select([end], [], [], KILL_TIMEOUT_SECONDS)
    finally:
        os.close(end)


def mac(plane: int, host: int, device: int) -> str:
    """The same at each creation, so that peers' neighbour tables stay true over a reboot."""
    return f"02:00:{plane:02x}:{host:02x}:{device:02x}:01"


def no_dad(plug: Interface) -> str:
    return " nodad" if plug.version == 6 else ""
