"""Topologies as data, and what is wrong with them."""

from ipaddress import ip_address, ip_interface
from pathlib import Path

import pytest

from tunsec_lab.errors import LabError
from tunsec_lab.topology import FOLDER, Family, OverlayKind, load_topology, parse_topology

GOOD = """
networks: {wire: {mtu: 9000}}
hosts:
  a: {links: {eth0: {network: wire, addresses: [192.0.2.1/24, "2001:db8::1/64"]}}}
  b: {links: {eth0: {network: wire, addresses: [192.0.2.2/24]}}}
overlays:
  red: {kind: geneve, vni: 7, mtu: 1400, members: {a: [10.0.0.1/24], b: [10.0.0.2/24]}}
"""


def test_a_topology_becomes_typed() -> None:
    topology = parse_topology(GOOD, name="good")
    a = topology.host("a")
    assert topology.network("wire").mtu == 9000
    assert a.address(Family.IPV6) == ip_address("2001:db8::1")
    assert topology.host("b").address(Family.IPV6) is None
    (red,) = topology.overlays
    assert (red.kind, red.port, red.device, red.family) == (
        OverlayKind.GENEVE,
        6081,
        "gnv7",
        Family.IPV4,
    )
    assert red.members["b"] == (ip_interface("10.0.0.2/24"),)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_topology_of_the_lab_loads(path: Path) -> None:
    topology = load_topology(path.stem)
    assert topology == load_topology(path)
    assert len(topology.hosts) >= 2


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("{network: wire", "{network: air", "links.eth0.network: there is no network air"),
        ("mtu: 9000", "mtu: 12", "12 is not a number from 1280"),
        ("mtu: 9000", "mtu: 9000, colour: red", "unknown keys colour"),
        ("kind: geneve", "kind: gre", "overlays.red.kind: 'gre'"),
        ("vni: 7", "vni: 16777216", "overlays.red.vni: 16777216 is not"),
        ("vni: 7, ", "", "overlays.red: vni is missing"),
        ("mtu: 1400", "mtu: 1400, family: ipv6", "members.b: no such host with an ipv6 address"),
        ("b: [10.0.0.2/24]}", "c: [10.0.0.2/24]}", "members.c: no such host"),
        ("b: [10.0.0.2/24]}", "b: [10.0.0.2]}", "lacks its prefix length"),
        (", b: [10.0.0.2/24]}", "}", "needs two or more"),
        ("a: {links: {eth0", "a: {links: {eth0-to-the-wire", "no name for a network device"),
        ("networks:", "wires:", "networks is missing"),
        ("hosts:", "hosts: []\nx:", "expected a mapping"),
        ("hosts:", "hosts: {", "is not YAML"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_its_place(old: str, new: str, message: str) -> None:
    assert old in GOOD
    with pytest.raises(LabError, match=message):
        parse_topology(GOOD.replace(old, new, 1), name="bad")


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(LabError, match="two-hosts"):
        load_topology("nine-hosts")
