"""What runs over the cluster while something breaks: a kind of flow, with its packets and probes.

The runner knows no kind. A new one says how its packets look in clear, what makes a host send
them, and which numbered packets go over it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from tunsec_lab.host import Host, Lab
from tunsec_lab.namespaces import inside, set_sysctls
from tunsec_lab.packets import Protected, protect
from tunsec_lab.probe import Probe
from tunsec_lab.rds import RdsTalk
from tunsec_lab.rds_probe import RdsProbe
from tunsec_lab.service import SERVICES, VIP, comes

RATE: Final = 1000.0
"""Packets a second, each way."""
MESSAGES: Final = 50.0
"""RDS messages a second, each way."""
FIRST_PORT: Final = 9000


class Traffic(Protocol):
    """A kind of flow."""

    @property
    def name(self) -> str:
        """As in the policy."""

    @property
    def topology(self) -> str:
        """Of netns-lab/topologies."""

    @property
    def flows(self) -> str:
        """The `flows:` of the policy; their keying is the policy's default."""

    @property
    def services(self) -> str:
        """The `service_addresses:` of the policy."""

    @property
    def reliable(self) -> bool:
        """Whether it sends again what the wire loses."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Features of the kernel, of tunsec_lab.features."""

    @property
    def protected(self) -> Sequence[Protected]:
        """What must not be on the wire in clear."""

    def speak_in_clear(self, lab: Lab) -> None:
        """Sends packets that a watch must see, and is silent again when it returns."""

    def boot(self, host: Host) -> None:
        """How a host is set up for it, before any daemon."""

    def open(self, host: Host) -> None:
        """Lets a host speak whose daemon is ready."""

    def probes(self, lab: Lab) -> list[Probe]:
        """Numbered packets, both ways. A host may be anew since they were asked for last."""


@dataclass(frozen=True)
class Vxlan:
    """One way over IPv4, the other over IPv6."""

    name: str = "vxlan"
    topology: str = "two-hosts"
    flows: str = "  overlay: {kind: vxlan, between: all}\n"
    services: str = "  {}\n"
    reliable: bool = False
    needs: tuple[str, ...] = (
        *("esp-ipv4", "esp-ipv6", "esn", "vxlan", "bridge", "nft-inet", "nft-netdev-egress"),
    )

    @property
    def protected(self) -> Sequence[Protected]:
        """VXLAN on its port, whoever sends it."""
        return (protect("vxlan"),)

    def speak_in_clear(self, lab: Lab) -> None:
        """Over each overlay."""
        lab.speak_over_overlays()

    def boot(self, host: Host) -> None:
        """As by default."""

    def open(self, host: Host) -> None:
        """Overlay devices up."""
        host.raise_overlays()
        host.know_neighbours()

    def probes(self, lab: Lab) -> list[Probe]:
        """Red is over IPv4, blue is over IPv6."""
        a, b = lab.hosts.values()
        return [
            Probe(a, b, to=b.overlay_addresses("red")[0], rate=RATE, port=FIRST_PORT),
            Probe(b, a, to=a.overlay_addresses("blue")[0], rate=RATE, port=FIRST_PORT + 1),
        ]


@dataclass(frozen=True)
class Ring(Vxlan):
    """Each host speaks with the next one, the last one with the first, so often a second."""

    name: str = "ring"
    topology: str = "three-hosts-ipv4"
    needs: tuple[str, ...] = (
        *("esp-ipv4", "esn", "vxlan", "bridge", "nft-inet", "nft-netdev-egress", "netem"),
    )
    rate: float = RATE

    def probes(self, lab: Lab) -> list[Probe]:
        """One from each host."""
        hosts = [*lab.hosts.values()]
        return [
            Probe(
                source,
                target,
                to=target.overlay_addresses("red")[0],
                rate=self.rate,
                port=FIRST_PORT + number,
            )
            for number, (source, target) in enumerate(
                zip(hosts, [*hosts[1:], hosts[0]], strict=True)
            )
        ]


@dataclass(frozen=True)
class RdsTcp:
    """RDS over TCP: one way over IPv4, where the sender has the smaller address, the other over
    IPv6, where it has the larger one."""

    name: str = "rds-tcp"
    topology: str = "two-hosts"
    flows: str = "  bus: {kind: rds-tcp, between: all}\n"
    services: str = "  {}\n"
    reliable: bool = True
    needs: tuple[str, ...] = (
        *("esp-ipv4", "esp-ipv6", "esn", "nft-inet", "rds-tcp", "sock-destroy"),
    )

    @property
    def protected(self) -> Sequence[Protected]:
        """TCP from and to RDS's port."""
        return (protect("rds-tcp"),)

    def speak_in_clear(self, lab: Lab) -> None:
        """Both ways. RDS speaks on what it has connected for as long as a host runs."""
        a, b = lab.hosts.values()
        for one, other, version in ((a, b, 4), (b, a, 6)):
            with RdsTalk(one, other, version=version, sizes=(1,)) as talk:
                talk.wait()
        lab.reboot(a, b)

    def boot(self, host: Host) -> None:
        """As docs/operations.md advises."""
        resend_soon(host)

    def open(self, host: Host) -> None:
        """Nothing keeps RDS from speaking but tunsec."""
        host.know_neighbours()

    def probes(self, lab: Lab) -> list[Probe]:
        """The same way again and again: the peer connects, too, when it has lost its connection."""
        a, b = lab.hosts.values()
        return [
            RdsProbe(a, b, version=4, rate=MESSAGES, port=FIRST_PORT),
            RdsProbe(b, a, version=6, rate=MESSAGES, port=FIRST_PORT + 1),
        ]


@dataclass(frozen=True)
class RdsService:
    """RDS over TCP from a third host to an address that one of two hosts has; the first one at
    first."""

    name: str = "rds-tcp"
    topology: str = "three-hosts"
    flows: str = "  bus: {kind: rds-tcp, between: [a, b, c, vip]}\n"
    services: str = SERVICES
    reliable: bool = True
    needs: tuple[str, ...] = RdsTcp.needs

    @property
    def protected(self) -> Sequence[Protected]:
        """TCP from and to RDS's port, whoever's."""
        return (protect("rds-tcp"),)

    def speak_in_clear(self, lab: Lab) -> None:
        """To the address; then the hosts are rebooted, and nobody has it."""
        a, _, c = lab.hosts.values()
        comes(a, c)
        with RdsTalk(c, a, far=VIP, sizes=(1,)) as talk:
            talk.wait()
        lab.reboot(a, c)

    def boot(self, host: Host) -> None:
        """As docs/operations.md advises."""
        resend_soon(host)

    def open(self, host: Host) -> None:
        """The first host gets the address when its daemon is ready."""
        host.know_neighbours()
        first, *others = host.lab.hosts.values()
        if host is first:
            comes(host, *others)

    def probes(self, lab: Lab) -> list[Probe]:
        """Whoever has the address takes them."""
        a, b, c = lab.hosts.values()
        return [RdsProbe(c, a, to=VIP, others=[b], rate=MESSAGES, port=FIRST_PORT)]


def resend_soon(host: Host) -> None:
    """TCP waits a second at most, and not twice as long each time, before it sends again what did
    not get through: a connection is back when the wire is."""
    with inside(host.netns):
        set_sysctls([("net/ipv4/tcp_rto_max_ms", "1000")])


KINDS: Final[dict[str, Traffic]] = {each.name: each for each in (Vxlan(), RdsTcp())}
