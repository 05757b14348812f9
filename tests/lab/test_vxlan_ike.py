"""VXLAN by IKE with real charons and real daemons: what issue after issue must go on to hold."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tunsec_lab.capture import LeakWatch
from tunsec_lab.cluster import Cluster
from tunsec_lab.host import Host, Lab
from tunsec_lab.packets import protect
from tunsec_lab.probe import Probe

pytestmark = pytest.mark.needs(
    "esp-ipv4", "esp-ipv6", "esn", "vxlan", "bridge", "nft-inet", "nft-netdev-egress"
)

IKE = "  {keying: ike}\n"
QUICK = "  {keying: ike, rekey: {after: 1s, hard: 60s}}\n"


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab("two-hosts", overlays_up=False) as made:
        yield made


@pytest.fixture
def watch(lab: Lab) -> Iterator[LeakWatch]:
    """Sees every packet from before the first daemon to after the last, and is not blind."""
    a, b = lab.hosts.values()
    with LeakWatch(lab, protected=[protect("vxlan")]) as seen:

        def clear() -> None:
            for host in (a, b):
                host.raise_overlays()
            assert a.reaches(b.overlay_addresses("red")[0])
            assert a.reaches(b.overlay_addresses("blue")[0])
            for host in (a, b):
                lower_overlays(host)

        seen.prove_sees(clear)
        yield seen
        seen.assert_closed()


def lower_overlays(host: Host) -> None:
    """Take overlay devices down."""
    host.ip(*(f"link set {each.device} down" for each in host.lab.overlays_of(host)))


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


@pytest.mark.timeout(240)
def test_rekeys_lose_nothing(lab: Lab, watch: LeakWatch) -> None:
    cluster = begin(lab, defaults=QUICK)
    a, b = lab.hosts.values()
    with ExitStack() as stack:
        running = probes(lab, stack)
        for host in (a, b):
            cluster.wait_until(host, rekeys=50, timeout=150)
    for probe in running:
        assert probe.report.sent > 10_000
        assert probe.report.lost == 0, probe.report
