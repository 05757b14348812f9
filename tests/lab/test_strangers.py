"""A host outside of a VXLAN flow sends one clear packet into it: the tunnel must not learn from it.

A VXLAN device takes packets from anybody and learns where a MAC address is from whoever sent last
(RFC 7348 section 4.1). So one clear packet that bears a tenant's MAC would draw what is sent to
that tenant to its sender, in clear, past all that protects the flow's hosts from each other.
"""

import re
from collections.abc import Iterator

import pytest

from tunsec_lab.capture import LeakWatch, Report
from tunsec_lab.cluster import Cluster
from tunsec_lab.host import Host, Lab
from tunsec_lab.packets import protect

pytestmark = pytest.mark.needs("esp-ipv4", "vxlan", "nft-inet", "nft-netdev-egress")

OVERLAY = "red"
VNI = 41
FORGED_SENDER = "10.41.0.66"
FORGE = """
import socket, struct
near, far = (bytes.fromhex(mac.replace(":", "")) for mac in ("{near}", "{far}"))
arp = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 2)
arp += far + socket.inet_aton("{sender}") + near + socket.inet_aton("{target}")
frame = near + far + b"\\x08\\x06" + arp
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.sendto(struct.pack("!II", 0x08000000, {vni} << 8) + frame, ("{to}", 4789))
"""


@pytest.fixture
def lab() -> Iterator[Lab]:
    """Three hosts with one overlay; c's device stays down, c runs no daemon."""
    with Lab("three-hosts", overlays_up=False) as made:
        yield made


def bring_up(lab: Lab, *, strangers: str) -> Cluster:
    """a and b protect their overlay and speak over it; c is not in the flow."""
    a, b, _ = lab.hosts.values()
    flow = f"  overlay: {{kind: vxlan, between: [a, b], strangers: {strangers}}}\n"
    cluster = Cluster(lab, flows=flow)
    for host in (a, b):
        cluster.start(host)
        host.raise_overlays()
    for host in (a, b):
        assert cluster.client(host).wait("overlay", 20).protected
    a.ip("neigh flush all")
    assert a.ping(overlay_address(b), count=5).lost == 0
    a.nft(
        "table netdev witness { counter forged { }; chain c { "
        f'type filter hook ingress device "{device(a)}" priority 0; '
        f"arp saddr ip {FORGED_SENDER} counter name forged; }}; }};"
    )
    return cluster


def overlay_address(host: Host) -> str:
    return str(host.overlay_addresses(OVERLAY)[0])


def device(host: Host) -> str:
    return host.lab.overlays_of(host)[0].device


def mac(host: Host) -> str:
    """The MAC address of a host's overlay device."""
    found = re.search(r"link/ether (\S+)", host.run(["ip", "link", "show", device(host)]).stdout)
    assert found
    return found[1]


def learned(host: Host, *, of: Host) -> str:
    """Where a host's tunnel device sends what is for another's MAC address."""
    listing = host.run(["bridge", "fdb", "show", "dev", device(host)]).stdout
    [line] = [line for line in listing.splitlines() if line.startswith(mac(of))]
    return line.split(" dst ")[1].split()[0]


def forged_delivered(host: Host) -> int:
    """Forged packets that came out of a host's tunnel device."""
    listing = host.run(["nft", "list", "counter", "netdev", "witness", "forged"]).stdout
    found = re.search(r"packets (\d+)", listing)
    assert found
    return int(found[1])


def attack(c: Host, a: Host, *, as_host: Host) -> None:
    """c sends a one clear ARP reply with another host's MAC; it has been taken or dropped then."""
    code = FORGE.format(
        near=mac(a),
        far=mac(as_host),
        sender=FORGED_SENDER,
        target=overlay_address(a),
        vni=VNI,
        to=a.ipv4,
    )
    c.run(["python3", "-c", code])
    assert c.reaches(a.ipv4)  # it came after the forged packet, by the same way


def drawn(a: Host, b: Host, c: Host, watch: LeakWatch) -> bool:
    """Whether one forged packet makes a send to c, in clear, what is for b. It may take another
    one: whatever b says of itself at that moment, a neighbour solicitation say, undoes it."""
    delivered = forged_delivered(a)
    before = clear_of_the_flow(watch.report(), c)
    attack(c, a, as_host=b)
    assert forged_delivered(a) == delivered + 1
    believed = learned(a, of=b) == str(c.ipv4)
    a.ping(overlay_address(b), count=1, wait=0.5)
    leaked = clear_of_the_flow(watch.report(), c)[len(before) :]
    to_c = [line for line in leaked if line.startswith(f"udp {a.ipv4}.") and str(c.ipv4) in line]
    return believed and bool(to_c)


def clear_of_the_flow(report: Report, c: Host) -> list[str]:
    """Clear VXLAN packets on the wire that c did not send."""
    assert report.clear == len(report.clear_examples), "there are more than the examples show"
    summaries = [packet.summary for packet in report.clear_examples]
    return [line for line in summaries if not line.startswith(f"udp {c.ipv4}.")]


def test_without_the_rule_one_packet_draws_the_tenants_traffic_to_the_stranger(lab: Lab) -> None:
    a, b, c = lab.hosts.values()
    bring_up(lab, strangers="allowed")
    assert learned(a, of=b) == str(b.ipv4)
    with LeakWatch(lab, protected=[protect("vxlan")]) as watch:
        assert any(drawn(a, b, c, watch) for _ in range(5))


def test_a_stranger_is_neither_heard_nor_sent_to(lab: Lab) -> None:
    a, b, c = lab.hosts.values()
    cluster = bring_up(lab, strangers="blocked")
    with LeakWatch(lab, protected=[protect("vxlan")]) as watch:
        for victim, other in ((a, b), (b, a)):
            attack(c, victim, as_host=other)
            assert learned(victim, of=other) == str(other.ipv4)
        assert forged_delivered(a) == 0
        assert a.ping(overlay_address(b), count=5).lost == 0
        a.ip("neigh flush all")  # what a asks everybody then goes to c too, if it may
        assert a.ping(overlay_address(b), count=5).lost == 0
        report = watch.report()
    assert report.clear == 2, "both of c's were on the wire"
    assert clear_of_the_flow(report, c) == []
    for host in (a, b):
        # Inbound the guard looks first, before the block SPs.
        assert cluster.status(host).guard.drops["overlay"].clear_in == 1
    assert report.esp >= 20


def test_the_block_sps_alone_keep_a_stranger_out(lab: Lab) -> None:
    a, b, c = lab.hosts.values()
    cluster = bring_up(lab, strangers="blocked")
    for host in (a, b):
        cluster.daemons[host.name].kill9()  # else it puts the guard back
        host.run(["nft", "delete", "table", "inet", "tunsec"])
    with LeakWatch(lab, protected=[protect("vxlan")]) as watch:
        attack(c, a, as_host=b)
        assert (learned(a, of=b), forged_delivered(a)) == (str(b.ipv4), 0)
        a.ip("neigh flush all")
        assert a.ping(overlay_address(b), count=5).lost == 0
        assert clear_of_the_flow(watch.report(), c) == []
