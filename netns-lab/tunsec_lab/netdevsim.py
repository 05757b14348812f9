"""NICs that the kernel simulates (netdevsim): two of them with a cable between, in two hosts.

They take SAs for crypto offload, for rfc4106(gcm(aes)) with 32-bit sequence numbers, and count
the packets that the kernel hands over. They encrypt nothing: what an offloaded SA sends leaves with
its ESP header and its payload in clear, and the peer's kernel refuses it
(drivers/net/netdevsim/ipsec.c).
"""

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tunsec_lab.host import Host
from tunsec_lab.namespaces import inside

BUS: Final = Path("/sys/bus/netdevsim")
DEBUG: Final = Path("/sys/kernel/debug/netdevsim")


@dataclass(frozen=True)
class Nic:
    """One simulated NIC in a host, up and without addresses."""

    host: Host
    name: str
    number: int

    @property
    def ipsec(self) -> str:
        """What its driver says of the SAs that it carries."""
        return (DEBUG / f"netdevsim{self.number}/ports/0/ipsec").read_text()

    @property
    def sas(self) -> int:
        """SAs that it carries."""
        return int(re.findall(r"SA count=(\d+)", self.ipsec)[0])

    @property
    def handed_over(self) -> int:
        """Packets that the kernel gave it to encrypt."""
        return int(re.findall(r"tx=(\d+)", self.ipsec)[0])

    def unplug(self) -> None:
        """The device goes."""
        (BUS / "del_device").write_text(str(self.number))


@contextmanager
def cabled(one: Host, other: Host, *, name: str = "nic0") -> Iterator[tuple[Nic, Nic]]:
    """A NIC in each host; what one sends the other receives."""
    nics = (_make(one, name, 1), _make(other, name, 2))
    with ExitStack() as stack:
        ends = []
        for nic in nics:
            file = stack.enter_context(Path(f"/run/netns/{nic.host.netns}").open())
            link = json.loads(nic.host.run(["ip", "-j", "link", "show", name]).stdout)[0]
            ends.append(f"{file.fileno()}:{link['ifindex']}")
        (BUS / "link_device").write_text(" ".join(ends))
    try:
        yield nics
    finally:
        for nic in nics:
            if (BUS / f"devices/netdevsim{nic.number}").exists():
                nic.unplug()


def _make(host: Host, name: str, number: int) -> Nic:
    before = _links(host)
    with inside(host.netns):
        (BUS / "new_device").write_text(f"{number} 1")
    (made,) = _links(host) - before
    host.ip(f"link set {made} down", f"link set {made} name {name}", f"link set {name} up")
    return Nic(host, name, number)


def _links(host: Host) -> set[str]:
    return {link["ifname"] for link in json.loads(host.run(["ip", "-j", "link"]).stdout)}
