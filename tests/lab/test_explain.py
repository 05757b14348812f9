"""`tunsec explain` beside what really happens: the SPIs on the wire, the counters of the kernel."""

import json
import socket
from contextlib import closing

import pytest

from tests.lab.watched import watched
from tunsec.cli.question import parse_question
from tunsec.wire.control import PolicyBody
from tunsec.wire.control_explain import Explanation, Relation, SaReport, Verdict
from tunsec_lab.capture import LeakWatch
from tunsec_lab.cluster import Cluster
from tunsec_lab.host import Host, Lab
from tunsec_lab.namespaces import inside
from tunsec_lab.packets import EspFlow

pytestmark = pytest.mark.needs("esp-ipv4", "esn", "vxlan", "nft-inet", "nft-netdev-egress")

OVERLAY = "  overlay: {kind: vxlan, between: all, tenants: {red: 41, blue: 42}}\n"
STORAGE = "  storage: {kind: rocev2, between: all}\n"
BUS = "  bus: {kind: tcp, port: 5432, between: all}\n"

RED = "udp 192.0.2.11:49152 192.0.2.12:4789 --vni 41"
BLUE = "udp 192.0.2.11:49152 192.0.2.12:4789 --vni 42"
GREY = "udp 192.0.2.11:49152 192.0.2.12:4789 --vni 43"
BUS_PACKET = "tcp 192.0.2.11:40000 192.0.2.12:5432"
PLAIN = "udp 192.0.2.11:40000 192.0.2.12:9999"


def ask(cluster: Cluster, host: Host, question: str) -> Explanation:
    """What a host's daemon says to a question as an operator types it."""
    words, _, vni = question.partition(" --vni ")
    body = parse_question(words.split(), int(vni) if vni else None)
    return cluster.client(host).explain(body)


def sent_on(found: Explanation) -> SaReport:
    """The SA that an answer says a packet leaves on."""
    pinned = next(sp.spi for sp in found.sps if not sp.when)
    return next(sa for one in found.relations for sa in one.sas if sa.spi == pinned)


def only(found: Explanation) -> Relation:
    """The one relation that an answer is about."""
    (one,) = found.relations
    return one


def on_the_wire(watch: LeakWatch, since: dict[EspFlow, int]) -> dict[str, int]:
    """ESP packets from a to b since then, by SPI."""
    return {
        f"{flow.spi:08x}": count - since.get(flow, 0)
        for flow, count in watch.report().esp_flows.items()
        if str(flow.src) == "192.0.2.11" and count > since.get(flow, 0)
    }


def ping(a: Host, overlay: str, count: int = 5) -> int:
    """Answers of b in an overlay of a."""
    a.ip("neigh flush all")
    number = {"red": 41, "blue": 42, "grey": 43}[overlay]
    return a.ping(f"10.{number}.0.2", count=count, wait=0.5).received


def test_what_is_said_is_what_happens() -> None:
    with Lab("tenants", overlays_up=False) as lab, watched(lab) as watch:
        a, b = lab.hosts.values()
        cluster = Cluster(lab, flows=OVERLAY + STORAGE + BUS)
        blocked_without_the_peer(cluster, a)
        b_starts(cluster, a, b)
        tenants_by_vni(cluster, watch, a, b)
        roce_covers_plain_udp(cluster, watch, a, b)
        tcp_either_way(cluster, watch, a, b)
        a_stranger_in_front(cluster, a, b)
        every_spi_is_attributed(cluster, watch, a, b)
        by_the_command(cluster, a)
        dropped_and_released(cluster, a)


def blocked_without_the_peer(cluster: Cluster, a: Host) -> None:
    cluster.start(a)
    a.raise_overlays()
    found = ask(cluster, a, RED)
    assert (found.verdict, found.on_the_wire) == (Verdict.BLOCKED, ())
    status = next(one for one in cluster.status(a).flows if one.tenant == "red")
    assert status.reason in found.why
    assert [sp.action for sp in found.sps if not sp.when] == ["block"]
    assert ping(a, "red", 2) == 0


def b_starts(cluster: Cluster, a: Host, b: Host) -> None:
    cluster.start(b)
    b.raise_overlays()
    cluster.wait_protected()
    for host in (a, b):
        for name in ("overlay", "storage", "bus", "overlay/red"):
            assert ask(cluster, host, name).verdict == Verdict.PROTECTED, name


def tenants_by_vni(cluster: Cluster, watch: LeakWatch, a: Host, b: Host) -> None:
    """Each VNI goes on its own SAs, and on those that were named; one without a tenant on none."""
    for question, overlay in ((RED, "red"), (BLUE, "blue")):
        found, there = ask(cluster, a, question), ask(cluster, b, question)
        assert (found.verdict, there.verdict) == (Verdict.PROTECTED, Verdict.PROTECTED)
        assert only(found).status.tenant == only(there).status.tenant == overlay
        sa = sent_on(found)
        assert sa.spi in {one.spi for one in only(there).sas if one.direction == "in"}
        assert sa.spi in found.on_the_wire[0]
        before = watch.report().esp_flows
        assert ping(a, overlay) == 5
        assert on_the_wire(watch, before).keys() == {sa.spi}
        after = sent_on(ask(cluster, a, question))
        assert after.packets - sa.packets == on_the_wire(watch, before)[sa.spi]
    found = ask(cluster, a, GREY)
    assert found.verdict == Verdict.BLOCKED
    assert "no tenant has VNI 43" in found.why
    before = watch.report().esp_flows
    assert ping(a, "grey", 2) == 0
    assert on_the_wire(watch, before) == {}
    found = ask(cluster, a, RED.partition(" --vni")[0])
    assert found.verdict == Verdict.DEPENDS
    assert "if the VNI is 41 (tenant red)" in found.why
    assert len(found.on_the_wire) == 2


def roce_covers_plain_udp(cluster: Cluster, watch: LeakWatch, a: Host, b: Host) -> None:
    """Any UDP of the pair leaves on the SA of storage, but what overlay names on its own."""
    found = ask(cluster, a, PLAIN)
    assert (found.verdict, only(found).status.flow) == (Verdict.PROTECTED, "storage")
    assert any("covers all UDP" in note for note in found.notes)
    assert any("before it" in note and "overlay (vxlan, port 4789)" in note for note in found.notes)
    before = watch.report().esp_flows
    with inside(b.netns):
        listening = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with closing(listening):
        listening.bind(("192.0.2.12", 9999))
        listening.settimeout(5)
        with inside(a.netns), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sending:
            for _ in range(5):
                sending.sendto(b"plain", ("192.0.2.12", 9999))
        assert [listening.recv(100) for _ in range(5)] == [b"plain"] * 5
    assert on_the_wire(watch, before) == {sent_on(found).spi: 5}
    there = ask(cluster, b, PLAIN)
    assert there.verdict == Verdict.CLEAR
    assert "storage makes the peer send" in there.why
    notes = ask(cluster, a, RED).notes
    assert any("flow storage (rocev2) covers it too, but comes later" in one for one in notes)


def tcp_either_way(cluster: Cluster, watch: LeakWatch, a: Host, b: Host) -> None:
    before = watch.report().esp_flows
    found = ask(cluster, a, BUS_PACKET)
    assert (found.verdict, only(found).status.flow) == (Verdict.PROTECTED, "bus")
    assert connected(a, b)
    assert on_the_wire(watch, before).keys() == {sent_on(found).spi}
    back = ask(cluster, b, "tcp 192.0.2.12.5432 > 192.0.2.11.40000")
    assert back.verdict == Verdict.PROTECTED
    spis = {f"{flow.spi:08x}" for flow in watch.report().esp_flows if str(flow.src) == "192.0.2.12"}
    assert sent_on(back).spi in spis
    ssh = ask(cluster, a, "tcp 192.0.2.11:40000 192.0.2.12:22")
    assert ssh.verdict == Verdict.CLEAR
    assert any(note.startswith("nearest: flow bus, but ") for note in ssh.notes)
    assert ask(cluster, a, "tcp 198.51.100.1:1 198.51.100.2:22").verdict == Verdict.ELSEWHERE


def connected(a: Host, b: Host) -> bool:
    """Whether a TCP connection from a to the port of bus on b comes to be."""
    with inside(b.netns):
        listening = socket.create_server(("192.0.2.12", 5432))
    with closing(listening), inside(a.netns):
        try:
            socket.create_connection(("192.0.2.12", 5432), timeout=1).close()
        except OSError:
            return False
        return True


def a_stranger_in_front(cluster: Cluster, a: Host, b: Host) -> None:
    """Another program's SP that comes first is named, and what the guard then does."""
    selector = "src 192.0.2.0/24 dst 192.0.2.0/24 proto tcp dport 5432 dir out"
    a.ip(f"xfrm policy add {selector} priority 100 action allow")
    found = ask(cluster, a, BUS_PACKET)
    assert found.verdict == Verdict.FOREIGN
    assert (found.sps[0].whose, found.sps[0].priority) == ("another program", 100)
    assert "the guard drops it, for flow bus names it" in found.why
    assert found.sps[1].whose == "bus b"
    dropped = {one.counter: one.packets for one in found.guard}
    assert not connected(a, b)
    after = {one.counter: one.packets for one in ask(cluster, a, BUS_PACKET).guard}
    assert after["clear_out.bus"] > dropped["clear_out.bus"]
    assert ask(cluster, a, BUS_PACKET).sps[0].used is not None
    assert any("comes before those of bus b" in note for note in ask(cluster, a, "bus").notes)
    a.ip(f"xfrm policy delete {selector}")
    assert ask(cluster, a, BUS_PACKET).verdict == Verdict.PROTECTED
    assert connected(a, b)


def every_spi_is_attributed(cluster: Cluster, watch: LeakWatch, a: Host, b: Host) -> None:
    """Every captured ESP packet belongs to a flow and tenant, at both ends."""
    told = set()
    for flow in watch.report().esp_flows:
        for host in (a, b):
            found = ask(cluster, host, f"esp {flow.dst} {flow.spi:08x}")
            assert found.verdict == Verdict.PROTECTED, found
            way = "sent to" if host.ipv4 == flow.src else "received from"
            assert way in found.why
            told.add((only(found).status.flow, only(found).status.tenant))
    assert told == {("overlay", "red"), ("overlay", "blue"), ("storage", None), ("bus", None)}
    assert ask(cluster, a, "spi deadbeef").verdict == Verdict.UNKNOWN
    state = "src 198.51.100.1 dst 198.51.100.2 proto esp spi 0xdeadbeef"
    key = "0x" + "42" * 20
    a.ip(f"xfrm state add {state} mode transport reqid 7 aead rfc4106(gcm(aes)) {key} 128")
    assert ask(cluster, a, "spi deadbeef").verdict == Verdict.FOREIGN
    a.ip(f"xfrm state delete {state}")


def by_the_command(cluster: Cluster, a: Host) -> None:
    """As an operator runs it; in JSON too."""
    words = [*RED.split(), "--run", str(a.run_dir)]
    shown = a.run(["tunsec", "explain", *words]).stdout
    spi = sent_on(ask(cluster, a, RED)).spi
    assert f"protected: flow overlay/red: leaves to b in ESP, SPI {spi}" in shown
    found = json.loads(a.run(["tunsec", "explain", "--json", *words]).stdout)
    assert found["relations"][0]["vni"] == 41


def dropped_and_released(cluster: Cluster, a: Host) -> None:
    """A flow that the policy drops stays blocked, until it is released."""
    cluster.client(a).apply(PolicyBody(cluster.policy(flows=OVERLAY + STORAGE), "less"))
    found = ask(cluster, a, BUS_PACKET)
    assert found.verdict == Verdict.BLOCKED
    assert "`tunsec release bus` opens it" in found.why
    assert ask(cluster, a, "bus").verdict == Verdict.BLOCKED
    cluster.client(a).release("bus")
    assert ask(cluster, a, BUS_PACKET).verdict == Verdict.CLEAR
    cluster.client(a).release("storage")
    assert "an admin released flow storage" in ask(cluster, a, PLAIN).why
    assert ask(cluster, a, "storage").verdict == Verdict.CLEAR
    assert ask(cluster, a, RED).verdict == Verdict.PROTECTED
