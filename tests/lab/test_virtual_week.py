"""Days in virtual time: VXLAN by IKE, real charons, rekeys as by default.

TUNSEC_LAB_DAYS says how many, TUNSEC_LAB_RATE how many packets a second. A week takes minutes of
computing:

    netns-lab/lab exec --clock virtual --timeout 40m \\
        --env TUNSEC_LAB_DAYS=7 --env TUNSEC_LAB_RATE=1 -- \\
        python3 -m pytest tests/lab/test_virtual_week.py -s
"""

import os
import time
from collections import Counter

import pytest

from tests.lab.watched import watched
from tunsec_lab.cluster import Cluster
from tunsec_lab.host import Host, Lab
from tunsec_lab.pile_up import assert_nothing_piled_up, lines, piled_up
from tunsec_lab.probe import Probe
from tunsec_lab.topology import parse_topology

TWO_HOSTS = """
networks:
  wire: {mtu: 1500}
hosts:
  a: {links: {eth0: {network: wire, addresses: [192.0.2.11/24]}}}
  b: {links: {eth0: {network: wire, addresses: [192.0.2.12/24]}}}
overlays:
  red: {kind: vxlan, vni: 41, mtu: 1400, members: {a: [10.41.0.1/24], b: [10.41.0.2/24]}}
"""
"""One pair of addresses, so one IKE_SA: a second one would cost half as much computing again."""
DAYS = int(os.environ.get("TUNSEC_LAB_DAYS", "1"))
RATE = float(os.environ.get("TUNSEC_LAB_RATE", "0.2"))
"""Packets a second: with one a second they are half of the computing."""
PROBES = round(DAYS * 86_400 * RATE)
CHILD_REKEYS = DAYS * 24
"""At least, of each sender: an hour each, and a little early by the jitter."""
IKE_REKEYS = DAYS * 6
"""At least: four hours each, and a little early by charon's own jitter."""
SAS = 4
"""In the kernel of a host at rest: two senders, two directions."""
REST_WITHIN = 300.0
"""Seconds; a rekey may be under way, and the old CHILD_SA drains."""
IKE = "  {dead_after: 1h}\n"
"""Probes of dead peers once a second, as by default, would take hours of computing: a million
exchanges of two charons. Everything else is as by default."""


@pytest.mark.needs("esp-ipv4", "esn", "vxlan", "bridge", "nft-inet", "nft-netdev-egress")
@pytest.mark.virtual_time
@pytest.mark.timeout(0)  # virtual seconds; the lab's own timeout is real
def test_days_of_rekeys_by_ike_lose_leak_and_leave_nothing() -> None:
    with Lab(parse_topology(TWO_HOSTS, name="two-hosts-ipv4"), overlays_up=False) as lab:
        a, b = lab.hosts.values()
        red = b.overlay_addresses("red")[0]
        with watched(lab, count_esp_only=True) as watch:
            cluster = Cluster(lab, defaults="  {keying: ike}\n", ike=IKE)
            for host in (a, b):
                cluster.start_charon(host)
            cluster.start_all()
            for host in (a, b):
                host.raise_overlays()
            with Probe(a, b, to=red, rate=RATE, count=round(2 * 3600 * RATE)) as warm:
                warm.wait()
            assert warm.report.lost == 0
            early = leftovers(cluster)
            with Probe(a, b, to=red, rate=RATE, count=PROBES) as probe:
                probe.wait()
            late = leftovers(cluster)
            watch.assert_closed()
            assert (probe.report.sent, probe.report.lost) == (PROBES, 0)
            assert watch.report().esp >= PROBES
        for host in (a, b):
            status = cluster.status(host)
            (flow,) = status.flows
            replaced = cluster.charons[host.name].log().count(" rekeyed between ")
            print(
                f"{host.name}: {flow.rekeys} rekeys of what it sends on, {replaced} IKE_SA rekeys"
            )
            assert flow.rekeys >= CHILD_REKEYS
            assert replaced >= IKE_REKEYS
            assert status.drift == type(status.drift)()
            assert not status.warnings
        print(f"after 2 h {early}\nafter {DAYS} days more {late}")
        assert_nothing_piled_up(early, late)


def leftovers(cluster: Cluster) -> Counter[str]:
    """What could pile up, IKE_SAs too, on hosts at rest: one CHILD_SA of each sender."""
    until = time.monotonic() + REST_WITHIN
    for host in cluster.lab.hosts.values():
        while not at_rest(cluster, host):
            assert time.monotonic() < until, f"{host.name}: {cluster.flow(host)}"
            time.sleep(1)
    time.sleep(1)  # until daemons have closed what these questions opened
    return piled_up(cluster)


def at_rest(cluster: Cluster, host: Host) -> bool:
    """Whether no rekey is under way and no old SA left."""
    flow = cluster.flow(host)
    assert flow.ike is not None
    senders = sorted(one.own for one in flow.ike.child_sas)
    return flow.state == "INSTALLED" and senders == [False, True] and sas(host) == SAS


def sas(host: Host) -> int:
    """In the kernel."""
    return len(lines(host, "state"))
