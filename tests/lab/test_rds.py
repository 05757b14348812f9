"""RDS over TCP: messages of every size both ways, whichever host dials first, by both keyings."""

import socket
import time
from collections.abc import Iterator
from functools import partial

import pytest

from tests.lab.kernel_flows import begin_closed, injected, let_key, rds_in_clear, talk
from tests.lab.watched import Packets, packets_of, show_packets, watched_flows
from tunsec.model.flow import Keying
from tunsec.wire.control import PolicyBody
from tunsec_lab.capture import LeakWatch
from tunsec_lab.cluster import Cluster
from tunsec_lab.drops import xfrm_errors
from tunsec_lab.host import Host, Lab
from tunsec_lab.namespaces import inside
from tunsec_lab.packets import protect
from tunsec_lab.rds import SIZES, RdsTalk, tcp_connections

pytestmark = pytest.mark.needs(
    "esp-ipv4", "esp-ipv6", "esn", "nft-inet", "rds-tcp", "sock-destroy", "xfrm-statistics"
)

FLOWS = "  bus: {kind: rds-tcp, between: all}\n"
DEFAULTS = "  {{keying: {keying}, rekey: {{after: 1s, hard: 60s, jitter: 0%}}}}\n"
RDS_TCP_PORT = 16385
PATHS = 8
"""TCP connections that the kernel opens for one pair of addresses (net/rds/rds.h,
RDS_MPATH_WORKERS)."""


@pytest.fixture
def watch(lab: Lab) -> Iterator[LeakWatch]:
    with watched_flows(lab, {protect("rds-tcp"): partial(rds_in_clear, lab)}) as seen:
        yield seen


def blocked_packets(host: Host) -> int:
    """What block SPs held back on the way out."""
    return xfrm_errors(host).get("XfrmOutPolBlock", 0)


def programs_cannot_dial(cluster: Cluster, one: Host, other: Host) -> None:
    """RDS itself would answer them."""
    for family, to in ((socket.AF_INET, other.ipv4), (socket.AF_INET6, other.ipv6)):
        before = injected(cluster, one, "bus")
        with inside(one.netns), socket.socket(family) as program:
            program.setblocking(False)
            program.connect_ex((str(to), RDS_TCP_PORT))  # its SYN is dropped in silence
        assert injected(cluster, one, "bus") > before


@pytest.mark.timeout(300)
@pytest.mark.parametrize("keying", list(Keying))
def test_rds_is_protected_from_its_first_packet_through_every_change(
    lab: Lab, watch: LeakWatch, keying: Keying
) -> None:
    a, b = lab.hosts.values()
    cluster = Cluster(lab, flows=FLOWS, defaults=DEFAULTS.format(keying=keying))

    begin_closed(cluster, keying)
    with (
        RdsTalk(a, b, version=4, sizes=SIZES, port=4001) as smaller_dials,
        RdsTalk(b, a, version=6, sizes=SIZES, port=4002) as larger_dials,
    ):
        until = time.monotonic() + 10
        while not (blocked_packets(a) and blocked_packets(b)):
            assert time.monotonic() < until, "RDS does not try to connect"
            time.sleep(0.05)
        assert (smaller_dials.progress(), larger_dials.progress()) == (0, 0)
        assert watch.report().esp == 0

        let_key(cluster, keying)
        assert smaller_dials.wait().echoed == len(SIZES)
        # After a dial that failed the larger address waits for the next message, from either side
        # (net/rds/connection.c, rds_queue_reconnect): it brings the held one with it.
        talk(b, a, version=6)
        assert larger_dials.wait().echoed == len(SIZES)
    for one, other, version in ((b, a, 4), (a, b, 6)):
        talk(one, other, version=version)
    assert (injected(cluster, a, "bus"), injected(cluster, b, "bus")) == (0, 0)
    programs_cannot_dial(cluster, a, b)
    for host in (a, b):
        assert len(tcp_connections(host)) == 2 * PATHS
        for flow in cluster.status(host).flows:
            assert flow.in_bytes > sum(SIZES) < flow.out_bytes, flow

    with RdsTalk(a, b, version=4) as over4, RdsTalk(b, a, version=6) as over6:

        def both_go_on() -> None:
            for talking in (over4, over6):
                talking.wait_for_more()

        both_go_on()
        for host in (a, b):
            rekeys = max(flow.rekeys for flow in cluster.status(host).flows)
            cluster.wait_until(host, rekeys=rekeys + 2)
        both_go_on()

        for host in (a, b):  # reset by each end
            host.run(["ss", "-K", "sport = :16385 or dport = :16385"])
            both_go_on()

        cluster.daemons[a.name].kill9()
        both_go_on()
        cluster.start(a)
        cluster.wait_protected()
        both_go_on()

        def open_and_close() -> None:
            """Protection goes and comes under connections that are in use."""
            for host in (a, b):
                cluster.client(host).release("bus")
            both_go_on()
            assert not any(flow.protected for flow in cluster.status(a).flows)
            for host in (a, b):
                cluster.client(host).apply(PolicyBody(cluster.policy(), "back.yaml"))
            cluster.wait_protected()
            both_go_on()

        show_packets(keying, packets_of(cluster, b), Packets(), watch)
        assert watch.prove_sees(open_and_close) > 0
        both_go_on()
    for report in (over4.report, over6.report):
        assert report.sent == report.echoed > 50
