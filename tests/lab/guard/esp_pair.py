"""Two hosts with a tunnel between them and ESP by hand: the plainest thing a guard must let pass.

Addresses are documentation ones; keys are drawn for each pair.
"""

import ipaddress
import json
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.namespaces import inside, missing_capability, named_namespaces, private_namespace, run
from tunsec.adapters.nft import NftGuard
from tunsec.model.flow import Kind
from tunsec.model.guard import Guard, GuardDrops, GuardedFlow, TunnelDevice
from tunsec.model.names import Address, FlowName, Mark
from tunsec.model.selector import UDP

MARK = Mark(0x10000, 0x10000)
FLOW = FlowName("overlay")
PORTS = {Kind.VXLAN: 4789, Kind.GENEVE: 6081}
AEADS = {
    "rfc4106(gcm(aes))": 20,
    "rfc7539esp(chacha20,poly1305)": 36,
}
UNDERLAY = {4: ("192.0.2.1", "192.0.2.2", 24), 6: ("2001:db8::1", "2001:db8::2", 64)}
OVERLAY = ("10.9.0.1", "10.9.0.2")


@dataclass(frozen=True)
class Host:
    """One of the two, living in a namespace of its name."""

    name: str
    local: Address
    remote: Address
    kind: Kind
    overlay: str

    def run(self, command: str, *, check: bool = True) -> str:
        """A command inside the host."""
        return run(f"ip netns exec {self.name} {command}", check=check)

    def guard(self, *, tunnel_only: bool = True, strangers_blocked: bool = True) -> Guard:
        """What tunsec would ask of the guard table here."""
        flow = GuardedFlow(
            *(FLOW, self.kind, UDP, (PORTS[self.kind],), False),
            peers=frozenset({self.remote}),
            tunnel_only=tunnel_only,
            strangers_blocked=strangers_blocked,
        )
        found = json.loads(run(f"ip -n {self.name} -j link show"))
        devices = tuple(
            TunnelDevice(link["ifname"], int(link["ifindex"]), self.kind, PORTS[self.kind])
            for link in found
            if link["ifname"].startswith("tun")
        )
        return Guard((flow,), devices, MARK)

    def put_guard(self, *, tunnel_only: bool = True, strangers_blocked: bool = True) -> None:
        """Have the guard in force."""
        wanted = self.guard(tunnel_only=tunnel_only, strangers_blocked=strangers_blocked)
        with inside(self.name):
            NftGuard().put(wanted)

    def drops(self) -> GuardDrops:
        """What the guard dropped."""
        with inside(self.name):
            return NftGuard().drops()[FLOW]

    def reaches(self, address: str, *options: str) -> bool:
        """Whether three pings all come back, with neighbours asked for anew: one that did not
        answer before is asked again only after a second."""
        self.run("ip neigh flush dev tun0")
        said = self.run(f"ping -c 3 -i 0.2 -W 1 {' '.join(options)} {address}", check=False)
        return " 3 received" in said

    def counter(self, name: str) -> int:
        """One of the kernel's SNMP counters."""
        found = re.search(rf"^{name} +(\d+)", self.run(f"nstat -asz {name}"), re.MULTILINE)
        assert found, name
        return int(found[1])

    def unprotect(self, direction: str) -> None:
        """Take the SP of one direction away."""
        src, dst = (self.local, self.remote) if direction == "out" else (self.remote, self.local)
        port = PORTS[self.kind]
        self.run(f"ip xfrm policy del src {src} dst {dst} proto udp dport {port} dir {direction}")


@contextmanager
def esp_pair(
    kind: Kind, version: int, *, mtu: int = 1500, aead: str = "rfc4106(gcm(aes))", extra: str = ""
) -> Iterator[tuple[Host, Host]]:
    """Hosts ga and gb, their underlay of one IP version and MTU, a tunnel device `tun0` on each
    (`extra` are more options of it), transport-mode ESP in both directions; no guard yet."""
    first, second, prefix = UNDERLAY[version]
    with named_namespaces("ga", "gb"):
        run("ip -n ga link add u0 type veth peer name u0 netns gb")
        hosts = tuple(
            Host(name, ipaddress.ip_address(local), ipaddress.ip_address(remote), kind, overlay)
            for name, local, remote, overlay in (
                ("ga", first, second, OVERLAY[0]),
                ("gb", second, first, OVERLAY[1]),
            )
        )
        for host in hosts:
            run(f"ip -n {host.name} -batch -", stdin=_links(host, prefix, mtu, extra))
        _protect(hosts, aead)
        yield hosts[0], hosts[1]


def missing_esp() -> str | None:
    """Why there can be no ESP here, or None when there can."""
    missing = missing_capability()
    if missing:
        return missing
    with private_namespace():
        key = f"0x{secrets.token_hex(20)}"
        run(
            "ip xfrm state add src 192.0.2.1 dst 192.0.2.2 proto esp spi 256 mode transport "
            f"aead rfc4106(gcm(aes)) {key} 128",
            check=False,
        )
        found = "spi" in run("ip xfrm state", check=False)
    return None if found else "the kernel has no ESP"


def _links(host: Host, prefix: int, mtu: int, extra: str) -> str:
    nodad = " nodad" if host.local.version == 6 else ""
    tunnel = (
        f"vxlan id 9 dstport 4789 local {host.local}"
        if host.kind is Kind.VXLAN
        else "geneve id 9 dstport 6081"
    )
    return (
        f"addr add {host.local}/{prefix} dev u0{nodad}\n"
        f"link set u0 mtu {mtu} addrgenmode none up\n"
        f"link add tun0 type {tunnel} remote {host.remote} {extra}\n"
        "link set tun0 mtu 1396 addrgenmode none up\n"
        f"addr add {host.overlay}/24 dev tun0\n"
    )


def _protect(hosts: tuple[Host, ...], aead: str) -> None:
    states = []
    for spi, host in enumerate(hosts, start=0x1000):
        key = f"0x{secrets.token_hex(AEADS[aead])}"
        states.append(
            f"xfrm state add src {host.local} dst {host.remote} proto esp spi {spi} mode transport "
            f"replay-window 128 flag esn aead {aead} {key} 128\n"
        )
    for host in hosts:
        policies = "".join(
            f"xfrm policy add src {src} dst {dst} proto udp dport {PORTS[host.kind]} dir {way} "
            f"tmpl src {src} dst {dst} proto esp mode transport\n"
            for way, src, dst in (
                ("out", host.local, host.remote),
                ("in", host.remote, host.local),
            )
        )
        run(f"ip -n {host.name} -batch -", stdin="".join(states) + policies)
