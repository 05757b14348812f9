"""The wire of a lab under watch, by a watch that has shown that it is not blind."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from ipaddress import ip_address

from tunsec_lab.capture import LeakWatch
from tunsec_lab.cluster import Cluster
from tunsec_lab.host import Host, Lab
from tunsec_lab.packets import Protected, protect


@contextmanager
def watched(
    lab: Lab, *, needs_esp: bool = True, count_esp_only: bool = False
) -> Iterator[LeakWatch]:
    """Sees every packet from before the first daemon to after the last; overlays are down again
    when the block begins.

    It is shown clear packets first, of every overlay, on the very devices that are protected later.
    """
    tunnels = {(overlay.kind, overlay.port) for overlay in lab.topology.overlays}
    flows = [protect(kind, port=port) for kind, port in sorted(tunnels)]
    with LeakWatch(lab, protected=flows, count_esp_only=count_esp_only) as seen:
        seen.prove_sees(lab.speak_over_overlays)
        yield seen
        seen.assert_closed(needs_esp=needs_esp)


@contextmanager
def watched_flows(lab: Lab, flows: Mapping[Protected, Callable[[], object]]) -> Iterator[LeakWatch]:
    """The same for flows of any kind, each with what sends its packets in clear.

    That must end so that nothing sends any more when the block begins.
    """
    with LeakWatch(lab, protected=flows) as seen:
        for speak in flows.values():
            seen.prove_sees(speak)
        yield seen
        seen.assert_closed()


Packets = Counter[tuple[str, int]]


def packets_of(cluster: Cluster, host: Host) -> Packets:
    """What a host has sent and received in ESP, by kind and IP version."""
    found = Packets()
    for flow in cluster.status(host).flows:
        found[flow.kind, ip_address(flow.remote).version] += flow.in_packets + flow.out_packets
    return found


def show_packets(keying: str, now: Packets, before: Packets, watch: LeakWatch) -> None:
    """Rows for docs/policy.md, shown by `pytest -s`."""
    clear = watch.report().clear
    for (kind, version), count in sorted((now - before).items()):
        print(f"| {kind} | {keying} | IPv{version} | {count:,} | {clear} |")
