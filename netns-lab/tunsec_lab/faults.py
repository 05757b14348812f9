"""Faults of the wire, made on the switch's side, so that a host cannot tell them from real ones.

Each returns a `Fault`, which is undone by `undo()` or at the end of a `with` block. What is left
goes with the lab.
"""

import json
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Final

from tunsec_lab.carrier import LinkEvents
from tunsec_lab.errors import LabError
from tunsec_lab.namespaces import ip


@dataclass(frozen=True)
class Fault:
    undo: Callable[[], None]

    def __enter__(self) -> "Fault":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.undo()


ON_THE_WAY: Final = 1_000_000
"""Packets that a long wire holds. netem's own limit of 1,000 would lose what nobody asked it to."""


@dataclass(frozen=True)
class Impairment:
    """What netem does to each packet on its way to a host."""

    loss_percent: float = 0
    delay_ms: float = 0
    jitter_ms: float = 0
    reorder_percent: float = 0
    duplicate_percent: float = 0
    corrupt_percent: float = 0

    def __post_init__(self) -> None:
        if (self.reorder_percent or self.jitter_ms) and not self.delay_ms:
            raise LabError("reorder and jitter need a delay", remedy="give delay_ms too")

    def netem(self) -> str:
        words = []
        if self.delay_ms:
            words.append(f"limit {ON_THE_WAY} delay {self.delay_ms:g}ms")
        if self.jitter_ms:
            words.append(f"{self.jitter_ms:g}ms")
        for name in ("loss", "reorder", "duplicate", "corrupt"):
            percent = getattr(self, f"{name}_percent")
            if percent:
                words.append(f"{name} {percent:g}%")
        return " ".join(words)


@dataclass(frozen=True)
class Faults:
    """`lab.faults`."""

    switch: str
    ports: Mapping[str, Mapping[str, str]]
    """Host -> port of the switch -> the wire it belongs to."""
    hosts: Mapping[str, str]
    """Host -> its namespace."""

    def link_down(self, host: str) -> Fault:
        """Pulls the cable: the host sees its carrier go."""
        self._each(host, "link set {port} down")
        return Fault(lambda: self.link_up(host))

    def link_up(self, host: str) -> None:
        """Plugs the cable in again; both ends are up when it returns."""
        links = [port.partition(".")[2] for port in self.ports[host]]
        with LinkEvents(self.switch) as ports, LinkEvents(self.hosts[host]) as devices:
            self._each(host, "link set {port} up")
            ports.wait_until_up(self.ports[host])
            devices.wait_until_up(links)

    def impair(self, host: str, impairment: Impairment) -> Fault:
        """Loss, delay and the like of what the host receives; for both ways impair both hosts."""
        self._each(host, "qdisc replace dev {port} root netem " + impairment.netem(), program="tc")
        return Fault(lambda: self._each(host, "qdisc del dev {port} root", program="tc"))

    def dropped(self, host: str) -> int:
        """Frames to a host that `impair` has dropped since it began."""
        total = 0
        for port in self.ports[host]:
            argv = ["tc", "-n", self.switch, "-s", "-j", "qdisc", "show", "dev", port, "root"]
            done = subprocess.run(argv, check=True, capture_output=True, text=True)
            total += sum(int(qdisc["drops"]) for qdisc in json.loads(done.stdout))
        return total

    def partition(self, *groups: list[str]) -> Fault:
        """Hosts of one group reach each other and nobody else; hosts not named stay with the
        first group."""
        lines = []
        for number, group in enumerate(groups[1:], start=1):
            for wire in sorted({wire for host in group for wire in self.ports[host].values()}):
                # A wire of its own for the part that is cut off.
                lines.append(
                    f"link add {cut_name(wire, number)} mtu 65535 type bridge stp_state 0 "
                    "forward_delay 0 mcast_snooping 0"
                )
                lines.append(f"link set {cut_name(wire, number)} up")
            lines += [
                f"link set {port} master {cut_name(wire, number)}"
                for host in group
                for port, wire in self.ports[host].items()
            ]
        ip(*lines, netns=self.switch)
        return Fault(lambda: self._heal(groups))

    def _heal(self, groups: tuple[list[str], ...]) -> None:
        moved = [
            f"link set {port} master {wire}"
            for group in groups[1:]
            for host in group
            for port, wire in self.ports[host].items()
        ]
        cuts = {
            cut_name(wire, number)
            for number, group in enumerate(groups[1:], start=1)
            for host in group
            for wire in self.ports[host].values()
        }
        ip(*moved, *(f"link del {name}" for name in sorted(cuts)), netns=self.switch)

    def _each(self, host: str, line: str, *, program: str = "ip") -> None:
        lines = [line.format(port=port) for port in self.ports[host]]
        ip(*lines, netns=self.switch, program=program)


def cut_name(wire: str, number: int) -> str:
    return f"{wire[:12]}-{number}"
