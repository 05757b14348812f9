"""What an SP or SA applies to (struct xfrm_selector, include/uapi/linux/xfrm.h)."""

import functools
import ipaddress
from dataclasses import dataclass
from typing import Final

from tunsec.model.names import Network

ICMP: Final = 1
TCP: Final = 6
UDP: Final = 17
ESP: Final = 50
ICMPV6: Final = 58


@dataclass(frozen=True, slots=True, order=True)
class PortMatch:
    """A port under a mask, both 16 bits in host order; mask 0 is any port."""

    port: int
    mask: int = 0xFFFF

    def __str__(self) -> str:
        if self.mask == 0:
            return "any"
        return str(self.port) if self.mask == 0xFFFF else f"{self.port}/{self.mask:#06x}"


ANY_PORT: Final = PortMatch(0, 0)


@dataclass(frozen=True, slots=True)
class Selector:
    """Source, destination, transport protocol (0 is any) and ports."""

    src: Network
    dst: Network
    proto: int = 0
    sport: PortMatch = ANY_PORT
    dport: PortMatch = ANY_PORT
    ifindex: int = 0
    user: int = 0

    def __hash__(self) -> int:
        """Of what differs mostly: ids are looked up all the time, and hashing a network is slow."""
        ends = int(self.src.network_address), int(self.dst.network_address)
        return hash((*ends, self.proto, self.sport.port, self.dport.port))

    @property
    def version(self) -> int:
        """IP version: 4 or 6."""
        return self.dst.version

    def __str__(self) -> str:
        proto = {0: "any", TCP: "tcp", UDP: "udp"}.get(self.proto, str(self.proto))
        ports = "".join(
            f" {name} {match}"
            for name, match in (("sport", self.sport), ("dport", self.dport))
            if match.mask
        )
        return f"{self.src} -> {self.dst} {proto}{ports}"


@functools.cache
def any_network(version: int) -> Network:
    """0.0.0.0/0 or ::/0."""
    return ipaddress.ip_network("0.0.0.0/0" if version == 4 else "::/0")
