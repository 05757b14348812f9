"""External (collect-metadata) tunnel devices, as administrators give their packets VNI and remote:
by routes with `encap`, or by the VLANs of a bridge, as EVPN has it.
"""

import json
import subprocess
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from tunsec_lab.namespaces import ip

Address = IPv4Address | IPv6Address

HOPS: Final = 64  # Geneve takes what a route says, and that is 0 where it says nothing


def encap_route(
    to: str, device: str, *, mac: str, vni: int, remote: Address, own: str = ""
) -> tuple[str, ...]:
    """Lines of `ip`: an address behind a peer, and its MAC address for good, since an ARP request
    has no route and so no VNI. The device is up, and forgets both when it goes down. `own` is the
    address to send from, where a device has several.
    """
    if remote.version == 4:
        encap = f"ip id {vni} dst {remote} ttl {HOPS}"
    else:
        # Without `csum` there is no UDP checksum, and by default nobody takes that over IPv6.
        encap = f"ip6 id {vni} dst {remote} hoplimit {HOPS} csum"
    return (
        f"neigh replace {to} lladdr {mac} dev {device} nud permanent",
        f"route replace {to} encap {encap} dev {device}{f' src {own}' if own else ''}",
    )


def vlan_bridge(
    netns: str, name: str, device: str, *, vnis: Mapping[int, int], remote: Address
) -> None:
    """A VLAN-aware bridge whose VLANs go over an external VXLAN device, each by its VNI (`vnis`).
    What they flood goes to one remote, of the IP version that the device's local address has.
    """
    ip(
        f"link add {name} type bridge vlan_filtering 1 vlan_default_pvid 0",
        f"link set {device} master {name}",
        f"link set {name} up",
        netns=netns,
    )
    lines = [f"link set dev {device} vlan_tunnel on"]
    for vid, vni in vnis.items():
        lines += [
            f"vlan add dev {device} vid {vid}",
            f"vlan add dev {device} vid {vid} tunnel_info id {vni}",
            f"fdb append 00:00:00:00:00:00 dev {device} dst {remote} src_vni {vni}",
        ]
    ip(*lines, netns=netns, program="bridge")


def join_vlan(netns: str, bridge: str, port: str, *, vid: int) -> None:
    """A device of a tenant's becomes a port of the bridge; all that it sends is of one VLAN."""
    ip(f"link set {port} master {bridge}", netns=netns)
    ip(f"vlan add dev {port} vid {vid} pvid untagged", netns=netns, program="bridge")


def macs_of(netns: str) -> dict[str, str]:
    """MAC addresses of the devices there."""
    command = ["ip", "-n", netns, "-j", "link"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return {str(link["ifname"]): str(link.get("address", "")) for link in json.loads(done.stdout)}
