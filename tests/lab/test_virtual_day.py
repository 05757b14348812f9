"""A day in virtual time: real kernel, real daemons, default rekey of an hour, a probe every 5 s."""

from collections import Counter

import pytest

from tests.lab.watched import watched
from tunsec_lab.cluster import Cluster
from tunsec_lab.host import Host, Lab
from tunsec_lab.pile_up import assert_nothing_piled_up, piled_up
from tunsec_lab.probe import Probe

HOUR = 3600
DAY = 24 * HOUR
RATE = 0.2
"""Packets a second: with one a second they would be half of the computing."""
ROLLOVERS = 24
"""At least: an hour each, and a little early by the jitter."""


@pytest.mark.needs("esp-ipv4", "esn", "vxlan", "bridge", "nft-inet", "nft-netdev-egress")
@pytest.mark.virtual_time
@pytest.mark.timeout(0)  # virtual seconds; the lab's own timeout is real
def test_a_day_of_hourly_rekeys_loses_leaks_and_leaves_nothing() -> None:
    with Lab("two-hosts", overlays_up=False) as lab:
        a, b = lab.hosts.values()
        red = b.overlay_addresses("red")[0]
        with watched(lab) as watch:
            cluster = Cluster(lab)
            cluster.start_all()
            for host in (a, b):
                host.raise_overlays()
            with Probe(a, b, to=red, rate=RATE, count=round(2 * HOUR * RATE)) as warm:
                warm.wait()
            assert warm.report.lost == 0
            early = leftovers(cluster)
            with Probe(a, b, to=red, rate=RATE, count=round(DAY * RATE)) as probe:
                probe.wait()
            late = leftovers(cluster)
            watch.assert_closed()
            assert (probe.report.sent, probe.report.lost) == (DAY * RATE, 0)
            assert len(watch.report().esp_flows) >= 2 * 2 * ROLLOVERS
        for host in (a, b):
            status = cluster.status(host)
            assert all(flow.rekeys >= 2 * ROLLOVERS for flow in status.flows)
            assert status.drift == type(status.drift)()
            assert not status.warnings
        print(f"after 2 h {early}\nafter 26 h {late}")
        assert_nothing_piled_up(early, late)


def leftovers(cluster: Cluster) -> Counter[str]:
    """What could pile up, private keys too."""
    keys = {
        f"{host.name}: private keys": status_keys(cluster, host)
        for host in cluster.lab.hosts.values()
    }
    return piled_up(cluster) + Counter(keys)


def status_keys(cluster: Cluster, host: Host) -> int:
    directory = cluster.status(host).directory
    assert directory is not None
    return directory.private_keys_held
