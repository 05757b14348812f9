"""A hop on the way takes smaller packets than the hosts' own links: what becomes of full-size
packets, with and without the router's word, and what status says."""

import json
import socket
from collections.abc import Iterator
from functools import partial

import pytest

from tunsec_lab.capture import LeakWatch
from tunsec_lab.cluster import Cluster
from tunsec_lab.host import Host, Lab
from tunsec_lab.namespaces import inside, set_sysctls
from tunsec_lab.packets import protect
from tunsec_lab.rds import RdsTalk

pytestmark = pytest.mark.needs(
    "esp-ipv4", "esp-ipv6", "esn", "vxlan", "geneve", "nft-inet", "nft-netdev-egress"
)

FLOWS = """\
  overlay: {kind: vxlan, between: [a, b]}
  backbone: {kind: geneve, between: [a, b]}
"""
NAMED = """\
  bus: {kind: rds-tcp, between: [a, b]}
  copy: {kind: tcp, port: 5201, between: [a, b]}
  feed: {kind: udp, port: 7100, between: [a, b]}
"""
"""Of programs and of RDS: their sockets send what fills the wire."""
FEED = 7100
FULL = {4: 1416, 6: 1396}
"""What the hosts' own links let a tunnel device have."""
FITS = {4: 1316, 6: 1296}
"""What the far wire, of 1400 bytes, lets it have."""
HEADERS = 28
DEVICES = {"vx41": (4, "10.41.0.2"), "vx42": (6, "10.42.0.2")}
DEVICES |= {"gnv61": (4, "10.61.0.2"), "gnv62": (6, "10.62.0.2")}
SILENT = (
    "table inet silent { chain out { type filter hook output priority 0; "
    "icmpv6 type packet-too-big drop; icmp type destination-unreachable drop; }; }"
)


@pytest.fixture
def lab() -> Iterator[Lab]:
    """a and b know the way to each other, over r."""
    with Lab("routed", overlays_up=False) as made:
        a, b, r = made.hosts.values()
        know_the_way(a, b)
        with inside(r.netns):
            set_sysctls([("net/ipv4/ip_forward", "1"), ("net/ipv6/conf/all/forwarding", "1")])
        yield made


def know_the_way(a: Host, b: Host) -> None:
    """Over r."""
    a.ip("route add 198.51.100.0/24 via 192.0.2.1", "route add 2001:db8:1::/64 via 2001:db8::1")
    b.ip("route add 192.0.2.0/24 via 198.51.100.1", "route add 2001:db8::/64 via 2001:db8:1::1")


def arrives(a: Host, device: str, *, mtu: int, count: int = 3) -> bool:
    """Whether pings that fill a packet of this size are answered."""
    found = a.ping(DEVICES[device][1], count=count, size=mtu - HEADERS, wait=0.5)
    return found.received == count


def speak_in_clear(a: Host, b: Host) -> None:
    """Over every device, which is down again then."""
    for host in (a, b):
        host.raise_overlays()
    assert all(a.reaches(to, wait=5.0) for _, to in DEVICES.values())
    for host in (a, b):
        host.lower_overlays()


def test_a_smaller_hop_with_and_without_the_routers_word(lab: Lab) -> None:
    a, b, r = lab.hosts.values()
    with LeakWatch(lab, protected=[protect("vxlan"), protect("geneve")]) as watch:
        watch.prove_sees(lambda: speak_in_clear(a, b))
        cluster = Cluster(lab, flows=FLOWS)
        for host in (a, b):
            cluster.start(host)
            host.raise_overlays()
        for host in (a, b):
            assert cluster.client(host).wait(None, 20).protected
        assert_a_black_hole(cluster, r)
        assert_the_routers_word_is_heard(cluster, r)
        watch.assert_closed()


def assert_a_black_hole(cluster: Cluster, r: Host) -> None:
    """The router says nothing: over IPv4 it cuts ESP to pieces, over IPv6 large packets are lost.
    Nothing on a can tell; b's own link can."""
    a, b = cluster.lab.hosts["a"], cluster.lab.hosts["b"]
    r.nft(SILENT)
    for device, (version, _) in DEVICES.items():
        assert arrives(a, device, mtu=FITS[version])
        assert arrives(a, device, mtu=FULL[version], count=1) is (version == 4)
    assert cluster.status(a).warnings == ()
    assert_told(cluster, b)
    r.nft("delete table inet silent")


def assert_the_routers_word_is_heard(cluster: Cluster, r: Host) -> None:
    """a's kernel learns the MTU of the way, over IPv6; status advises by it, and what it advises
    arrives, also once the router is silent again."""
    a, b = cluster.lab.hosts["a"], cluster.lab.hosts["b"]
    for device, (version, _) in DEVICES.items():
        if version == 6:
            arrives(a, device, mtu=FULL[version], count=1)
    learned = cluster.status(a).warnings
    for device, (version, _) in DEVICES.items():
        told = [line for line in learned if line.startswith(f"{device}: ")]
        assert ["mtu 1296" in line for line in told] == [True] * (version == 6), learned
    r.nft(SILENT)
    a.ip("route change 198.51.100.0/24 via 192.0.2.1 mtu 1400")
    assert_told(cluster, a)
    for host in (a, b):
        host.ip(*(f"link set {name} mtu {FITS[version]}" for name, (version, _) in DEVICES.items()))
        assert cluster.status(host).warnings == ()
    for device, (version, _) in DEVICES.items():
        assert arrives(a, device, mtu=FITS[version])
        assert sends_by_tcp(a, b, DEVICES[device][1])


@pytest.mark.needs("rds-tcp")
@pytest.mark.parametrize(
    "silent",
    [
        pytest.param(False, id="the router says so"),
        pytest.param(True, id="silent", marks=pytest.mark.long),
    ],
)
def test_rds_and_programs_get_over_a_smaller_hop(lab: Lab, silent: bool) -> None:
    """With nothing set by hand: what the router says of ESP reaches the sockets. Where it says
    nothing, TCP finds out by itself if the admin lets it."""
    a, b, r = lab.hosts.values()
    protected = [protect("rds-tcp"), protect("tcp", port=5201), protect("udp", port=FEED)]
    with LeakWatch(lab, protected=protected) as watch:
        for speak in (by_tcp, by_udp, by_rds_and_start_anew):
            watch.prove_sees(partial(speak, a, b))
        if silent:
            r.nft(SILENT)
            for host in (a, b):
                with inside(host.netns):
                    set_sysctls([("net/ipv4/tcp_mtu_probing", "1")])
        protect_both(Cluster(lab, flows=NAMED))
        for speak in (by_tcp, by_rds) if silent else (by_udp, by_tcp, by_rds):
            speak(a, b)
        watch.assert_closed()


def protect_both(cluster: Cluster) -> None:
    """Who knows the way, and nobody else."""
    both = [cluster.lab.hosts[name] for name in ("a", "b")]
    for host in both:
        cluster.start(host)
    for host in both:
        assert cluster.client(host).wait(None, 20).protected


def by_rds_and_start_anew(a: Host, b: Host) -> None:
    """RDS keeps its connections and speaks on them by itself, until its host is gone; routes keep
    what they have learned."""
    by_rds(a, b)
    for host in (a, b):
        host.destroy()
    for host in (a, b):
        host.recreate()
    know_the_way(a, b)


def by_rds(a: Host, b: Host) -> None:
    """A byte and a MiB from a, which b sends back."""
    for version in (4, 6):
        with RdsTalk(a, b, version=version, sizes=(1, 1 << 20)) as talk:
            talk.wait()


def by_tcp(a: Host, b: Host) -> None:
    """A MiB over either family."""
    for to in (b.ipv4, b.ipv6):
        assert sends_by_tcp(a, b, str(to)), to


def by_udp(a: Host, b: Host) -> None:
    """Datagrams that a's wire takes whole but not the far one, then larger ones.

    The other way round the kernel would not learn over IPv6: xfrm_interface is in the lab's kernel,
    and takes what a router says of a piece of an ESP packet for nobody's
    (xfrmi6_err, net/xfrm/xfrm_interface_core.c).
    """
    for far, family in ((b.ipv4, socket.AF_INET), (b.ipv6, socket.AF_INET6)):
        with inside(b.netns):
            listening = socket.socket(family, socket.SOCK_DGRAM)
        with inside(a.netns):
            sending = socket.socket(family, socket.SOCK_DGRAM)
        with listening, sending:
            listening.bind((str(far), FEED))
            listening.settimeout(1.0)
            for size in (1400, 4000):
                assert comes(sending, listening, size), f"no datagram of {size} bytes to {far}"


def comes(sending: socket.socket, listening: socket.socket, size: int) -> bool:
    """Whether a datagram gets through. The first ones may be lost until the way is known."""
    for _ in range(5):
        sending.sendto(bytes(size), listening.getsockname())
        try:
            return len(listening.recv(8192)) == size
        except TimeoutError:
            continue
    return False


def sends_by_tcp(a: Host, b: Host, to: str) -> bool:
    """Whether iperf3 from a to b gets through."""
    serving = b.spawn(["iperf3", "-s", "-1", "--forceflush", "-B", to])
    serving.wait_for_line("Server listening")
    done = a.run(["iperf3", "-c", to, "-n", "1M", "--json"], check=False)
    serving.wait()
    end = json.loads(done.stdout)["end"]
    return bool(end["sum_sent"]["bytes"] >= 1 << 20 and end["sum_received"]["bytes"] > 0)


def assert_told(cluster: Cluster, host: Host) -> None:
    """Status has the right number for each device."""
    warnings = cluster.status(host).warnings
    for device, (version, _) in DEVICES.items():
        advised = f"`ip link set {device} mtu {FITS[version]}`"
        assert any(advised in warning for warning in warnings), (device, warnings)
