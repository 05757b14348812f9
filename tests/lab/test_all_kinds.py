"""Kinds of flow between the same two hosts at once: each by its own SAs, through rekeys."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial

import pytest

from tests.lab.kernel_flows import datagrams, rdma_in_clear, rds_in_clear, talk, transfer
from tests.lab.watched import watched_flows
from tunsec.model.flow import Keying
from tunsec.wire.control import PolicyBody
from tunsec_lab.capture import LeakWatch
from tunsec_lab.cluster import Cluster
from tunsec_lab.host import Lab
from tunsec_lab.packets import Protected, protect
from tunsec_lab.probe import Probe
from tunsec_lab.rds import RdsTalk
from tunsec_lab.roce import RdmaTransfer, Verb, add_rxe

pytestmark = pytest.mark.needs(
    "esp-ipv4", "esp-ipv6", "esn", "geneve", "nft-inet", "nft-netdev-egress", "rds-tcp", "rxe",
    "vxlan",
)  # fmt: skip

NAMED_UDP, OTHER_UDP = 5000, 5123
OVERLAY = "  overlay: {kind: vxlan, between: all}\n"
FOUR = (
    "  backbone: {kind: geneve, between: all}\n"
    "  bus: {kind: rds-tcp, between: all}\n"
    "  storage: {kind: rocev2, between: all}\n"
)
NAMED = f"  metrics: {{kind: udp, port: {NAMED_UDP}, between: all}}\n"
QUICK = "  {{keying: {keying}, rekey: {{after: {after}, hard: 60s, jitter: 0%}}}}\n"
AFTER = {Keying.DIRECTORY: "1s", Keying.IKE: "4s"}
"""One IKE_SA makes and deletes the CHILD_SAs of all flows of a pair of addresses, one after the
other: the lab's processors are too slow for sixteen of each a second."""


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab("all-kinds", overlays_up=False) as made:
        yield made


@pytest.fixture
def watch(lab: Lab) -> Iterator[LeakWatch]:
    a, b = lab.hosts.values()

    def first_rdma() -> None:
        for host in (a, b):
            add_rxe(host)
        rdma_in_clear(lab)

    flows: dict[Protected, Callable[[], object]] = {
        protect("rds-tcp"): partial(rds_in_clear, lab),  # first: the hosts are rebooted
        protect("rocev2"): first_rdma,
        protect("vxlan"): lab.speak_over_overlays,
        protect("geneve"): lab.speak_over_overlays,
        protect("udp", port=NAMED_UDP): partial(datagrams, a, b, port=NAMED_UDP),
        protect("udp", port=OTHER_UDP): partial(datagrams, a, b, port=OTHER_UDP),
    }
    with watched_flows(lab, flows) as seen:
        yield seen


def begin(lab: Lab, *, flows: str, defaults: str = "  {}\n") -> Cluster:
    """Everything is protected, overlays are up."""
    cluster = Cluster(lab, flows=flows, defaults=defaults)
    if "keying: ike" in defaults:
        for host in lab.hosts.values():
            cluster.start_charon(host)
    cluster.start_all()
    for host in lab.hosts.values():
        host.raise_overlays()
    return cluster


@pytest.mark.timeout(120)
def test_no_two_flows_share_an_sa(lab: Lab, watch: LeakWatch) -> None:
    """Soft-RoCE's SAs take all UDP of the pair that no other flow names, and nothing of those."""
    a, b = lab.hosts.values()
    cluster = begin(lab, flows=OVERLAY + FOUR + NAMED)
    spis = {
        (flow.flow, flow.remote): int(spi, 16)
        for host in (a, b)
        for flow in cluster.status(host).flows
        for spi in (flow.spi_out,)
        if spi is not None
    }
    assert len(set(spis.values())) == 5 * 2 * 2
    owner = {spi: flow for (flow, _), spi in spis.items()}

    def carried_by(act: Callable[[], object]) -> set[str]:
        """The flows by whose SAs packets went meanwhile."""
        before = Counter(watch.report().esp_flows)
        act()
        return {owner[esp.spi] for esp in Counter(watch.report().esp_flows) - before}

    # Overlay devices speak by themselves: each is up alone, and the two kinds in turn.
    for host in (a, b):
        host.lower_overlays()

    def over(*names: str) -> bool:
        devices = [each.device for each in lab.topology.overlays if each.name in names]
        for host in (a, b):
            host.ip(*(f"link set {device} up" for device in devices))
        reached = [a.reaches(b.overlay_addresses(name)[0]) for name in names]
        for host in (a, b):
            host.lower_overlays()
        return all(reached)

    assert carried_by(lambda: over("vx4", "vx6")) == {"overlay"}
    assert carried_by(lambda: over("gn4", "gn6")) == {"backbone"}
    assert carried_by(lambda: datagrams(a, b, port=NAMED_UDP)) == {"metrics"}
    assert carried_by(lambda: datagrams(a, b, port=OTHER_UDP)) == {"storage"}
    assert carried_by(lambda: transfer(a, b, verb=Verb.SEND, version=6)) == {"storage"}
    # RDS goes on speaking on its connections by itself, so it is the last of these.
    assert "bus" in carried_by(lambda: talk(a, b, version=6))

    # VXLAN without keys, RoCE with them: the wider flow is no way out.
    for host in (a, b):
        cluster.client(host).apply(PolicyBody(cluster.policy(flows=FOUR + NAMED), "less.yaml"))
    assert carried_by(lambda: over("vx4", "vx6")) <= {"bus"}
    assert not over("vx4")
    assert datagrams(a, b, port=OTHER_UDP) == 20


def rekeys_lose_nothing(lab: Lab, *, keying: Keying, rekeys: int, seconds: int) -> None:
    """Of four kinds at once, over both families; transfers take so many seconds each."""
    a, b = lab.hosts.values()
    cluster = begin(
        lab, flows=OVERLAY + FOUR, defaults=QUICK.format(keying=keying, after=AFTER[keying])
    )
    begun = max(flow.rekeys for host in (a, b) for flow in cluster.status(host).flows)
    with ExitStack() as stack:
        probes = [
            stack.enter_context(
                Probe(a, b, to=b.overlay_addresses(overlay.name)[0], rate=100, port=9000 + number)
            )
            for number, overlay in enumerate(lab.topology.overlays)
        ]
        talks = [
            stack.enter_context(RdsTalk(one, other, version=version))
            for one, other, version in ((a, b, 4), (b, a, 6))
        ]
        transfers = [
            stack.enter_context(
                RdmaTransfer(a, b, verb=verb, version=version, seconds=seconds, port=18600 + number)
            )
            for number, (verb, version) in enumerate(
                ((Verb.SEND, 4), (Verb.WRITE, 6), (Verb.READ, 4))
            )
        ]
        for host in (a, b):
            cluster.wait_until(host, rekeys=begun + rekeys, timeout=200)
        for running in transfers:
            running.wait(timeout=120)
    for talking in talks:
        assert talking.report.sent == talking.report.echoed > rekeys
    for probe in probes:
        assert probe.report.sent > 100 * rekeys / 2
        assert probe.report.lost == 0, probe.report
    for host in (a, b):
        for flow in cluster.status(host).flows:
            assert flow.in_packets, flow
            assert flow.out_packets, flow


@pytest.mark.timeout(200)
def test_rekeys_of_four_kinds_at_once_lose_nothing(lab: Lab, watch: LeakWatch) -> None:
    rekeys_lose_nothing(lab, keying=Keying.DIRECTORY, rekeys=5, seconds=5)


@pytest.mark.long
@pytest.mark.timeout(400)
@pytest.mark.parametrize("keying", list(Keying))
def test_twenty_rekeys_of_four_kinds_at_once_lose_nothing(
    lab: Lab, watch: LeakWatch, keying: Keying
) -> None:
    rekeys_lose_nothing(lab, keying=keying, rekeys=20, seconds=20)
