"""Tenants of one host pair, each with SAs of its own: nobody else's key reads or injects."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from tests.lab import tenancy
from tests.lab.tenancy import address, came_out, device, mark_of
from tests.lab.watched import watched
from tunsec.wire.control import PolicyBody
from tunsec_lab.capture import LeakWatch
from tunsec_lab.cluster import Cluster
from tunsec_lab.host import Host, Lab
from tunsec_lab.namespaces import ip
from tunsec_lab.probe import Probe
from tunsec_lab.topology import Family, OverlayKind

pytestmark = pytest.mark.needs(
    "esp-ipv4", "esp-ipv6", "esn", "vxlan", "geneve", "bridge", "nft-inet", "nft-netdev-egress"
)

TENANTS = "red: 41, blue: 42"
MARKS = {Family.IPV4: "", Family.IPV6: "marks: {bits: 16-19}\n"}
"""The default range, and another one."""
NETWORKS = ("red", "blue", "grey")


@pytest.fixture
def lab(family: Family, kind: OverlayKind) -> Iterator[Lab]:
    """Two hosts with three networks, two of which are tenants'; devices are down."""
    with Lab(tenancy.tenants_over(family, kind), overlays_up=False) as made:
        yield made


def policy(cluster: Cluster, family: Family, *, tenants: str = TENANTS, others: str = "") -> str:
    """A policy for both hosts with these tenants; `others` is what becomes of further VNIs."""
    rest = f", other_tenants: {others}" if others else ""
    kind = cluster.lab.topology.overlays[0].kind
    flow = f"  overlay: {{kind: {kind}, between: all, tenants: {{{tenants}}}{rest}}}\n"
    return MARKS[family] + cluster.policy(flows=flow)


def begin(lab: Lab, family: Family, *, keying: str) -> Cluster:
    """Daemons on both hosts, red and blue protected, all devices up."""
    cluster = Cluster(lab, defaults=f"  {{keying: {keying}}}\n")
    cluster.policy_file.write_text(policy(cluster, family))
    for host in lab.hosts.values():
        if keying == "ike":
            cluster.start_charon(host)
    cluster.start_all()
    for host in lab.hosts.values():
        client = cluster.client(host)
        while any(flow.state != "INSTALLED" for flow in client.status().flows):
            client.status(wait=1.0)  # SPIs stay as they are from then on
        host.raise_overlays()
        host.ip(f"link set {device(host, 'red')} addrgenmode none")
        tenancy.watch_devices(host, *(device(host, name) for name in NETWORKS))
    return cluster


def apply(cluster: Cluster, text: str) -> None:
    """Another policy on every host, and everything of it protected."""
    for host in cluster.lab.hosts.values():
        cluster.client(host).apply(PolicyBody(text, "next.yaml"))
    cluster.wait_protected()


def reaches(one: Host, other: Host, network: str) -> bool:
    """Whether five of five pings are answered over a network."""
    one.ip("neigh flush all")
    return one.ping(address(other, network), count=5).lost == 0


def silent(one: Host, other: Host, network: str) -> bool:
    """Whether nothing at all of a network comes out at the other end."""
    one.ip("neigh flush all")
    came_out(other, device(other, network))
    answered = one.ping(address(other, network), count=3, wait=0.2).received
    return answered == came_out(other, device(other, network)) == 0


def sent_by(watch: LeakWatch, host: Host, to: str, *, through: Host | None = None) -> set[int]:
    """SPIs of what a host sends while it, or a namespace behind it, speaks to an address."""
    before = watch.report().esp_flows
    assert (through or host).ping(to, count=5).lost == 0
    after = watch.report().esp_flows
    return {
        flow.spi
        for flow, count in after.items()
        if flow.src in host.addresses and count >= before.get(flow, 0) + 5
    }


def spis_of(cluster: Cluster, host: Host, tenant: str | None) -> set[int]:
    """SPIs that status names for what a host sends of a tenant, over both families."""
    flows = cluster.status(host).flows
    return {int(flow.spi_out or "", 16) for flow in flows if flow.tenant == tenant}


@contextmanager
def nobody_repairs(cluster: Cluster, *hosts: Host) -> Iterator[None]:
    """tunsecd stands still; afterwards it has put right what was done meanwhile."""
    counted = {host.name: cluster.status(host).drift.guard for host in hosts}
    for host in hosts:
        cluster.daemons[host.name].freeze()
    try:
        yield
    finally:
        for host in hosts:
            cluster.daemons[host.name].thaw()
    for host in hosts:
        client = cluster.client(host)
        while cluster.status(host).drift.guard == counted[host.name]:
            client.status(wait=1.0)


def crossed(cluster: Cluster, host: Host) -> int:
    """Packets of one tenant with another's VNI that a host has dropped."""
    return cluster.status(host).guard.drops["overlay"].cross_tenant


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("family", "keying", "kind"),
    [
        (Family.IPV4, "directory", OverlayKind.VXLAN),
        (Family.IPV6, "ike", OverlayKind.GENEVE),
        pytest.param(Family.IPV4, "ike", OverlayKind.VXLAN, marks=pytest.mark.long),
        pytest.param(Family.IPV6, "directory", OverlayKind.VXLAN, marks=pytest.mark.long),
        pytest.param(Family.IPV4, "directory", OverlayKind.GENEVE, marks=pytest.mark.long),
    ],
)
def test_each_tenant_has_keys_of_its_own(lab: Lab, family: Family, keying: str) -> None:
    a, b = lab.hosts.values()
    with watched(lab) as watch:
        cluster = begin(lab, family, keying=keying)
        assert reaches(a, b, "red")
        assert reaches(b, a, "blue")
        assert silent(a, b, "grey")
        spis_differ(cluster, watch, tenants=("red", "blue"))
        others_bits_are_left_alone(a, b)
        without_its_sas_only_one_is_blocked(cluster)
        what_is_forged_is_dropped(cluster, carrier="red", victim="blue")
        what_is_forged_is_dropped(cluster, carrier="blue", victim="red")
        what_is_forged_is_dropped(cluster, carrier="red", victim="grey")
        apply(cluster, policy(cluster, family, others="shared"))
        assert reaches(a, b, "grey")
        spis_differ(cluster, watch, tenants=("red", "blue", None))
        what_is_forged_is_dropped(cluster, carrier="grey", victim="red")
        what_is_forged_is_dropped(cluster, carrier="blue", victim="grey")
        with Probe(a, b, to=address(b, "blue"), rate=500) as probe:
            apply(cluster, policy(cluster, family, tenants="blue: 42"))
            assert silent(a, b, "red")
            assert silent(a, b, "grey")
        assert probe.report.lost == 0, probe.report
        for host in (a, b):
            host.lower_overlays()


def spis_differ(cluster: Cluster, watch: LeakWatch, *, tenants: tuple[str | None, ...]) -> None:
    """Whose packet it is can be told by its SPI, and status says which."""
    a, b = cluster.lab.hosts.values()
    for one, other in ((a, b), (b, a)):
        seen = {name: sent_by(watch, one, address(other, name or "grey")) for name in tenants}
        assert all(len(spis) == 1 for spis in seen.values())
        assert all(seen[name] <= spis_of(cluster, one, name) for name in tenants)
        assert len(set().union(*seen.values())) == len(tenants), seen


def others_bits_are_left_alone(a: Host, b: Host) -> None:
    """Marks of other programs: a bit that is set inside of the tunnel is there on the tunnel's
    packets too, and one that was set on ESP packets is there on what comes out of them."""
    for host in (a, b):
        tenancy.watch_others_bit(host)
    bit = str(tenancy.OTHERS_BIT)
    a.run(["ping", "-n", "-q", "-c3", "-i0.01", "-m", bit, address(b, "red")])
    for host, what in ((a, "sent"), (b, "came")):
        listing = host.run(["nft", "list", "counter", "inet", "others", what]).stdout
        assert tenancy.packets(listing) >= 3, what
    for host in (a, b):
        host.nft("delete table inet others\n")


def without_its_sas_only_one_is_blocked(cluster: Cluster) -> None:
    """Red's SAs are gone from the kernel: red is blocked, blue is not; then red has fresh ones."""
    a, b = cluster.lab.hosts.values()
    cluster.daemons["a"].freeze()
    try:
        for reqid in tenancy.reqids(a)[mark_of(a, device(a, "red"))]:
            a.run(["ip", "xfrm", "state", "deleteall", "reqid", str(reqid)])
        assert silent(a, b, "red")
        assert reaches(a, b, "blue")
    finally:
        cluster.daemons["a"].thaw()
    cluster.wait_protected()
    assert reaches(a, b, "red")


def what_is_forged_is_dropped(cluster: Cluster, *, carrier: str, victim: str) -> None:
    """a sends the victim's packets by the SAs of another tenant. Without the rule they come out at
    b's device for the victim; with it they are dropped and counted.

    So is what a's kernel sends by that device meanwhile, such as its answers when b asks, 5 s after
    it last spoke to a, whether a is still there (ARP).
    """
    a, b = cluster.lab.hosts.values()
    there, to = device(b, victim), address(b, victim)
    with nobody_repairs(cluster, a):
        a.ip(f"neigh replace {to} lladdr 02:00:00:00:00:99 dev {device(a, victim)} nud permanent")
        with nobody_repairs(cluster, b):
            tenancy.send_under(a, device(a, victim), mark_of(a, device(a, carrier)))
            b.nft("flush chain inet tunsec input\n")
            came_out(b, there)
            a.ping(to, count=3, wait=0.1)
            assert came_out(b, there) == 3, "without the rule it is delivered"
        before = crossed(cluster, b)
        a.ping(to, count=3, wait=0.1)
        assert came_out(b, there) == 0
        assert crossed(cluster, b) >= before + 3
    a.ip(f"neigh del {to} dev {device(a, victim)}")


@contextmanager
def behind(host: Host, *, link: str, own: str, other: str = "") -> Iterator[Host]:
    """A namespace of a tenant's on a host, with an address on its end of a cable; the host's end,
    `link`, gets the other address where there is one."""
    name = f"{host.netns}-{link}"
    inside = replace(host, name=f"{host.name}-{link}", started=[])
    ip(f"netns add {name}")
    try:
        ip(f"link add {link} netns {host.netns} type veth peer name eth0 netns {name}")
        ip(f"addr add {own} dev eth0", "link set eth0 up", "link set lo up", netns=name)
        if other:
            ip(f"route add default via {other.partition('/')[0]}", netns=name)
            host.ip(f"addr add {other} dev {link}")
        host.ip(f"link set {link} up")
        yield inside
    finally:
        ip(f"netns del {name}")


@pytest.mark.parametrize(("family", "kind"), [(Family.IPV4, OverlayKind.VXLAN)])
def test_bridged_and_routed_traffic_and_more_tenants_under_load(lab: Lab, family: Family) -> None:
    a, b = lab.hosts.values()
    with watched(lab) as watch:
        cluster = begin(lab, family, keying="directory")
        tenants_come_and_go(cluster, family)
        with (
            behind(a, link="bridged", own="10.41.0.101/24") as at_a,
            behind(b, link="bridged", own="10.41.0.102/24"),
            behind(a, link="routed", own="10.77.1.2/24", other="10.77.1.1/24") as beyond,
        ):
            for host in (a, b):
                host.ip("link add br0 type bridge", "link set br0 up")
                host.ip(*(f"link set {one} master br0" for one in (device(host, "red"), "bridged")))
            a.run(["sysctl", "-q", "-w", "net.ipv4.ip_forward=1"])
            b.ip(f"route add 10.77.1.0/24 via {address(a, 'blue')}")
            red = sent_by(watch, a, "10.41.0.102", through=at_a)
            assert red
            assert red <= spis_of(cluster, a, "red")
            blue = sent_by(watch, a, address(b, "blue"), through=beyond)
            assert blue
            assert blue <= spis_of(cluster, a, "blue")
        for host in (a, b):
            host.lower_overlays()


def tenants_come_and_go(cluster: Cluster, family: Family) -> None:
    """More tenants, then one more and one less while a's daemon does not run: those that stay keep
    marks and reqids, and lose nothing."""
    a, b = cluster.lab.hosts.values()
    held = {host.name: tenancy.reqids(host) for host in (a, b)}
    with (
        Probe(a, b, to=address(b, "red"), rate=500, port=9000) as red,
        Probe(b, a, to=address(a, "blue"), rate=500, port=9001) as blue,
    ):
        apply(cluster, policy(cluster, family, tenants=f"aaa: 50, {TENANTS}, grey: 43"))
        assert a.ping(address(b, "grey"), count=5).lost == 0
        cluster.daemons["a"].kill9()
        text = policy(cluster, family, tenants=f"{TENANTS}, grey: 43, zzz: 51")
        cluster.policy_file.write_text(text)
        cluster.start(a)
        cluster.client(b).apply(PolicyBody(text, "next.yaml"))
        cluster.wait_protected()
    assert (red.report.lost, blue.report.lost) == (0, 0), (red.report, blue.report)
    for host in (a, b):
        now = tenancy.reqids(host)
        assert held[host.name].items() <= now.items()
        assert len(now) == 4
