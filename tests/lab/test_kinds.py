"""Every kind of flow that tunnel devices and ports make, at once between the same two hosts.

A lane is one way in which packets of a kind come to the wire. Each is shown to the watch in clear
before the first daemon; then all are protected, by either keying, and each carries pings and
iperf3 in both directions.
"""

import json
import os
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address

import pytest

from tests.lab.watched import Packets, packets_of, show_packets
from tunsec.adapters.boot_file import BOOT_ID
from tunsec.adapters.tunnel_lookup import CACHE_NAME
from tunsec.model.flow import Keying
from tunsec.wire.control import PolicyBody
from tunsec_lab.capture import LeakWatch
from tunsec_lab.cluster import Cluster
from tunsec_lab.drops import drops
from tunsec_lab.host import Host, Lab
from tunsec_lab.metadata import send_all_to
from tunsec_lab.namespaces import inside, ip, set_sysctls
from tunsec_lab.packets import protect
from tunsec_lab.topology import Address

pytestmark = pytest.mark.needs(
    "esp-ipv4", "esp-ipv6", "esn", "vxlan", "geneve", "nft-inet", "nft-netdev-egress"
)

FLOWS = {
    "overlay": ("vxlan", 4789),
    "aside": ("vxlan", 4790),
    "evpn": ("vxlan", 4795),
    "backbone": ("geneve", 6081),
    "beside": ("geneve", 6082),
    "mesh": ("geneve", 6085),
    "bus": ("tcp", 5432),
    "feed": ("udp", 5433),
}
POLICY = "".join(
    f"  {name}: {{kind: {kind}, port: {port}, between: all}}\n"
    for name, (kind, port) in FLOWS.items()
)
MTU = {4: 1416, 6: 1396}
"""By the underlay's IP version: the largest that leaves room for ESP in 1500 bytes."""
EXTERNAL = {"ext0": ("evpn", 95), "ext1": ("mesh", 96)}
"""Devices, with the flow and the network of each."""
BYTES = {"vxlan": 1 << 20, "geneve": 1 << 20, "tcp": 1 << 20, "udp": 1 << 15}


@dataclass(frozen=True)
class Lane:
    """`device` is what it is sent by, None for programs' own sockets on the underlay; `near` and
    `far` are the addresses that a and b have on it."""

    flow: str
    version: int
    near: str
    far: str
    device: str | None = None

    @property
    def mtu(self) -> int:
        """Of its device; an external one sends over both IP versions."""
        return MTU[6 if self.device in EXTERNAL else self.version]

    def full_size(self, *, mtu: int) -> int:
        """Payload of a ping that fills a packet inside the tunnel."""
        return mtu - (48 if ":" in self.far else 28)

    def speak(self, a: Host, b: Host) -> None:
        """A first word of a, in clear."""
        if self.device is None:
            with inside(a.netns), suppress(ConnectionRefusedError):
                kind, port = FLOWS[self.flow]
                how = socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM
                family = socket.AF_INET if self.version == 4 else socket.AF_INET6
                with socket.socket(family, how) as one:
                    one.connect((self.far, port))
                    one.send(b"clear")
            return
        for host in (a, b):
            host.ip(f"link set {self.device} up")
        assert a.reaches(self.far, wait=5.0), self
        for host in (a, b):
            host.ip(f"link set {self.device} down")


class Load:
    """iperf3 of a lane, from the side that opens it to the one that listens."""

    def __init__(self, lane: Lane, client: Host, server: Host) -> None:
        kind, port = FLOWS[lane.flow]
        self.lane, self.host, self.udp = lane, client, kind == "udp"
        self.bytes = BYTES[kind]
        at = lane.far if server.name == "b" else lane.near
        ports = ["-p", str(port)] if lane.device is None else []
        listen = ["iperf3", "-s", "-1", "--forceflush", "-B", at, *ports]
        self.server = server.spawn(listen, name="listens")
        # A guest that stands still for a moment sends what it missed at once: UDP goes slowly.
        much = ["-u", "-b", "500k", "-l", "1200"] if self.udp else []
        self.open = ["iperf3", "-c", at, *ports, "-n", str(self.bytes), *much, "--json"]

    def begin(self) -> None:
        """Returns when the client is on its way."""
        self.server.wait_for_line("Server listening")
        self.client = self.host.spawn(self.open, name="opens")

    def finish(self) -> None:
        """Returns when it is done. What the other side of TCP says that it has received is what it
        had read when it was asked: `transfer` looks at every byte."""
        assert self.client.wait(timeout=60) == 0, (self.lane, self.client.tail())
        end = json.loads(self.client.output())["end"]
        if self.udp:
            assert end["sum"]["lost_packets"] == 0, self.lane
            assert end["sum"]["bytes"] >= self.bytes, self.lane
        else:
            assert end["sum_sent"]["bytes"] >= self.bytes, self.lane
            assert end["sum_received"]["bytes"] > 0, self.lane
        self.server.wait()


def lanes(lab: Lab) -> list[Lane]:
    """One for each kind, way to make its devices, and family."""
    a, b = lab.hosts.values()
    by_port = {(kind, port): name for name, (kind, port) in FLOWS.items()}
    found = [
        Lane(
            by_port[overlay.kind, overlay.port],
            overlay.family.version,
            str(a.overlay_addresses(overlay.name)[0]),
            str(b.overlay_addresses(overlay.name)[0]),
            overlay.device,
        )
        for overlay in lab.topology.overlays
    ]
    found += [
        Lane("overlay", version, f"10.5{version}.0.1", f"10.5{version}.0.2", f"fdb{version}")
        for version in (4, 6)
    ]
    found += [
        Lane(flow, version, near, far, device)
        for device, (flow, net) in EXTERNAL.items()
        for version, near, far in (
            (4, f"10.{net}.0.1", f"10.{net}.0.2"),
            (6, f"fd00:{net}::1", f"fd00:{net}::2"),
        )
    ]
    found += [
        Lane(flow, version, str(near), str(far))
        for flow in ("bus", "feed")
        for version, near, far in ((4, a.ipv4, b.ipv4), (6, a.ipv6, b.ipv6))
    ]
    return found


def make_devices(lab: Lab) -> None:
    """What a topology does not know: devices without a remote, external ones, one with a group."""
    hosts = list(lab.hosts.values())
    for number, (host, peer) in enumerate(zip(hosts, reversed(hosts), strict=True), 1):
        for version, local, remote in ((4, host.ipv4, peer.ipv4), (6, host.ipv6, peer.ipv6)):
            name = f"fdb{version}"
            rest = f"type vxlan id 5{version} local {local} dstport 4789"
            host.ip(
                f"link add {name} mtu {MTU[version]} {rest}",
                f"addr add 10.5{version}.0.{number}/24 dev {name}",
            )
            name_peer(host, name, remote)
        for device, (flow, net) in EXTERNAL.items():
            kind, port = FLOWS[flow]
            host.ip(
                f"link add {device} mtu {MTU[6]} type {kind} external dstport {port}",
                f"addr add 10.{net}.0.{number}/24 dev {device}",
                f"addr add fd00:{net}::{number}/64 dev {device} nodad",
            )
            with inside(host.netns):  # the device goes down once before it is protected
                set_sysctls([(f"net/ipv6/conf/{device}/keep_addr_on_down", "1")])
            # What is inside in IPv4 goes over the underlay in IPv4, and IPv6 in IPv6.
            send_all_to(host, device, vni=net, remote=peer.ipv4, protocols=("ip", "arp"))
            send_all_to(host, device, vni=net, remote=peer.ipv6, protocols=("ipv6",))


def name_peer(host: Host, device: str, remote: Address) -> None:
    """Head-end replication: a device's flood goes to this peer too."""
    flood = f"fdb append 00:00:00:00:00:00 dev {device} dst {remote}"
    ip(flood, netns=host.netns, program="bridge")


def raise_devices(host: Host, over: list[Lane]) -> None:
    """A host's tunnel devices of these lanes."""
    devices = dict.fromkeys(lane.device for lane in over if lane.device)
    host.ip(*(f"link set {device} up" for device in devices))


@pytest.fixture
def lab() -> Iterator[Lab]:
    """All devices are there, and down."""
    with Lab("kinds", overlays_up=False) as made:
        make_devices(made)
        yield made


@contextmanager
def watched(lab: Lab, over: list[Lane]) -> Iterator[LeakWatch]:
    """The wire from before the first daemon to after the last, by a watch that has seen each of
    these lanes in clear."""
    a, b = lab.hosts.values()
    tunnels = dict.fromkeys(FLOWS[lane.flow] for lane in over)
    flows = [protect(kind, port=port) for kind, port in tunnels]
    with LeakWatch(lab, protected=flows) as seen:
        for lane in over:
            seen.prove_sees(partial(lane.speak, a, b))
        yield seen
        seen.assert_closed()


def change_keying(cluster: Cluster, keying: Keying) -> None:
    """All flows of all hosts; returns when each is protected by it."""
    text = cluster.policy(defaults=f"  {{keying: {keying}}}\n")
    hosts = list(cluster.lab.hosts.values())
    for host in hosts:
        cluster.client(host).apply(PolicyBody(text, "policy.yaml"))
    until = time.monotonic() + 30
    for host in hosts:
        status = cluster.status(host)
        while not all(flow.protected and flow.keying == keying for flow in status.flows):
            assert time.monotonic() < until, [flow for flow in status.flows if not flow.protected]
            status = cluster.client(host).status(wait=1.0)


def carried(cluster: Cluster, host: Host) -> dict[tuple[str, int], tuple[int, int]]:
    """Bytes in ESP, received and sent, by flow and IP version."""
    return {
        (flow.flow, ip_address(flow.remote).version): (flow.in_bytes, flow.out_bytes)
        for flow in cluster.status(host).flows
    }


def fragments(host: Host) -> dict[str, int]:
    """Packets that had to be cut, by family."""
    said = host.run(["nstat", "-asz", "IpFragCreates", "Ip6FragCreates"]).stdout
    found = re.findall(r"^(Ip6?FragCreates) +(\d+)", said, re.MULTILINE)
    return {name: int(count) for name, count in found}


@pytest.mark.timeout(120)
def test_every_lane_is_protected_by_either_keying(lab: Lab) -> None:
    """Nothing clear, everything arrives, each by the ESP of its own flow and family, and nothing in
    fragments: TCP on the underlay makes room for ESP by itself. What local programs send to a
    tunnel's port is dropped and counted."""
    with watched(lab, lanes(lab)) as watch:
        cluster = Cluster(lab, flows=POLICY)
        for host in lab.hosts.values():
            cluster.start_charon(host)
        cluster.start_all()
        for host in lab.hosts.values():
            raise_devices(host, lanes(lab))
        assert_all_carried(cluster)
        by_directory = packets_of(cluster, lab.hosts["a"])
        show_packets(Keying.DIRECTORY, by_directory, Packets(), watch)
        assert_injection_is_dropped(cluster)
        change_keying(cluster, Keying.IKE)
        assert_all_carried(cluster)
        show_packets(Keying.IKE, packets_of(cluster, lab.hosts["a"]), by_directory, watch)
        for host in lab.hosts.values():
            assert cluster.status(host).warnings == ()
            assert fragments(host) == {"IpFragCreates": 0, "Ip6FragCreates": 0}
        assert_one_byte_more_does_not_fit(cluster)
        spis = watch.report().esp_flows
        assert len(spis) >= 2 * 4 * len(FLOWS), "a flow shares SAs with another"


def assert_all_carried(cluster: Cluster) -> None:
    """Full-size pings and iperf3 of every lane arrive; ESP of their own flow and family grows."""
    lab = cluster.lab
    a, b = lab.hosts.values()
    every = lanes(lab)
    before = carried(cluster, a)
    for lane in every:
        if lane.device is not None:
            full = lane.full_size(mtu=lane.mtu)
            lost = a.ping(lane.far, count=5, size=full, wait=5.0).lost
            assert lost == 0, (lane, drops(cluster))
        if FLOWS[lane.flow][0] != "udp":
            transfer(lane, a, b)
            transfer(lane, b, a)
    loads = [Load(lane, a, b) for lane in every]
    loads += [Load(lane, b, a) for lane in every if lane.device is None]
    for load in loads:
        load.begin()
    for load in loads:
        load.finish()
    wanted = Counter[tuple[str, int]]()
    for load in loads:
        wanted[load.lane.flow, load.lane.version] += load.bytes if load.host is a else 0
    for flow, (received, sent) in carried(cluster, a).items():
        received, sent = received - before[flow][0], sent - before[flow][1]
        assert (sent > wanted[flow] > 0, received > 5 * MTU[6]) == (True, True), flow


def transfer(lane: Lane, client: Host, server: Host) -> None:
    """Random bytes over TCP, from who connects to who listens and back: all arrive as they are."""
    at = lane.far if server.name == "b" else lane.near
    port = FLOWS[lane.flow][1] if lane.device is None else 7000
    data = os.urandom(100_000)
    with ExitStack() as opened:
        with inside(server.netns):
            family = socket.AF_INET6 if ":" in at else socket.AF_INET
            listening = opened.enter_context(socket.create_server((at, port), family=family))
        with inside(client.netns):
            near = opened.enter_context(socket.create_connection((at, port), timeout=20))
        far = opened.enter_context(listening.accept()[0])
        for one, other in ((near, far), (far, near)):
            sending = threading.Thread(target=one.sendall, args=(data,))
            sending.start()
            arrived = other.makefile("rb").read(len(data))
            sending.join()
            assert arrived == data, lane


def assert_one_byte_more_does_not_fit(cluster: Cluster) -> None:
    """The MTUs that status advises are exact: each device is told its own, and what is one byte
    larger is cut to pieces over IPv4, and lost over IPv6."""
    a = cluster.lab.hosts["a"]
    tunnels = [lane for lane in lanes(cluster.lab) if lane.device]
    a.ip(*(f"link set {lane.device} mtu {MTU[4] + 8}" for lane in tunnels))
    warnings = cluster.status(a).warnings
    for lane in tunnels:
        advised = f"`ip link set {lane.device} mtu {lane.mtu}`"
        assert any(advised in warning for warning in warnings), (lane, warnings)
        more = lane.full_size(mtu=MTU[lane.version] + 1)
        arrived = a.ping(lane.far, count=1, size=more, wait=0.2).received
        assert lane.version == 4 or not arrived, lane
    pieces = 2 * sum(lane.version == 4 for lane in tunnels)
    assert fragments(a) == {"IpFragCreates": pieces, "Ip6FragCreates": 0}


def assert_injection_is_dropped(cluster: Cluster) -> None:
    """A program's datagrams to the ports of tunnels, over both families."""
    a, b = cluster.lab.hosts.values()
    tunnels = {name: port for name, (kind, port) in FLOWS.items() if kind in ("vxlan", "geneve")}
    for name, port in tunnels.items():
        before = cluster.status(a).guard.drops[name].local_injection
        for family, to in ((socket.AF_INET, b.ipv4), (socket.AF_INET6, b.ipv6)):
            with (
                inside(a.netns),
                socket.socket(family, socket.SOCK_DGRAM) as program,
                pytest.raises(PermissionError),
            ):
                program.sendto(bytes(50), (str(to), port))
        assert cluster.status(a).guard.drops[name].local_injection == before + 2, name


def test_a_kernel_that_cannot_protect_a_tunnel_keeps_it_blocked(lab: Lab) -> None:
    """Tried by sending, with no more rights than the unit gives. What is known of this boot is
    believed: here, that Geneve over IPv6 is looked up without its port."""
    a, b = lab.hosts.values()
    cluster = Cluster(lab, flows="  backbone: {kind: geneve, between: all}\n")
    kept = a.run_dir / CACHE_NAME
    boot = BOOT_ID.read_text().strip()
    kept.write_text(json.dumps({"boot_id": boot, "geneve/6": "no look-up by port"}))
    over = [lane for lane in lanes(lab) if lane.device in ("gnv61", "gnv62")]
    with watched(lab, over):
        for host in (a, b):
            cluster.start(host, confined=True)
        assert json.loads(kept.read_text())["geneve/4"] == ""
        assert set(json.loads((b.run_dir / CACHE_NAME).read_text()).values()) == {boot, ""}
        assert "tunsec-probe" not in a.run(["ip", "link"]).stdout
        for host in (a, b):
            raise_devices(host, over)
        until = time.monotonic() + 20
        while not cluster.flow(a, flow="backbone").protected:
            assert time.monotonic() < until
            cluster.client(a).status(wait=1.0)
        over_ipv4, over_ipv6 = over
        assert a.ping(over_ipv4.far, count=5, wait=5.0).lost == 0
        assert a.ping(over_ipv6.far, count=5, wait=0.1).received == 0
        blocked = cluster.flow(a, flow="backbone", version=6)
        assert (blocked.protected, blocked.state) == (False, "BLOCKED")
        assert blocked.reason == "no look-up by port"
        assert not cluster.flow(b, flow="backbone", version=6).protected, "a must not key it"


def test_what_is_flooded_to_a_group_is_dropped_and_status_names_the_remedy(lab: Lab) -> None:
    a, b = lab.hosts.values()
    lane = Lane("overlay", 4, "10.59.0.1", "10.59.0.2", "mc59")
    make = "link add mc59 mtu 1416 type vxlan id 59 {} dev eth0 dstport 4789"
    for host, address in ((a, lane.near), (b, lane.far)):
        host.ip(make.format("group 239.1.1.1"), f"addr add {address}/24 dev mc59")
    with watched(lab, [lane]):
        cluster = Cluster(lab)
        cluster.start_all()
        for host in (a, b):
            raise_devices(host, [lane])
            host.ip("neigh flush all")
        assert a.ping(lane.far, count=5, wait=0.1).received == 0
        (warning,) = (text for text in cluster.status(a).warnings if "mc59" in text)
        assert "what it floods to 239.1.1.1 is dropped" in warning
        assert "`bridge fdb append 00:00:00:00:00:00 dev mc59 dst PEER`" in warning
        for host, peer, address in ((a, b, lane.near), (b, a, lane.far)):
            host.ip("link del mc59", make.format(""), f"addr add {address}/24 dev mc59")
            name_peer(host, "mc59", peer.ipv4)
            raise_devices(host, [lane])
        assert a.ping(lane.far, count=5, wait=5.0).lost == 0
        assert "mc59" not in "".join(cluster.status(a).warnings)
