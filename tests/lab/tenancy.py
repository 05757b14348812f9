"""What tests of tenants ask of hosts: marks of devices, forged packets, what a tunnel delivers."""

import re
import socket
from dataclasses import replace

from tunsec_lab.host import Host
from tunsec_lab.namespaces import inside
from tunsec_lab.topology import Family, OverlayKind, Topology, load_topology

OTHERS_BIT = 0x4000
"""A bit of the mark that is not tunsec's, whatever its range in these tests."""


PORTS = {OverlayKind.VXLAN: 4789, OverlayKind.GENEVE: 6081}


def tenants_over(family: Family, kind: OverlayKind) -> Topology:
    """The topology `tenants` with its networks of one kind, over one family of the underlay."""
    found = load_topology("tenants")
    overlays = tuple(
        replace(overlay, family=family, kind=kind, port=PORTS[kind]) for overlay in found.overlays
    )
    return replace(found, overlays=overlays)


def address(host: Host, network: str) -> str:
    """A host's address in an overlay."""
    return str(host.overlay_addresses(network)[0])


def device(host: Host, network: str) -> str:
    """A host's device of an overlay."""
    return next(one.device for one in host.lab.overlays_of(host) if one.name == network)


def ifindex(host: Host, name: str) -> int:
    """The number of a device."""
    with inside(host.netns):
        return socket.if_nametoindex(name)


def chain_of(host: Host, name: str) -> str:
    """The chain of the guard that marks what a device sends."""
    return f"netdev tunsec mark.{ifindex(host, name)}"


def mark_of(host: Host, name: str) -> int:
    """What a device's packets bear in tunsec's bits."""
    listing = host.run(["nft", "-y", "list", "chain", *chain_of(host, name).split()]).stdout
    found = re.search(r"meta mark set .*\| (0x[0-9a-f]+)", listing)
    assert found, listing
    return int(found[1], 16)


def send_under(host: Host, name: str, mark: int) -> None:
    """Forge: a device's packets go out by the SAs of another mark. tunsecd must not be running."""
    chain = chain_of(host, name)
    host.nft(f"flush chain {chain}\nadd rule {chain} meta mark set {mark:#x}\n")


def reqids(host: Host) -> dict[int, set[int]]:
    """Mark -> reqids of the SPs that bear it."""
    found: dict[int, set[int]] = {}
    for line in host.run(["ip", "-o", "xfrm", "policy"]).stdout.splitlines():
        mark, reqid = re.search(r"mark (0x[0-9a-f]+)/", line), re.search(r"reqid (\d+)", line)
        if mark and reqid:
            found.setdefault(int(mark[1], 16), set()).add(int(reqid[1]))
    return found


def watch_devices(host: Host, *names: str) -> None:
    """Counts the echo requests that come out of tunnel devices."""
    host.nft(
        "".join(
            f"table netdev witness {{ counter {name} {{ }}; chain {name} {{ "
            f'type filter hook ingress device "{name}" priority 0; '
            f"icmp type echo-request counter name {name}; }}; }};\n"
            for name in names
        )
    )


def came_out(host: Host, name: str) -> int:
    """Echo requests that came out of a device, since the last time that was asked."""
    return packets(host.run(["nft", "reset", "counter", "netdev", "witness", name]).stdout)


def packets(listing: str) -> int:
    """The count of the only counter of a listing."""
    found = re.search(r"packets (\d+)", listing)
    assert found, listing
    return int(found[1])


def watch_others_bit(host: Host) -> None:
    """Counts tunnel packets, sent and received, that bear a bit of somebody else; sets it on what
    comes by ESP."""
    tunnels = f"udp dport {{ {', '.join(map(str, PORTS.values()))} }}"
    bit = f"meta mark & 0xffff == {OTHERS_BIT:#x} counter name"
    host.nft(
        "table inet others { counter sent { }; counter came { };"
        f"chain decrypting {{ type filter hook prerouting priority -400; meta l4proto esp "
        f"meta mark set {OTHERS_BIT:#x}; }};"
        f"chain sending {{ type filter hook output priority 0; {tunnels} {bit} sent; }};"
        f"chain taking {{ type filter hook input priority 0; {tunnels} {bit} came; }}; }};"
    )
