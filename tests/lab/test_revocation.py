"""A certificate is revoked between real daemons: a reload cuts the flow off, and nothing goes in
clear."""

import shutil
import time
from collections.abc import Iterator

import pytest

from tests.lab.test_vxlan_directory import (
    QUICK,
    answered,
    bring_up,
)
from tunsec_lab.capture import LeakWatch
from tunsec_lab.cluster import Cluster
from tunsec_lab.host import Host, Lab
from tunsec_lab.probe import Probe

pytestmark = pytest.mark.needs(
    "esp-ipv4", "esp-ipv6", "esn", "vxlan", "bridge", "nft-inet", "nft-netdev-egress"
)


@pytest.fixture
def lab() -> Iterator[Lab]:
    """Three hosts whose overlay devices are down."""
    with Lab("three-hosts", overlays_up=False) as made:
        yield made


def red(host: Host) -> str:
    """Its address in the overlay of all three."""
    return str(host.overlay_addresses("red")[0])


def tunsec(host: Host, *words: object) -> str:
    """What a command of a host's admin says."""
    return host.run(["tunsec", *map(str, words)]).stdout


def revoke(cluster: Cluster, host: Host, peer: Host) -> None:
    """The admin revokes a peer and copies the list; no daemon is told."""
    ca = cluster.folder / "ca"
    tunsec(host, "ca", "revoke", ca, peer.name)
    shutil.copy(ca / "crl.pem", cluster.identity(host) / ".crl.pem")
    (cluster.identity(host) / ".crl.pem").rename(cluster.identity(host) / "crl.pem")


def with_peer(cluster: Cluster, host: Host, peer: Host) -> list[tuple[bool, str]]:
    """Whether each relation with a peer is protected, and why not."""
    flows = cluster.status(host).flows
    return [(flow.protected, flow.reason) for flow in flows if flow.peer == peer.name]


def sas_with(host: Host, peer: Host) -> list[str]:
    """SAs in a kernel that go to or come from a peer."""
    ends = set(map(str, peer.addresses))
    lines = host.run(["ip", "-o", "xfrm", "state"]).stdout.splitlines()
    return [line for line in lines if ends & set(line.replace("\\", " ").split()[:4])]


def test_a_reload_cuts_a_revoked_peer_off(lab: Lab, watch: LeakWatch) -> None:
    a, b, c = lab.hosts.values()
    cluster = Cluster(lab, defaults=QUICK)
    bring_up(cluster, a, b, c)
    cluster.wait_protected()
    with (
        Probe(a, b, to=red(b), rate=500) as to_b,
        Probe(a, c, to=red(c), rate=500) as to_c,
    ):
        revoke(cluster, a, b)
        time.sleep(2)
        assert all(protected for protected, _ in with_peer(cluster, a, b)), "not before a reload"
        assert len(sas_with(a, b)) >= 4
        cluster.client(a).reload()
        after = with_peer(cluster, a, b)  # once the reload is answered
        assert after
        assert not any(protected for protected, _ in after)
        assert all("was revoked by CN=lab" in reason for _, reason in after), after
        assert sas_with(a, b) == []
        assert (
            a.run(["tunsec", "status", "--run", a.run_dir], check=False).stdout.count(
                "was revoked by CN=lab"
            )
            == 2
        )
        time.sleep(3)  # b goes on offering
        assert sas_with(a, b) == []
        assert a.ping(red(b), count=5, wait=0.1).received == 0
    assert to_b.report.lost > 500
    assert to_c.report.lost == 0, "others do not notice"
    directory = cluster.status(a).directory
    assert directory is not None
    assert directory.refused.keys() == {"revoked-certificate"}

    tunsec(a, "ca", "renew", cluster.identity(b), "--ca", cluster.folder / "ca")
    tunsec(b, "reload", "--run", b.run_dir)
    cluster.wait_protected()
    assert answered(a, red(b))


def test_a_daemon_that_starts_with_a_list_ends_what_it_finds(lab: Lab, watch: LeakWatch) -> None:
    a, b, c = lab.hosts.values()
    cluster = Cluster(lab)
    bring_up(cluster, a, b, c)
    cluster.wait_protected()
    assert answered(a, red(b))
    time.sleep(1.5)  # until the daemon has written down whom it believes
    cluster.daemons["a"].kill9()
    revoke(cluster, a, b)
    away = cluster.directory.with_name("away")
    cluster.directory.rename(away)
    assert len(sas_with(a, b)) == 4, "nobody is there to remove them"
    cluster.start(a)
    assert sas_with(a, b) == []
    assert len(sas_with(a, c)) == 4, "others are carried on"
    assert all("was revoked by CN=lab" in reason for _, reason in with_peer(cluster, a, b))
    assert a.ping(red(b), count=5, wait=0.1).received == 0
    assert a.ping(red(c), count=5).lost == 0
    away.rename(cluster.directory)
