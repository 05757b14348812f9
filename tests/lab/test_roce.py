"""RoCEv2 by Soft-RoCE: SEND, WRITE and READ, what else the flow covers, and what it leaves to
others."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import pytest

from tests.lab.kernel_flows import (
    begin_closed,
    datagrams,
    injected,
    let_key,
    rdma_in_clear,
    transfer,
)
from tests.lab.watched import Packets, packets_of, show_packets, watched_flows
from tunsec.adapters.rdma import HostRdma
from tunsec.model.flow import Keying
from tunsec.wire.control import PolicyBody
from tunsec_lab.capture import LeakWatch
from tunsec_lab.cluster import Cluster
from tunsec_lab.errors import LabError
from tunsec_lab.host import Host, Lab
from tunsec_lab.packets import Protected, protect
from tunsec_lab.roce import RdmaTransfer, Verb, add_rxe
from tunsec_lab.topology import load_topology

pytestmark = pytest.mark.needs("esp-ipv4", "esp-ipv6", "esn", "nft-inet", "rxe")

FLOWS = "  storage: {kind: rocev2, between: all}\n"
DEFAULTS = "  {{keying: {keying}, rekey: {{after: 1s, hard: 60s, jitter: 0%}}}}\n"
ROCE_PORT, OTHER_UDP = 4791, 5123
"""The second is a port that no flow names."""


@pytest.fixture
def watch(lab: Lab) -> Iterator[LeakWatch]:
    a, b = lab.hosts.values()
    for host in (a, b):
        add_rxe(host)

    flows: dict[Protected, Callable[[], object]] = {
        protect("rocev2"): partial(rdma_in_clear, lab),
        protect("udp", port=OTHER_UDP): partial(datagrams, a, b, port=OTHER_UDP),
    }
    with watched_flows(lab, flows) as seen:
        yield seen


def is_refused(one: Host, other: Host, *, port: int = OTHER_UDP) -> bool:
    """Whether the kernel takes no datagram of a program to a port, one that no flow names."""
    send = (
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        f"s.sendto(b'x', ('{other.ipv4}', {port}))"
    )
    return "PermissionError" in one.run(["python3", "-c", send], check=False).stderr


def is_stuck(one: Host, other: Host) -> bool:
    """Whether a transfer fails."""
    try:
        transfer(one, other, verb=Verb.WRITE, version=4)
    except LabError:
        return True
    return False


def software_roce() -> set[str]:
    """Devices that do not send past the kernel."""
    return {device.name for device in HostRdma().devices() if device.roce and not device.hardware}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("keying", list(Keying))
def test_rdma_and_all_other_udp_of_the_pair_go_in_esp_or_not_at_all(
    lab: Lab, watch: LeakWatch, keying: Keying
) -> None:
    """IKE too crosses between the hosts by UDP, and does so while all other UDP is blocked."""
    a, b = lab.hosts.values()
    cluster = Cluster(lab, flows=FLOWS, defaults=DEFAULTS.format(keying=keying))
    begin_closed(cluster, keying)
    assert is_stuck(a, b)
    assert is_refused(a, b)
    assert watch.report().esp == 0

    let_key(cluster, keying)
    assert software_roce() >= {a.rxe, b.rxe}
    assert not any("RoCE" in warning for warning in cluster.status(a).warnings)
    assert (watch.report().ike > 0) is (keying is Keying.IKE)
    for version in (4, 6):
        before = cluster.flow(a, version=version, flow="storage")
        sizes = {verb: transfer(a, b, verb=verb, version=version) for verb in Verb}
        after = cluster.flow(a, version=version, flow="storage")
        assert after.out_bytes - before.out_bytes > sizes[Verb.SEND] + sizes[Verb.WRITE]
        assert after.in_bytes - before.in_bytes > sizes[Verb.READ]
    assert injected(cluster, a, "storage") == 0
    assert is_refused(a, b, port=ROCE_PORT), "a program must not speak as if it were Soft-RoCE"
    assert injected(cluster, a, "storage") == 1
    esp = watch.report().esp
    assert datagrams(a, b, port=OTHER_UDP) == 20
    assert watch.report().esp >= esp + 20

    show_packets(keying, packets_of(cluster, a), Packets(), watch)

    # A queue pair that is in use keeps its route, and with it what protects it.
    with RdmaTransfer(a, b, verb=Verb.WRITE, seconds=5) as running:
        for host in (a, b):
            rekeys = max(flow.rekeys for flow in cluster.status(host).flows)
            cluster.wait_until(host, rekeys=rekeys + 3)
        running.wait()

    with RdmaTransfer(a, b, verb=Verb.WRITE, seconds=6) as running:
        running.wait_until_connected()
        other = cluster.policy(flows="  bus: {kind: rds-tcp, between: all}\n")
        cluster.client(a).apply(PolicyBody(other, "without.yaml"))
        with pytest.raises(LabError):
            running.wait()
    assert is_refused(a, b)


@pytest.mark.timeout(60)
def test_full_size_packets_that_do_not_fit_with_esp_are_warned_of_and_fail() -> None:
    """Soft-RoCE's MTU leaves room for its own headers only; ESP's are told by status."""
    usual = load_topology("two-hosts")
    tight = replace(usual, networks=(replace(usual.networks[0], mtu=2140),), overlays=())
    with Lab(tight) as lab:
        a, b = lab.hosts.values()
        for host in (a, b):
            add_rxe(host)
        cluster = Cluster(lab, flows=FLOWS)
        cluster.start_all()
        warned = [warning for warning in cluster.status(a).warnings if "RoCE" in warning]
        assert [warning.split(" with ESP")[0] for warning in warned] == [
            "storage to b 192.0.2.12: RoCE packets of path MTU 2048 take up to 2148 bytes",
            "storage to b 2001:db8::12: RoCE packets of path MTU 2048 take up to 2168 bytes",
        ]
        for version in (4, 6):
            for mtu, fits in ((2048, False), (1024, True)):
                with RdmaTransfer(a, b, verb=Verb.WRITE, version=version, mtu=mtu) as running:
                    if fits:
                        running.wait()
                        continue
                    with pytest.raises(LabError, match="Completion with error"):
                        running.wait()
