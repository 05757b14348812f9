"""Status as Prometheus metrics. Nothing is counted here: each scrape reads the status anew."""

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from tunsec.daemon.health import Part
from tunsec.wire.control import FlowStatus, Status

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST

_FLOW_LABELS: Final = ("flow", "tenant", "peer", "local", "remote")


class StatusCollector(Collector):
    """Turns a status into metric families when it is asked."""

    def __init__(self, status: Callable[[], Status]) -> None:
        self._status = status

    def collect(self) -> Iterable[Metric]:
        """All families of one status."""
        status = self._status()
        yield from _host(status)
        yield from _flows(status.flows)
        yield from _guard(status)
        yield from _directory(status)
        yield from _services(status)

    def describe(self) -> Iterable[Metric]:
        """Nothing beforehand: registering must not ask for a status."""
        return ()


def exposition(status: Callable[[], Status]) -> bytes:
    """The text that a scrape gets."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(StatusCollector(status))
    return generate_latest(registry)


def _host(status: Status) -> Iterator[Metric]:
    build = GaugeMetricFamily("tunsec_build_info", "Version of tunsecd", labels=("host", "version"))
    build.add_metric((status.host, status.version), 1)
    yield build
    yield _gauge("tunsec_uptime_seconds", "Since tunsecd started", status.uptime)
    yield _gauge("tunsec_policy_age_seconds", "Since the policy came in force", status.policy.age)
    yield _gauge(
        "tunsec_policy_refused",
        "Whether the newest policy was not taken",
        bool(status.policy.error),
    )
    drift = CounterMetricFamily(
        "tunsec_drift_repaired", "What others changed and tunsec put right", labels=("what",)
    )
    drift.add_metric(("sa",), status.drift.sas)
    drift.add_metric(("sp",), status.drift.sps)
    drift.add_metric(("guard",), status.drift.guard)
    yield drift
    lost = CounterMetricFamily(
        "tunsec_kernel_events_lost", "Times that the kernel's event lane overran"
    )
    lost.add_metric((), status.drift.events_lost)
    yield lost
    trouble = GaugeMetricFamily(
        "tunsec_trouble",
        "Whether a part is not as asked; it is tried again until it is",
        labels=("part",),
    )
    for part in Part:
        trouble.add_metric((part.value,), part.value in status.troubles)
    yield trouble
    yield _gauge("tunsec_warnings", "Lines that status warns with", len(status.warnings))


def _flows(flows: tuple[FlowStatus, ...]) -> Iterator[Metric]:
    gauges = {
        "tunsec_flow_protected": ("Whether traffic flows, protected", lambda flow: flow.protected),
        "tunsec_flow_sa_age_seconds": ("Since the SA was installed", lambda flow: flow.age),
        "tunsec_flow_next_rollover_seconds": (
            "Until the SA is replaced",
            lambda flow: flow.next_rollover,
        ),
        "tunsec_flow_ike_authenticated_seconds": (
            "Since the peer has proven who it is",
            lambda flow: None if flow.ike is None else flow.ike.authenticated,
        ),
        "tunsec_flow_child_sas": (
            "CHILD_SAs that charon keeps for the flow",
            lambda flow: None if flow.ike is None else len(flow.ike.child_sas),
        ),
    }
    counters = {
        "tunsec_flow_rekeys": ("SAs replaced", lambda flow: flow.rekeys),
        "tunsec_flow_received_bytes": ("Through inbound SAs", lambda flow: flow.in_bytes),
        "tunsec_flow_sent_bytes": ("Through outbound SAs", lambda flow: flow.out_bytes),
        "tunsec_flow_received_packets": ("Through inbound SAs", lambda flow: flow.in_packets),
        "tunsec_flow_sent_packets": ("Through outbound SAs", lambda flow: flow.out_packets),
        "tunsec_flow_sa_drops": ("Packets that SAs refused", lambda flow: flow.drops),
    }
    yield from _families(GaugeMetricFamily, gauges, flows)
    yield from _families(CounterMetricFamily, counters, flows)


def _families(
    family: type[GaugeMetricFamily] | type[CounterMetricFamily],
    rows: dict[str, tuple[str, Callable[[FlowStatus], float | None]]],
    flows: tuple[FlowStatus, ...],
) -> Iterator[Metric]:
    for name, (meaning, value_of) in rows.items():
        metric = family(name, meaning, labels=_FLOW_LABELS)
        for flow in flows:
            value = value_of(flow)
            if value is not None:
                labels = (flow.flow, flow.tenant or "", flow.peer, flow.local, flow.remote)
                metric.add_metric(labels, float(value))
        yield metric


def _guard(status: Status) -> Iterator[Metric]:
    yield _gauge(
        "tunsec_guard_in_force", "Whether the nftables guard stands", status.guard.in_force
    )
    dropped = CounterMetricFamily(
        "tunsec_guard_dropped_packets", "What the guard dropped", labels=("flow", "why")
    )
    for flow, drops in sorted(status.guard.drops.items()):
        dropped.add_metric((flow, "clear_out"), drops.clear_out)
        dropped.add_metric((flow, "clear_in"), drops.clear_in)
        dropped.add_metric((flow, "local_injection"), drops.local_injection)
        dropped.add_metric((flow, "cross_tenant"), drops.cross_tenant)
    yield dropped


def _directory(status: Status) -> Iterator[Metric]:
    directory = status.directory
    if directory is None:
        return
    yield _gauge("tunsec_directory_reachable", "Whether the directory answers", directory.reachable)
    yield _gauge(
        "tunsec_private_keys_held",
        "Offers whose private key is in memory",
        directory.private_keys_held,
    )
    yield CounterMetricFamily("tunsec_offers_made", "Own offers", value=directory.own_offers)
    refused = CounterMetricFamily(
        "tunsec_records_refused", "Records that were not believed", labels=("reason",)
    )
    for reason, count in sorted(directory.refused.items()):
        refused.add_metric((reason,), count)
    yield refused


def _services(status: Status) -> Iterator[Metric]:
    token = GaugeMetricFamily(
        "tunsec_service_token",
        "Highest fencing token of a service address that this host knows",
        labels=("service",),
    )
    here = GaugeMetricFamily(
        "tunsec_service_here", "Whether the address is on this host", labels=("service",)
    )
    holder = GaugeMetricFamily(
        "tunsec_service_holder", "1 for who holds the address", labels=("service", "holder")
    )
    for one in status.services:
        token.add_metric((one.service,), one.token)
        here.add_metric((one.service,), one.here)
        if one.holder is not None:
            holder.add_metric((one.service, one.holder), 1)
    yield from (token, here, holder)


def _gauge(name: str, meaning: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, meaning, value=float(value))
