"""Tenants behind `external` (collect-metadata) devices, whose packets bear a VNI each: given by
routes with `encap`, by the VLANs of a bridge, as EVPN has them, and by another program's filter."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial

import pytest

from tests.lab import tenancy
from tests.lab.tenancy import came_out, mark_of
from tests.lab.test_tenants import (
    apply,
    behind,
    crossed,
    nobody_repairs,
    sent_by,
    spis_of,
)
from tunsec_lab.capture import LeakWatch
from tunsec_lab.cluster import Cluster
from tunsec_lab.external import encap_route, join_vlan, macs_of, vlan_bridge
from tunsec_lab.host import Host, Lab
from tunsec_lab.namespaces import ip
from tunsec_lab.packets import protect
from tunsec_lab.topology import Address, Family, OverlayKind

pytestmark = pytest.mark.needs(
    "esp-ipv4", "esp-ipv6", "esn", "vxlan", "geneve", "bridge", "encap-routes", "vlan-tunnels",
    "tc-vni-marks", "tc-tunnel-keys", "nft-inet", "nft-netdev-egress",
)  # fmt: skip

DEVICES = {
    "overlay": ("vxe", "vxlan", 4789),
    "backbone": ("gne", "geneve", 6081),
    "evpn": ("vxb", "vxlan", 4790),
}
"""By flow: a's external device, its kind and its port."""


@dataclass(frozen=True)
class Network:
    """What one VNI carries: b has a device of its own for it, a the external one of the flow.

    `own` is the address of who is in it at a, `to` that of b.
    """

    flow: str
    vni: int
    tenant: str | None = None

    @property
    def own(self) -> str:
        return f"10.{self.vni}.0.1"

    @property
    def to(self) -> str:
        return f"10.{self.vni}.0.2"

    @property
    def device(self) -> str:
        """b's."""
        return f"net{self.vni}"


ROUTED = (
    Network("overlay", 41, "red"),
    Network("overlay", 42, "blue"),
    Network("overlay", 43),
    Network("backbone", 51, "red"),
    Network("backbone", 52, "blue"),
    Network("backbone", 53),
)
FILTERED = Network("overlay", 44, "green")
"""Its VNI comes from a filter that is not tunsec's."""
BRIDGED = (Network("evpn", 61, "red"), Network("evpn", 62, "blue"), Network("evpn", 63))
NETWORKS = (*ROUTED, FILTERED, *BRIDGED)


@dataclass(frozen=True)
class Site:
    """Two hosts with all devices, and who speaks in each network at a: a itself, or a namespace
    of the tenant's behind a's bridge. `near` and `far` are the hosts' addresses on the wire."""

    lab: Lab
    near: Address
    far: Address
    members: Mapping[Network, Host]

    def raise_devices(self, networks: Iterable[Network] = NETWORKS) -> None:
        """Devices of these networks are up, with all that goes when one goes down: routes, and
        MAC addresses, so that nobody has to ask."""
        a, b = self.lab.hosts.values()
        macs = {
            name: macs_of(name) for name in {b.netns, *(m.netns for m in self.members.values())}
        }
        for one in networks:
            external, _, _ = DEVICES[one.flow]
            member = self.members[one]
            device = "eth0" if one in BRIDGED else external
            here, there = macs[member.netns][device], macs[b.netns][one.device]
            a.ip(f"link set {external} up")
            if one in ROUTED:
                route = encap_route(
                    one.to, device, mac=there, vni=one.vni, remote=self.far, own=one.own
                )
                member.ip(*route)
            else:
                member.ip(f"neigh replace {one.to} lladdr {there} dev {device} nud permanent")
            b.ip(
                f"link set {one.device} up",
                f"neigh replace {one.own} lladdr {here} dev {one.device} nud permanent",
            )

    def lower_devices(self) -> None:
        """All of them are down."""
        a, b = self.lab.hosts.values()
        a.ip(*(f"link set {device} down" for device, _, _ in DEVICES.values()))
        b.ip(*(f"link set {one.device} down" for one in NETWORKS))

    def speak(self, flow: str) -> None:
        """A first word in each network of a flow, in clear."""
        over = [one for one in NETWORKS if one.flow == flow]
        self.raise_devices(over)
        assert [one for one in over if not self.members[one].reaches(one.to)] == []
        self.lower_devices()

    def silent(self, one: Network) -> bool:
        """Whether nothing that is sent in a network comes out at b."""
        b = self.lab.hosts["b"]
        came_out(b, one.device)
        answered = self.members[one].ping(one.to, count=3, wait=0.2).received
        return answered == came_out(b, one.device) == 0

    def carries(self, one: Network) -> bool:
        """Whether five of five pings are answered in a network."""
        return self.members[one].ping(one.to, count=5).lost == 0


@pytest.fixture
def site(family: Family) -> Iterator[Site]:
    """All devices are there, and down."""
    bare = replace(tenancy.tenants_over(family, OverlayKind.VXLAN), overlays=())
    with Lab(bare) as lab, ExitStack() as stack:
        a, b = lab.hosts.values()
        near, far = (host.ipv4 if family is Family.IPV4 else host.ipv6 for host in (a, b))
        make_devices(a, b, near, far)
        give_filtered_its_vni(a, near, far)
        vids = dict(enumerate(BRIDGED, start=10))
        vnis = {vid: one.vni for vid, one in vids.items()}
        vlan_bridge(a.netns, "br0", "vxb", vnis=vnis, remote=far)
        members = dict.fromkeys(NETWORKS, a)
        for vid, one in vids.items():
            tenant = behind(a, link=f"port{one.vni}", own=f"{one.own}/24")
            members[one] = stack.enter_context(tenant)
            join_vlan(a.netns, "br0", f"port{one.vni}", vid=vid)
        tenancy.watch_devices(b, *(one.device for one in NETWORKS))
        yield Site(lab, near, far, members)


def make_devices(a: Host, b: Host, near: Address, far: Address) -> None:
    """a's external ones, and b's."""
    quiet = "addrgenmode none mtu 1380"
    for device, kind, port in DEVICES.values():
        # Forwarding entries must be of the local address's IP version.
        local = f"local {near} nolearning" if kind == "vxlan" else ""
        a.ip(
            f"link add {device} type {kind} external {local} dstport {port}",
            f"link set {device} {quiet}",
        )
    for one in NETWORKS:
        device, kind, port = DEVICES[one.flow]
        ends = f"local {far} remote {near}" if kind == "vxlan" else f"remote {near}"
        b.ip(
            f"link add {one.device} type {kind} id {one.vni} {ends} dstport {port}",
            f"link set {one.device} {quiet}",
            f"addr add {one.to}/24 dev {one.device}",
        )
        if one in ROUTED:
            a.ip(f"addr add {one.own}/32 dev {device}")
    a.ip(f"addr add {FILTERED.own}/24 dev vxe")


def give_filtered_its_vni(a: Host, near: Address, far: Address) -> None:
    """As another program does it, on a clsact of its own making."""
    key = f"tunnel_key set id {FILTERED.vni} src_ip {near} dst_ip {far} ttl 64"
    ip(
        "qdisc add dev vxe clsact",
        f"filter add dev vxe egress pref 1 protocol ip flower dst_ip {FILTERED.to} "
        f"action {key} continue",
        netns=a.netns,
        program="tc",
    )


def policy(*, evpn: str) -> str:
    """The flows; `evpn` is what becomes of the bridge's VNI without a tenant."""
    others = {"overlay": "blocked", "backbone": "shared", "evpn": evpn}
    lines = []
    for flow, (_, kind, port) in DEVICES.items():
        named = (one for one in NETWORKS if one.flow == flow and one.tenant)
        tenants = ", ".join(f"{one.tenant}: {one.vni}" for one in named)
        rest = f"tenants: {{{tenants}}}, other_tenants: {others[flow]}"
        lines.append(f"  {flow}: {{kind: {kind}, port: {port}, between: all, {rest}}}\n")
    return "".join(lines)


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("family", "keying"),
    [
        (Family.IPV4, "directory"),
        pytest.param(Family.IPV6, "ike", marks=pytest.mark.long),
        pytest.param(Family.IPV4, "ike", marks=pytest.mark.long),
        pytest.param(Family.IPV6, "directory", marks=pytest.mark.long),
    ],
)
def test_each_vni_of_an_external_device_has_its_tenants_keys(site: Site, keying: str) -> None:
    lab = site.lab
    closed = [protect(kind, port=port) for _, kind, port in DEVICES.values()]
    red, blue, grey, _, _, shared = ROUTED
    bridged_red, bridged_blue, bridged_grey = BRIDGED
    with LeakWatch(lab, protected=closed) as watch:
        for flow in DEVICES:
            watch.prove_sees(partial(site.speak, flow))
        cluster = Cluster(lab, flows=policy(evpn="blocked"), defaults=f"  {{keying: {keying}}}\n")
        for host in lab.hosts.values():
            if keying == "ike":
                cluster.start_charon(host)
        cluster.start_all()
        cluster.wait_settled()
        site.raise_devices()
        spis_differ(site, cluster, watch, [one for one in NETWORKS if one.tenant or one is shared])
        assert site.silent(grey)
        assert site.silent(bridged_grey)
        what_is_forged_is_not_taken(site, cluster, carrier=red, victim=blue)
        what_is_forged_is_not_taken(site, cluster, carrier=bridged_blue, victim=bridged_red)
        an_entry_with_another_vni_forges(site, cluster, carrier=bridged_red, victim=bridged_blue)
        what_others_do_to_filters_is_put_right(site, cluster)
        apply(cluster, cluster.policy(flows=policy(evpn="shared")))
        spis_differ(site, cluster, watch, BRIDGED)
        site.lower_devices()
        watch.assert_closed()
        others_keep_their_filter(cluster)


def spis_differ(
    site: Site, cluster: Cluster, watch: LeakWatch, networks: Iterable[Network]
) -> None:
    """Each network's packets go by SAs that status names for it, and for no other one."""
    a = site.lab.hosts["a"]
    seen = {
        one: sent_by(watch, a, one.to, through=site.members[one])
        & spis_of(cluster, a, one.tenant, flow=one.flow)
        for one in networks
    }
    assert all(len(spis) == 1 for spis in seen.values()), seen
    assert len(set().union(*seen.values())) == len(seen), seen


def what_is_forged_is_not_taken(
    site: Site, cluster: Cluster, *, carrier: Network, victim: Network
) -> None:
    """b sends the victim's packets by another tenant's SAs to a device that takes both. Without
    the rule they are answered."""
    a, b = site.lab.hosts.values()
    with nobody_repairs(cluster, b):
        tenancy.send_under(b, victim.device, mark_of(b, carrier.device))
        with nobody_repairs(cluster, a):
            a.nft("flush chain inet tunsec input\n")
            assert b.ping(victim.own, count=3).lost == 0, "without the rule it is delivered"
        before = crossed(cluster, a, carrier.flow)
        assert b.ping(victim.own, count=3, wait=0.1).received == 0
        assert crossed(cluster, a, carrier.flow) >= before + 3


def an_entry_with_another_vni_forges(
    site: Site, cluster: Cluster, *, carrier: Network, victim: Network
) -> None:
    """A forwarding entry sends a VLAN's packets with a VNI that is not the VLAN's: they go by the
    SAs of the VLAN's tenant, and b drops them."""
    a, b = site.lab.hosts.values()
    mac = macs_of(b.netns)[carrier.device]
    entry = f"{mac} dev vxb dst {site.far} src_vni {carrier.vni} vni {victim.vni}"
    ip(f"fdb add {entry}", netns=a.netns, program="bridge")
    with nobody_repairs(cluster, b):
        b.nft("flush chain inet tunsec input\n")
        came_out(b, victim.device)
        site.members[carrier].ping(carrier.to, count=3, wait=0.1)
        assert came_out(b, victim.device) == 3, "without the rule it is delivered"
    before = crossed(cluster, b, carrier.flow)
    site.members[carrier].ping(carrier.to, count=3, wait=0.1)
    assert came_out(b, victim.device) == 0
    assert crossed(cluster, b, carrier.flow) >= before + 3
    ip(f"fdb del {entry}", netns=a.netns, program="bridge")


def what_others_do_to_filters_is_put_right(site: Site, cluster: Cluster) -> None:
    """Without its filters a device's packets have no tenant: blocked, until they are back."""
    a = site.lab.hosts["a"]
    red, _, _, other, _, _ = ROUTED
    bridged, _, _ = BRIDGED
    with nobody_repairs(cluster, a):
        for device in ("vxe", "vxb"):
            a.run(["tc", "filter", "del", "dev", device, "egress", "pref", "21588"])
        assert site.silent(red)
        assert site.silent(bridged)
        assert site.carries(other)
    assert site.carries(red)
    assert site.carries(bridged)


def others_keep_their_filter(cluster: Cluster) -> None:
    """When all is released, ours are gone."""
    a = cluster.lab.hosts["a"]
    cluster.client(a).release(None)
    listings = {
        device: a.run(["tc", "filter", "show", "dev", device, "egress"]).stdout
        for device, _, _ in DEVICES.values()
    }
    assert not any("skbedit" in listing for listing in listings.values())
    assert "tunnel_key" in listings["vxe"]
