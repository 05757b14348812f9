"""SAs that NICs carry, as far as netdevsim can show: the kernel's hand-over to the device.

It encrypts nothing, so no packet that it was given arrives; that ESP by a NIC is right, only a real
NIC can show. What is shown: which SAs are given to which device, how it is read back, what a device
refuses, and that what is refused is blocked or done by the CPU, as the policy says.
"""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import pytest

from tests.lab.watched import watched
from tunsec.wire.control import FlowStatus, PolicyBody
from tunsec_lab.cluster import Cluster
from tunsec_lab.host import Host, Lab
from tunsec_lab.namespaces import inside
from tunsec_lab.netdevsim import Nic, cabled
from tunsec_lab.probe import Probe

pytestmark = pytest.mark.needs(
    "esp-ipv4", "esp-ipv6", "esn", "vxlan", "geneve", "bridge", "nft-inet", "nft-netdev-egress"
)

GCM = "  {aead: aes-128-gcm, sequence_numbers: 32-bit, rekey: {after: 32s, hard: 10m}}\n"
"""What is superseded goes after an eighth of 32 s without a packet."""
OVERLAY = "  overlay: {kind: vxlan, between: all}\n"
CARRIED = """
  overlay: {kind: vxlan, between: all, offload: crypto}
  backbone: {kind: geneve, between: all, offload: crypto}
  bus: {kind: rds-tcp, between: all, offload: crypto}
  storage: {kind: rocev2, between: all, offload: crypto}
  replication: {kind: tcp, port: 5432, between: all, offload: crypto}
  whole: {kind: udp, port: 7001, between: all, offload: packet}
  any: {kind: udp, port: 7002, between: all, offload: auto}
  long: {kind: udp, port: 7003, between: all, offload: crypto, sequence_numbers: 64-bit}
"""
BY_NIC = ("overlay", "backbone", "bus", "storage", "replication", "any")
"""Of these: of every kind, over IPv4."""
IPPROTO_ESP = 50
ETH_P_ALL = 0x0003
ETH_P_IP = 0x0800
SECONDS = 20.0


def apply(cluster: Cluster, *, flows: str, defaults: str = GCM) -> None:
    """The next policy, host by host."""
    text = cluster.policy(flows=flows, defaults=defaults)
    for host in cluster.lab.hosts.values():
        cluster.client(host).apply(PolicyBody(text, "test"))


def wait_for(
    cluster: Cluster, flow: str, done: Callable[[FlowStatus], bool], *, version: int = 4
) -> list[FlowStatus]:
    """Both hosts' view of a flow, once it is as wanted."""
    until = time.monotonic() + SECONDS
    while True:
        seen = [
            cluster.flow(host, version=version, flow=flow) for host in cluster.lab.hosts.values()
        ]
        if all(done(one) for one in seen):
            return seen
        assert time.monotonic() < until, [
            (one.state, one.offload, one.reason, one.warnings) for one in seen
        ]
        time.sleep(0.05)  # nothing tells when a status will be another one


@contextmanager
def on_nics(lab: Lab) -> Iterator[tuple[Nic, Nic]]:
    """The hosts' IPv4 addresses move from the wire to NICs of their own."""
    a, b = lab.hosts.values()
    with cabled(a, b) as nics:
        for nic in nics:
            nic.host.ip(
                f"addr del {nic.host.ipv4}/24 dev eth0",
                f"addr add {nic.host.ipv4}/24 dev {nic.name}",
            )
        yield nics


def back_on_the_wire(host: Host) -> None:
    """Its NIC has gone."""
    host.ip(f"addr add {host.ipv4}/24 dev eth0")


@contextmanager
def overhearing(nic: Nic) -> Iterator[Callable[[], set[int]]]:
    """IP protocols of what a NIC is given to send from now on. At the other end there is nothing to
    hear: GRO hands ESP to XFRM before anybody listens."""
    with inside(nic.host.netns):
        ear = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL))
        ear.bind((nic.name, ETH_P_ALL))
    ear.setblocking(False)

    def heard() -> set[int]:
        protocols: set[int] = set()
        while True:
            try:
                packet, (_, ethertype, direction, *_) = ear.recvfrom(2048)
            except BlockingIOError:
                return protocols
            if direction == socket.PACKET_OUTGOING and ethertype == ETH_P_IP:
                protocols.add(packet[9])

    with ear:
        yield heard


def states(host: Host) -> str:
    """What ip(8) says of the host's SAs."""
    return host.run(["ip", "-s", "xfrm", "state"]).stdout


def is_by_cpu(flow: FlowStatus) -> bool:
    """Whether the CPU does a flow, in one direction at least."""
    return flow.protected and flow.offload == "none"


def is_plain(flow: FlowStatus) -> bool:
    """Whether it does so in both, and nothing drains any more."""
    return flow.state == "INSTALLED" and is_by_cpu(flow)


def state(host: Host, spi: str | None) -> str:
    """The same of one SA."""
    (found,) = [one for one in states(host).split("\nsrc ") if f"spi 0x{spi}(" in one]
    return found


def test_sas_are_given_to_nics_and_taken_back() -> None:
    with Lab("two-hosts", overlays_up=False) as lab, watched(lab), on_nics(lab) as (left, right):
        a, b = left.host, right.host
        cluster = Cluster(lab, flows=OVERLAY, defaults="  {aead: aes-128-gcm}\n")
        cluster.start_all()
        for host in (a, b):
            host.raise_overlays()
        red = str(b.overlay_addresses("red")[0])
        blue = str(b.overlay_addresses("blue")[0])
        assert a.reaches(red), "the simulated NICs carry packets"
        assert a.reaches(blue)
        # Sequence numbers of another length are a move as any other: nothing is lost.
        with ExitStack() as stack:
            running = [
                stack.enter_context(Probe(a, b, to=to, rate=500, port=9000 + number))
                for number, to in enumerate((red, blue))
            ]
            apply(cluster, flows=OVERLAY)
            for version in (4, 6):
                wait_for(cluster, "overlay", lambda one: one.rekeys > 0, version=version)
            assert "flag esn" not in state(a, cluster.flow(a).spi_out)
        assert [probe.report.lost for probe in running] == [0, 0]
        assert left.sas == right.sas == 0

        # Every wish at once; IPv4 goes by netdevsim, IPv6 by veth.
        apply(cluster, flows=CARRIED)
        for flow in BY_NIC:
            wait_for(cluster, flow, lambda one: one.protected and one.offload == "crypto")
        for nic in (left, right):
            for flow in BY_NIC:
                seen = cluster.flow(nic.host, flow=flow)
                given = "crypto offload parameters: dev nic0 dir"
                assert f"{given} in" in state(nic.host, seen.spi_in)
                assert f"{given} out" in state(nic.host, seen.spi_out)
            assert nic.sas >= 2 * len(BY_NIC)
        handed, refused = left.handed_over, cluster.flow(b).drops
        with overhearing(left) as heard:
            assert not a.reaches(red, wait=0.5), "netdevsim encrypts nothing"
            assert heard() == {IPPROTO_ESP}
        assert left.handed_over > handed
        assert cluster.flow(b).drops > refused, "what it sent is no ESP that a kernel believes"

        for one in wait_for(cluster, "any", lambda one: one.protected, version=6):
            assert one.offload == "none", "veth carries no SAs, and auto does not mind"
        for flow, version, why in (
            ("whole", 4, "nic0: netdevsim: Unsupported ipsec offload type (use 'offload: auto'"),
            ("whole", 6, "eth0: the device has no ESP offload (use 'offload: auto'"),
            ("replication", 6, "eth0: the device has no ESP offload (use 'offload: auto'"),
            ("long", 4, "doesn't support offload with ESN (use 'sequence_numbers: 32-bit'"),
        ):
            blocked = partial(is_blocked, why=why)
            wait_for(cluster, flow, blocked, version=version)
        for one in wait_for(cluster, "overlay", lambda one: bool(one.warnings), version=6):
            assert one.protected, "the keys from before go on until their end"
            assert "no new SAs" in one.warnings[0]
        assert a.reaches(blue)

        # And back.
        apply(cluster, flows=OVERLAY)
        wait_for(cluster, "overlay", is_plain)
        assert a.reaches(red)
        until = time.monotonic() + SECONDS
        while left.sas or right.sas:  # of the flows that the policy had
            assert time.monotonic() < until, (left.ipsec, right.ipsec)
            time.sleep(0.1)

        # A NIC that goes takes its SAs with it.
        apply(cluster, flows="  overlay: {kind: vxlan, between: all, offload: auto}\n")
        wait_for(cluster, "overlay", lambda one: one.protected and one.offload == "crypto")
        for nic in (left, right):
            nic.unplug()
            back_on_the_wire(nic.host)
        wait_for(cluster, "overlay", is_plain)
        assert a.reaches(red)


def is_blocked(flow: FlowStatus, *, why: str) -> bool:
    """Whether a flow is blocked for this reason."""
    return not flow.protected and why in flow.reason


BY_IKE = """
  overlay: {kind: vxlan, between: all, offload: crypto}
  whole: {kind: udp, port: 7001, between: all, offload: packet}
  any: {kind: udp, port: 7002, between: all, offload: auto}
  long: {kind: udp, port: 7003, between: all, offload: auto, sequence_numbers: 64-bit}
"""


def test_charon_asks_for_nics_too() -> None:
    with Lab("two-hosts", overlays_up=False) as lab, watched(lab), on_nics(lab) as (left, right):
        cluster = Cluster(lab, flows=BY_IKE, defaults=f"{GCM[:-2]}, keying: ike}}\n")
        for host in lab.hosts.values():
            cluster.start_charon(host)
        for host in lab.hosts.values():
            cluster.start(host)
        for flow in ("overlay", "any"):
            wait_for(cluster, flow, lambda one: one.protected and one.offload == "crypto")
        for flow in ("any", "long"):
            wait_for(cluster, flow, lambda one: one.protected, version=6)
        # charon's own auto would fail: netdevsim takes no packets, and no crypto with ESN.
        for one in wait_for(cluster, "long", lambda one: one.protected):
            assert one.offload == "none"
        for nic in (left, right):
            seen = cluster.flow(nic.host)
            assert "crypto offload parameters: dev nic0" in state(nic.host, seen.spi_in)
            assert "crypto offload parameters: dev nic0" in state(nic.host, seen.spi_out)
        for flow, version, why in (
            ("whole", 4, "nic0: netdevsim: Unsupported ipsec offload type (use 'offload: auto'"),
            ("overlay", 6, "eth0: the device has no ESP offload (use 'offload: auto'"),
        ):
            wait_for(cluster, flow, partial(is_blocked, why=why), version=version)
        apply(cluster, flows=OVERLAY, defaults=f"{GCM[:-2]}, keying: ike}}\n")
        a, b = left.host, right.host
        for version in (4, 6):
            wait_for(cluster, "overlay", is_by_cpu, version=version)
        for host in (a, b):
            host.raise_overlays()
        until = time.monotonic() + SECONDS
        for overlay in ("red", "blue"):
            while not a.reaches(b.overlay_addresses(overlay)[0]):  # one direction may still move
                assert time.monotonic() < until
