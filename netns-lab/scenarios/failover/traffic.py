"""What runs over the cluster while something breaks: a kind of flow, with its packets and probes.

The runner knows no kind. A new one says how its packets look in clear, what makes a host send
them, and which numbered packets go over it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from tunsec_lab.host import Host, Lab
from tunsec_lab.packets import Protected, protect
from tunsec_lab.probe import Probe

RATE: Final = 1000.0
"""Packets a second, each way."""
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
    def needs(self) -> tuple[str, ...]:
        """Features of the kernel, of tunsec_lab.features."""

    @property
    def protected(self) -> Sequence[Protected]:
        """What must not be on the wire in clear."""

    def speak_in_clear(self, lab: Lab) -> None:
        """Sends packets that a watch must see, and is silent again when it returns."""

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


KINDS: Final[dict[str, Traffic]] = {each.name: each for each in (Vxlan(),)}
