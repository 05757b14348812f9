"""A service address in a lab: it comes to hosts and goes from them, as keepalived has it do."""

import time
from typing import Final

from tunsec_lab.host import Host

VIP: Final = "192.0.2.100"
SERVICES: Final = f"  vip: {{address: {VIP}, owners: [a, b]}}\n"
"""Of a policy: two of three hosts may hold it."""


def comes(host: Host, *others: Host) -> float:
    """The address comes to a host, and others hear where it is; when it came."""
    began = time.monotonic()
    host.ip(f"addr add {VIP}/24 dev eth0")
    announce(host, *others)
    return began


def announce(host: Host, *others: Host) -> None:
    """As by gratuitous ARP, which who moves an address must send."""
    words = host.run(["ip", "-o", "link", "show", "eth0"]).stdout.split()
    mac = words[words.index("link/ether") + 1]
    for other in others:
        other.ip(f"neigh replace {VIP} lladdr {mac} dev eth0 nud reachable")


def goes(host: Host) -> None:
    """The address goes from a host."""
    host.ip(f"addr del {VIP}/24 dev eth0")


def sas_over(host: Host) -> set[tuple[str, str]]:
    """SPIs over the address in a host's kernel, each with the other end."""
    lines = host.run(["ip", "-o", "xfrm", "state"]).stdout.splitlines()
    words = [line.split() for line in lines if VIP in line.split()[:4]]
    return {(line[line.index("spi") + 1], line[1]) for line in words}
