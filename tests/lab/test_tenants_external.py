"""Tenants behind one `external` (collect-metadata) device, whose packets bear a VNI each."""

import json
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.lab import tenancy
from tests.lab.tenancy import address, came_out, device, mark_of
from tests.lab.test_tenants import crossed, nobody_repairs, sent_by, spis_of
from tests.lab.tunnel_keys import tunnel_keys
from tunsec_lab.capture import LeakWatch
from tunsec_lab.cluster import Cluster
from tunsec_lab.host import Host, Lab
from tunsec_lab.packets import protect

pytestmark = pytest.mark.needs("esp-ipv4", "esn", "vxlan", "geneve", "nft-netdev-egress")

FLOWS = (
    "  overlay: {kind: vxlan, between: all, tenants: {red: 41, blue: 42}}\n"
    "  backbone: {kind: geneve, between: all, tenants: {green: 51}, other_tenants: shared}\n"
)
NETWORKS = {"vxe": {41: "red", 42: "blue", 43: "grey"}, "gne": {51: "green", 53: "white"}}
"""What a's two devices send for; b has a device for each VNI."""


def at(host: Host, vni: int) -> str:
    """A host's address in the network of a VNI."""
    return f"10.{vni}.0.{1 if host.name == 'a' else 2}"


@pytest.fixture
def lab() -> Iterator[Lab]:
    """Two hosts, all devices down: b's with a VNI each, and `vxe` and `gne` at a."""
    with Lab("tenants", overlays_up=False) as made:
        yield made


def make_devices(lab: Lab) -> None:
    """a's own devices give way to two external ones; nobody has to ask for a MAC address."""
    a, b = lab.hosts.values()
    a.ip(*(f"link del {device(a, network)}" for network in NETWORKS["vxe"].values()))
    b.ip(*(f"link add gn{vni} type geneve id {vni} remote {a.ipv4}" for vni in NETWORKS["gne"]))
    b.ip(*(f"addr add {at(b, vni)}/24 dev gn{vni}" for vni in NETWORKS["gne"]))
    a.ip("link add vxe type vxlan external dstport 4789", "link add gne type geneve external")
    for name, vnis in NETWORKS.items():
        kind = "vx" if name == "vxe" else "gn"
        for vni in vnis:
            a.ip(
                f"addr add {at(a, vni)}/24 dev {name}",
                f"neigh add {at(b, vni)} lladdr {mac(b, f'{kind}{vni}')} dev {name} nud permanent",
            )
            b.ip(
                f"link set {kind}{vni} addrgenmode none mtu 1380",
                f"neigh add {at(a, vni)} lladdr {mac(a, name)} dev {kind}{vni} nud permanent",
            )
        a.ip(f"link set {name} addrgenmode none mtu 1380")


def raise_devices(lab: Lab, state: str) -> None:
    """All of them, up or down."""
    a, b = lab.hosts.values()
    a.ip(*(f"link set {name} {state}" for name in NETWORKS))
    for name, vnis in NETWORKS.items():
        b.ip(*(f"link set {'vx' if name == 'vxe' else 'gn'}{vni} {state}" for vni in vnis))


def mac(host: Host, name: str) -> str:
    """The MAC address of a device."""
    [found] = json.loads(host.run(["ip", "-j", "link", "show", "dev", name]).stdout)
    return str(found["address"])


def silent(a: Host, b: Host, name: str, vni: int) -> bool:
    """Whether nothing that a sends for a VNI comes out at b."""
    came_out(b, name)
    return a.ping(at(b, vni), count=3, wait=0.2).received == came_out(b, name) == 0


def test_each_vni_of_an_external_device_has_its_tenants_keys(lab: Lab) -> None:
    a, b = lab.hosts.values()
    with (
        LeakWatch(lab, protected=[protect("vxlan"), protect("geneve")]) as watch,
        ExitStack() as up,
    ):
        watch.prove_sees(lab.speak_over_overlays)
        make_devices(lab)
        for name, vnis in NETWORKS.items():
            keys = {f"10.{vni}.0.0/24": vni for vni in vnis}
            folder = lab.folder / f"keys-{name}"
            up.enter_context(tunnel_keys(a, name, folder, remote=str(b.ipv4), vnis=keys))
        cluster = Cluster(lab, flows=FLOWS)
        cluster.start_all()
        raise_devices(lab, "up")
        tenancy.watch_devices(b, "vx41", "vx42", "vx43")
        seen = {
            vni: sent_by(watch, a, at(b, vni)) & spis_of(cluster, a, tenant)
            for vni, tenant in {41: "red", 42: "blue", 51: "green", 53: None}.items()
        }
        assert all(len(spis) == 1 for spis in seen.values())
        assert len(set().union(*seen.values())) == 4
        assert silent(a, b, "vx43", 43)
        what_is_forged_is_not_taken(cluster)
        what_others_do_to_filters_is_put_right(cluster)
        raise_devices(lab, "down")
        watch.assert_closed()
        cluster.client(a).release(None)
        for name in NETWORKS:
            filters = a.run(["tc", "filter", "show", "dev", name, "egress"]).stdout
            assert "skbedit" not in filters
            assert "bpf" in filters, "another program's filters stay"


def what_is_forged_is_not_taken(cluster: Cluster) -> None:
    """b sends blue's packets by red's SAs to a device that takes both."""
    a, b = cluster.lab.hosts.values()
    with nobody_repairs(cluster, b):
        before = crossed(cluster, a)
        tenancy.send_under(b, device(b, "blue"), mark_of(b, device(b, "red")))
        assert b.ping(address(a, "blue"), count=3, wait=0.1).received == 0
        assert crossed(cluster, a) == before + 3


def what_others_do_to_filters_is_put_right(cluster: Cluster) -> None:
    """Without its filters the device's packets have no tenant: blocked, until they are back."""
    a, b = cluster.lab.hosts.values()
    with nobody_repairs(cluster, a):
        a.run(["tc", "filter", "del", "dev", "vxe", "egress", "pref", "21588"])
        assert silent(a, b, "vx41", 41)
        assert a.ping(at(b, 51), count=3).lost == 0
    assert a.ping(at(b, 41), count=3).lost == 0
