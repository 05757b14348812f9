"""VXLAN by IKE with real charons and real daemons: rekeys, crashes, frozen and stopped charons."""

import re
import time
from collections.abc import Callable
from contextlib import ExitStack
from operator import gt

import pytest

from tunsec.wire.control import PolicyBody, Status
from tunsec_lab.capture import LeakWatch
from tunsec_lab.cluster import Cluster
from tunsec_lab.faults import Impairment
from tunsec_lab.host import Host, Lab
from tunsec_lab.probe import Probe

pytestmark = pytest.mark.needs(
    "esp-ipv4", "esp-ipv6", "esn", "vxlan", "bridge", "nft-inet", "nft-netdev-egress"
)

IKE = "  {keying: ike}\n"
QUICK = "  {keying: ike, rekey: {after: 1s, hard: 60s, jitter: 0%}}\n"
REKEYS = 50
AT_ONCE = 50
"""Moments in which both sides rekey; there are two flows."""
SAS = 8
"""In the kernel of a host at rest: two families, two senders, two directions."""
SPS = 4
"""That protect: two families, two directions."""


def begin(lab: Lab, *, defaults: str = IKE, ike: str = "  {}\n") -> Cluster:
    """charon and tunsecd on both hosts, everything protected, overlays up."""
    cluster = Cluster(lab, defaults=defaults, ike=ike)
    for host in lab.hosts.values():
        cluster.start_charon(host)
    cluster.start_all()
    for host in lab.hosts.values():
        host.raise_overlays()
    return cluster


def probes(lab: Lab, stack: ExitStack, *, rate: int = 1000) -> list[Probe]:
    """Both ways over IPv4, one way over IPv6."""
    a, b = lab.hosts.values()
    return [
        stack.enter_context(Probe(a, b, to=b.overlay_addresses("red")[0], rate=rate, port=9000)),
        stack.enter_context(Probe(b, a, to=a.overlay_addresses("red")[0], rate=rate, port=9001)),
        stack.enter_context(Probe(a, b, to=b.overlay_addresses("blue")[0], rate=rate, port=9002)),
    ]


def settled(cluster: Cluster, *, timeout: float = 40.0) -> None:
    """Returns when nothing is left over on any host: one CHILD_SA of each sender, no other SA."""
    until = time.monotonic() + timeout
    for host in cluster.lab.hosts.values():
        while left := leftovers(cluster, host):
            assert time.monotonic() < until, f"{host.name}: {left}"
            time.sleep(0.2)


def leftovers(cluster: Cluster, host: Host) -> str:
    """What a host has that it would not have at rest; empty when it is."""
    flows = cluster.status(host).flows
    for flow in flows:
        assert flow.ike is not None
        senders = sorted(one.own for one in flow.ike.child_sas)
        if flow.state != "INSTALLED" or senders != [False, True]:
            return f"{flow.state}, {flow.ike}"
    sas = host.run(["ip", "-o", "xfrm", "state"]).stdout.splitlines()
    sps = host.run(["ip", "-o", "xfrm", "policy"]).stdout.splitlines()
    protecting = [line for line in sps if "tmpl" in line]
    if (len(sas), len(protecting)) == (SAS, SPS):
        return ""
    return f"{len(sas)} SAs, {len(protecting)} SPs that protect"


def come_to_rest(cluster: Cluster) -> None:
    """Rekeys become seldom; returns when each sender has one CHILD_SA and nothing is left over."""
    for host in cluster.lab.hosts.values():
        cluster.client(host).apply(PolicyBody(cluster.policy(defaults=IKE), "seldom.yaml"))
    settled(cluster)


def lost(running: list[Probe]) -> list[int]:
    """Packets that each probe lost."""
    return [probe.report.lost for probe in running]


def under_load(lab: Lab, act: Callable[[], None]) -> list[Probe]:
    """What happens while probes run both ways."""
    with ExitStack() as stack:
        running = probes(lab, stack)
        act()
    assert all(probe.report.sent > 1000 for probe in running)
    return running


@pytest.mark.timeout(300)
def test_rekeys_lose_nothing(lab: Lab, watch: LeakWatch) -> None:
    """Fifty of each flow and side, over IPv4 and over IPv6, and of the IKE_SAs too."""
    cluster = begin(lab, defaults=QUICK, ike="  {rekey: 60s}\n")
    a, b = lab.hosts.values()

    def rekeys() -> None:
        for host in (a, b):
            cluster.wait_until(host, rekeys=REKEYS, timeout=200)
        cluster.charons[a.name].running.wait_for_line("rekeyed between", timeout=60)

    running = under_load(lab, rekeys)
    assert lost(running) == [0, 0, 0], [probe.report for probe in running]
    come_to_rest(cluster)


@pytest.mark.long
@pytest.mark.timeout(300)
def test_rekeys_of_both_sides_at_once_lose_nothing(lab: Lab, watch: LeakWatch) -> None:
    """A hundred times, fifty of each flow: daemons that stood still until both sides' rekeys were
    due go on in the same moment, over a wire so long that one's request meets the other's."""
    cluster = begin(lab, defaults=QUICK)
    hosts = list(lab.hosts.values())
    daemons = [cluster.daemons[host.name] for host in hosts]

    def collide() -> None:
        for _ in range(AT_ONCE):
            so_far = [rekeys_of(cluster.status(host)) for host in hosts]
            for daemon in daemons:
                daemon.freeze()
            time.sleep(1.1)  # longer than `after`
            for daemon in daemons:
                daemon.thaw()
            for host, before in zip(hosts, so_far, strict=True):
                status = cluster.status(host)
                while not all(map(gt, rekeys_of(status), before)):
                    status = cluster.client(host).status(wait=5.0)

    with ExitStack() as wire:
        for host in hosts:
            wire.enter_context(lab.faults.impair(host.name, Impairment(delay_ms=200)))
        running = under_load(lab, collide)
    assert lost(running) == [0, 0, 0], [probe.report for probe in running]
    crossed = sum(crossings(charon.log()) for charon in cluster.charons.values())
    print(f"{crossed} exchanges crossed one of the other side")
    assert crossed >= AT_ONCE, "a quarter: two flows, and both hosts count"
    come_to_rest(cluster)


def rekeys_of(status: Status) -> list[int]:
    """Of each flow."""
    return [flow.rekeys for flow in status.flows]


def crossings(log: str) -> int:
    """CREATE_CHILD_SA requests of a peer that came while one of our own to it had no answer."""
    asking = set()
    crossed = 0
    for peer, said in re.findall(r"<(.+)\|\d+> (\w+ CREATE_CHILD_SA \w+)", log):
        if said == "generating CREATE_CHILD_SA request":
            asking.add(peer)
        elif said == "parsed CREATE_CHILD_SA response":
            asking.discard(peer)
        elif said == "parsed CREATE_CHILD_SA request":
            crossed += peer in asking
    return crossed


@pytest.mark.long
@pytest.mark.timeout(240)
def test_a_charon_that_is_killed_costs_nothing(lab: Lab, watch: LeakWatch) -> None:
    """On each side, then on both at once, each time with and without a daemon that dies too."""
    cluster = begin(lab)
    a, b = lab.hosts.values()

    def crash(*hosts: Host, daemons: bool = False) -> None:
        for host in hosts:
            cluster.charons[host.name].kill9()
            if daemons:
                cluster.daemons[host.name].kill9()
        time.sleep(1.0)  # as systemd restarts it
        for host in hosts:
            cluster.start_charon(host)
            if daemons:
                cluster.start(host)
        settled(cluster)

    for act in (
        lambda: crash(a),
        lambda: crash(b),
        lambda: crash(a, b),
        lambda: crash(a, b, daemons=True),
    ):
        assert lost(under_load(lab, act)) == [0, 0, 0]
    for host in (a, b):
        assert cluster.status(host).drift.sas == 0


@pytest.mark.long
@pytest.mark.timeout(240)
def test_a_charon_that_is_frozen_costs_no_packet_where_peers_are_never_dead(
    lab: Lab, watch: LeakWatch
) -> None:
    cluster = begin(lab, ike="  {dead_after: never}\n")
    a, _ = lab.hosts.values()

    def freeze() -> None:
        cluster.charons[a.name].freeze()
        time.sleep(20)
        cluster.charons[a.name].thaw()
        settled(cluster)

    assert lost(under_load(lab, freeze)) == [0, 0, 0]


@pytest.mark.long
@pytest.mark.timeout(240)
def test_a_daemon_that_is_killed_while_charon_is_frozen_costs_nothing(
    lab: Lab, watch: LeakWatch
) -> None:
    """The new one finds a charon that takes its connection and does not answer."""
    cluster = begin(lab, ike="  {dead_after: never}\n")
    a, _ = lab.hosts.values()

    def freeze() -> None:
        cluster.charons[a.name].freeze()
        until = time.monotonic() + 20
        cluster.daemons[a.name].kill9()
        cluster.start(a)
        cluster.daemons[a.name].wait_for_line("no answer within", timeout=20)
        assert all(flow.protected for flow in cluster.status(a).flows)
        while time.monotonic() < until:
            time.sleep(0.1)
        cluster.charons[a.name].thaw()
        settled(cluster)

    assert lost(under_load(lab, freeze)) == [0, 0, 0]


@pytest.mark.long
@pytest.mark.timeout(240)
def test_a_charon_that_is_frozen_or_stopped_leaks_nothing(lab: Lab, watch: LeakWatch) -> None:
    """By default a peer whose charon is silent for 5 s is dead: its SAs end, and it comes back."""
    cluster = begin(lab)
    a, b = lab.hosts.values()

    def freeze() -> None:
        cluster.charons[a.name].freeze()
        until = time.monotonic() + 20
        while cluster.flow(b).protected:
            assert time.monotonic() < until, "the dead peer was not found"
            time.sleep(0.05)
        found = time.monotonic() - (until - 20)
        print(f"a dead peer was found after {found:.1f} s")
        while time.monotonic() < until:
            time.sleep(0.1)
        assert "does not answer" in cluster.flow(a).reason or cluster.flow(a).protected
        cluster.charons[a.name].thaw()
        settled(cluster)

    print(f"frozen for 20 s: lost {lost(under_load(lab, freeze))}")

    def stop() -> None:
        cluster.charons[a.name].stop()
        time.sleep(2.0)
        assert not cluster.flow(a).protected
        assert "charon" in cluster.flow(a).reason
        cluster.start_charon(a)
        settled(cluster)

    print(f"stopped and started after 2 s: lost {lost(under_load(lab, stop))}")


@pytest.mark.long
@pytest.mark.timeout(120)
def test_a_daemon_that_is_killed_costs_nothing(lab: Lab, watch: LeakWatch) -> None:
    cluster = begin(lab)
    a, b = lab.hosts.values()

    def kill() -> None:
        for host in (a, b, a):
            cluster.daemons[host.name].kill9()
            time.sleep(1.0)
            cluster.start(host)
            cluster.wait_protected()
        settled(cluster)

    assert lost(under_load(lab, kill)) == [0, 0, 0]
    assert all(flow.rekeys == 0 for host in (a, b) for flow in cluster.status(host).flows)
