"""VXLAN by directory keying between real daemons on a real kernel: nothing clear, nothing lost."""

import re
import signal
import stat
import time
from itertools import permutations

import pytest

from tunsec.model.ownership import PRIORITY_BLOCK, is_our_reqid
from tunsec.wire.control import PolicyBody
from tunsec_lab.capture import LeakWatch
from tunsec_lab.cluster import Cluster
from tunsec_lab.host import Host, Lab
from tunsec_lab.probe import Probe

pytestmark = pytest.mark.needs(
    "esp-ipv4", "esp-ipv6", "esn", "vxlan", "bridge", "nft-inet", "nft-netdev-egress"
)

QUICK = "  rekey: {after: 1s, hard: 10m, jitter: 0%}\n"
GIVEN_UP = 20.0
"""Seconds: what a repair may take on a machine with other work; by itself it takes 0.2 to 0.5."""
FOREIGN_KEY = "0x" + "42" * 20


def bring_up(cluster: Cluster, *hosts: Host) -> None:
    """Start daemons; overlays come up as soon as their host's daemon is ready."""
    for host in hosts:
        cluster.start(host)
        host.raise_overlays()


def overlays(host: Host) -> list[str]:
    """One address of a host in each overlay: red over IPv4, blue over IPv6."""
    return [str(host.overlay_addresses(name)[0]) for name in ("red", "blue")]


def answered(host: Host, address: str) -> bool:
    """Whether five of five pings are answered, once neighbours that could not be found while the
    flow was blocked are forgotten."""
    host.ip("neigh flush all")
    return host.ping(address, count=5).lost == 0


def kernel_of(host: Host) -> tuple[list[str], list[str]]:
    """SAs and SPs of a host, one line each."""
    sas = host.run(["ip", "-o", "xfrm", "state"]).stdout.splitlines()
    sps = host.run(["ip", "-o", "xfrm", "policy"]).stdout.splitlines()
    return sas, sps


def test_start_in_any_order(lab: Lab, watch: LeakWatch) -> None:
    for one, other in permutations(lab.hosts.values()):
        cluster = Cluster(lab)
        bring_up(cluster, one)
        assert one.ping(overlays(other)[0], count=5, wait=0.1).received == 0
        bring_up(cluster, other)
        cluster.wait_protected()
        for address in overlays(other):
            assert answered(one, address)
        reboot(lab, cluster, one, other)
    assert len(watch.report().esp_flows) == 8


def reboot(lab: Lab, cluster: Cluster, *hosts: Host) -> None:
    """Power hosts off and on; the directory is emptied too."""
    lab.destroy(*hosts)
    lab.create(*hosts)
    for record in (path for path in cluster.directory.rglob("*") if path.is_file()):
        record.unlink()
    cluster.folder.rename(cluster.folder.with_name(f"was-{time.monotonic_ns()}"))


def test_twenty_rekeys_under_load_lose_nothing(lab: Lab, watch: LeakWatch) -> None:
    a, b = lab.hosts.values()
    cluster = Cluster(lab, defaults=QUICK)
    bring_up(cluster, a, b)
    cluster.wait_protected()
    red, blue = overlays(b)
    with Probe(a, b, to=red, rate=1000) as over_ipv4, Probe(a, b, to=blue, rate=1000) as over_ipv6:
        cluster.wait_until(a, rekeys=20)
    assert over_ipv4.report.lost == 0, over_ipv4.report
    assert over_ipv6.report.lost == 0, over_ipv6.report
    spis = {flow.spi for flow in watch.report().esp_flows}
    assert len(spis) >= 36, "each child sent on some 20 SAs, but for one that was replaced at once"
    assert len(kernel_of(a)[0]) <= 12, "superseded SAs pile up"


def test_a_killed_daemon_returns_without_loss(lab: Lab, watch: LeakWatch) -> None:
    a, b = lab.hosts.values()
    cluster = Cluster(lab)
    bring_up(cluster, a, b)
    cluster.wait_protected()
    before = {flow.spi_out for flow in cluster.status(a).flows}
    with Probe(a, b, to=overlays(b)[0], rate=1000) as probe:
        cluster.daemons["a"].kill9()
        assert a.ping(overlays(b)[1], count=20).lost == 0
        cluster.start(a)
        cluster.wait_protected()
        settle(cluster)
    assert probe.report.lost == 0, probe.report
    after = cluster.status(a)
    assert not before & {flow.spi_out for flow in after.flows}, "a new life needs new keys"
    assert all(flow.state == "INSTALLED" for flow in after.flows)
    assert len(kernel_of(a)[0]) == 4, "SAs of the earlier life are left over"


def settle(cluster: Cluster, *, timeout: float = 30.0) -> None:
    """Returns when every relation is INSTALLED: one SA each way, nothing drains."""
    until = time.monotonic() + timeout
    for host in cluster.lab.hosts.values():
        client = cluster.client(host)
        status = client.status()
        while any(flow.state != "INSTALLED" for flow in status.flows):
            assert time.monotonic() < until, status.flows
            status = client.status(wait=1.0)


def test_a_rebooted_host_is_protected_again_at_once(lab: Lab, watch: LeakWatch) -> None:
    a, b = lab.hosts.values()
    cluster = Cluster(lab)
    bring_up(cluster, a, b)
    cluster.wait_protected()
    assert a.reaches(overlays(b)[0])
    b.destroy()
    b.recreate()
    bring_up(cluster, b)
    up_at = time.monotonic()
    cluster.wait_protected()
    took = time.monotonic() - up_at
    for address in overlays(b):
        assert answered(a, address)
    print(f"protected {took:.2f} s after its daemon was up")


@pytest.mark.long
def test_the_directory_may_be_unreadable_for_half_a_minute_or_away(
    lab: Lab, watch: LeakWatch
) -> None:
    """Under one load: the folder may not be entered (EACCES) for 30 s, later it is not there."""
    a, b = lab.hosts.values()
    cluster = Cluster(lab, defaults="  rekey: {after: 5s, hard: 10m}\n")
    for host in (a, b):
        cluster.start(host, confined=True)
        host.raise_overlays()
    cluster.wait_protected()
    mode = stat.S_IMODE(cluster.directory.stat().st_mode)
    away = cluster.directory.with_name("away")
    with Probe(a, b, to=overlays(b)[0], rate=1000) as probe:
        cluster.directory.chmod(0)
        time.sleep(30)
        rekeys = protected_without_directory(cluster, "Permission denied")
        cluster.directory.chmod(mode)
        cluster.wait_until(a, rekeys=rekeys + 1, timeout=20)
        cluster.directory.rename(away)
        time.sleep(12)
        rekeys = protected_without_directory(cluster, "No such file or directory")
        away.rename(cluster.directory)
        cluster.wait_until(a, rekeys=rekeys + 1, timeout=20)
    assert probe.report.sent > 42_000, probe.report
    assert probe.report.lost == 0, probe.report
    for host in (a, b):
        directory = cluster.status(host).directory
        assert directory is not None
        assert directory.reachable


def protected_without_directory(cluster: Cluster, trouble: str) -> int:
    """Every host says what is wrong with the directory, has had no new keys for two rekeys' time,
    and goes on; how often the first host's flows were rekeyed."""
    statuses = [cluster.status(host) for host in cluster.lab.hosts.values()]
    for status in statuses:
        assert status.directory is not None
        assert not status.directory.reachable
        assert trouble in status.directory.trouble
        assert all(flow.protected and (flow.age or 0.0) > 10.0 for flow in status.flows)
    return min(flow.rekeys for flow in statuses[0].flows)


def test_drift_is_seen_repaired_and_counted(lab: Lab, watch: LeakWatch) -> None:
    a, b = lab.hosts.values()
    cluster = Cluster(lab)
    bring_up(cluster, a, b)
    cluster.wait_protected()
    flow = cluster.flow(a)

    def repaired(by_hand: list[str], *, what: str) -> None:
        before = getattr(cluster.status(a).drift, what)
        a.run(by_hand)
        began = time.monotonic()
        client = cluster.client(a)
        while getattr((status := client.status(wait=0.2)).drift, what) == before or not all(
            one.protected for one in status.flows
        ):
            waited = time.monotonic() - began
            assert waited < GIVEN_UP, f"{by_hand} is not repaired: {status.drift}"
        print(f"{what} repaired after {time.monotonic() - began:.2f} s")
        for address in overlays(b):
            assert a.ping(address, count=3).lost == 0

    state = ["ip", "xfrm", "state", "delete", "proto", "esp"]
    repaired(
        [*state, "src", flow.local, "dst", flow.remote, "spi", f"0x{flow.spi_out}"], what="sas"
    )
    flow = cluster.flow(a)
    repaired([*state, "src", flow.remote, "dst", flow.local, "spi", f"0x{flow.spi_in}"], what="sas")
    selector = ["src", f"{flow.local}/32", "dst", f"{flow.remote}/32"]
    delete = ["ip", "xfrm", "policy", "delete", "dir", "out", "proto", "udp", "dport", "4789"]
    repaired([*delete, *selector], what="sps")
    block = ["src", "0.0.0.0/0", "dst", "0.0.0.0/0"]
    repaired([*delete, *block], what="sps")
    repaired(["nft", "delete", "table", "inet", "tunsec"], what="guard")
    repaired(["ip", "xfrm", "state", "flush"], what="sas")


def test_another_ipsec_user_is_left_alone(lab: Lab, watch: LeakWatch) -> None:
    a, b = lab.hosts.values()
    for near, far in ((a, b), (b, a)):
        key = f"aead rfc4106(gcm(aes)) {FOREIGN_KEY} 128"
        out, back = f"src {near.ipv4} dst {far.ipv4}", f"src {far.ipv4} dst {near.ipv4}"
        sa = f"reqid 7 mode transport {key}"
        template = "proto esp reqid 7 mode transport"
        near.ip(
            f"xfrm state add {out} proto esp spi 0x1001 {sa}",
            f"xfrm state add {back} proto esp spi 0x1001 {sa}",
            f"xfrm policy add {out} proto tcp dport 7 dir out tmpl {out} {template}",
            f"xfrm policy add {back} proto tcp dport 7 dir in tmpl {back} {template}",
            f"xfrm policy add {out} proto tcp dport 9 dir out action block",
        )
    foreign = {host.name: foreign_of(host) for host in (a, b)}
    assert all(len(sas) == 2 and len(sps) == 3 for sas, sps in foreign.values())
    cluster = Cluster(lab, defaults=QUICK)
    bring_up(cluster, a, b)
    cluster.wait_protected()
    cluster.wait_until(a, rekeys=3)
    cluster.daemons["a"].kill9()
    cluster.start(a)
    cluster.wait_protected()
    assert a.reaches(overlays(b)[0])
    cluster.client(a).release(None)
    cluster.daemons["b"].terminate()
    assert {host.name: foreign_of(host) for host in (a, b)} == foreign
    sas, sps = kernel_of(a)
    assert (len(sas), len(sps)) == (2, 3), "release leaves nothing of ours"
    assert "tunsec" not in a.run(["nft", "list", "tables"]).stdout
    a.lower_overlays()


def foreign_of(host: Host) -> tuple[list[str], list[str]]:
    """SAs and SPs that are not tunsec's."""
    sas, sps = kernel_of(host)

    def foreign(line: str) -> bool:
        reqid = re.search(r"reqid (\d+)", line)
        ours = reqid is not None and is_our_reqid(int(reqid[1]))
        return not ours and f"priority {PRIORITY_BLOCK}" not in line

    return (
        [line.split("lastused")[0] for line in sas if foreign(line)],
        [line for line in sps if foreign(line)],
    )


def test_stop_leaves_the_flow_protected_and_release_opens_it(lab: Lab, watch: LeakWatch) -> None:
    a, b = lab.hosts.values()
    cluster = Cluster(lab)
    bring_up(cluster, a, b)
    cluster.wait_protected()
    for host in (a, b):
        assert cluster.daemons[host.name].terminate() == 0
    assert a.ping(overlays(b)[0], count=5).lost == 0
    watch.assert_closed()
    for host in (a, b):
        cluster.start(host)
    cluster.wait_protected()
    for host in (a, b):
        assert cluster.client(host).release("overlay").released == ("overlay",)

    def clear() -> None:
        assert a.reaches(overlays(b)[0])
        for host in (a, b):
            host.lower_overlays()

    assert watch.prove_sees(clear) > 0
    assert kernel_of(a) == ([], [])
    assert records(cluster) == {"confirmations/a/b", "confirmations/b/a"}, "a peer may read it yet"
    for host in (a, b):
        cluster.daemons[host.name].kill9()
        cluster.start(host)
    until = time.monotonic() + 5.0
    while records(cluster):
        assert time.monotonic() < until, "what was said of the flow is not taken back"
        time.sleep(0.05)


def records(cluster: Cluster) -> set[str]:
    """What hosts say in the directory."""
    folder = cluster.directory
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_policy_without_the_flow_keeps_it_blocked(lab: Lab, watch: LeakWatch) -> None:
    a, b = lab.hosts.values()
    cluster = Cluster(lab)
    bring_up(cluster, a, b)
    cluster.wait_protected()
    text = cluster.policy(flows="  other: {kind: vxlan, between: all, port: 4790}\n")
    report = cluster.client(a).apply(PolicyBody(text, "other.yaml"))
    assert (report.flows_added, report.flows_removed) == (("other",), ("overlay",))
    assert a.ping(overlays(b)[0], count=5, wait=0.1).received == 0
    gone = [flow for flow in cluster.status(a).flows if flow.flow == "overlay"]
    assert gone
    assert all("tunsec release overlay" in flow.reason for flow in gone)
    cluster.daemons["a"].kill9()
    cluster.start(a)
    assert a.ping(overlays(b)[0], count=5, wait=0.1).received == 0
    assert any(flow.flow == "overlay" for flow in cluster.status(a).flows)
    back = cluster.client(a).apply(PolicyBody(cluster.policy(), "back.yaml"))
    assert back.flows_added == ("overlay",)
    cluster.wait_protected()
    assert answered(a, overlays(b)[0])


def test_a_user_socket_cannot_use_the_tunnel_port(lab: Lab, watch: LeakWatch) -> None:
    a, b = lab.hosts.values()
    cluster = Cluster(lab)
    bring_up(cluster, a, b)
    cluster.wait_protected()
    send = (
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "refused = 0\n"
        "for _ in range(7):\n"
        f"    try: s.sendto(b'x' * 50, ('{b.ipv4}', 4789))\n"
        "    except PermissionError: refused += 1\n"
        "print(refused)"
    )
    assert a.run(["python3", "-c", send]).stdout.strip() == "7"
    drops = cluster.status(a).guard.drops["overlay"]
    assert drops.local_injection == 7
    assert a.ping(overlays(b)[0], count=3).lost == 0


def test_a_bad_policy_changes_nothing(lab: Lab, watch: LeakWatch) -> None:
    a, b = lab.hosts.values()
    cluster = Cluster(lab)
    bring_up(cluster, a, b)
    cluster.wait_protected()
    good = cluster.policy_file.read_text()
    with Probe(a, b, to=overlays(b)[0], rate=200) as probe:
        cluster.policy_file.write_text(good.replace("kind: vxlan", "kind: vxlam"))
        cluster.daemons["a"].signal(signal.SIGHUP)
        cluster.daemons["a"].wait_for_line("policy not taken")
        status = cluster.status(a)
        assert "vxlam" in status.policy.error
        assert all(flow.protected for flow in status.flows)
        cluster.daemons["a"].kill9()
        cluster.start(a)
        cluster.wait_protected()
        assert "vxlam" in cluster.status(a).policy.error
    assert probe.report.lost == 0
    cluster.policy_file.write_text(good)
    cluster.client(a).reload()
    assert cluster.status(a).policy.error == ""
