"""Flows by IKE beside flows by directory, and flows that move from one to the other under load."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from threading import Thread
from typing import TypeVar

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.lab.watched import watched
from tunsec.adapters.charon import Charon
from tunsec.adapters.xfrm import XfrmKernel
from tunsec.model.flow import Keying
from tunsec.model.names import spi_hex
from tunsec.model.ownership import is_our_reqid, is_our_sp
from tunsec.model.secret import Secret
from tunsec.model.sp import SpDirection
from tunsec.wire.control import FlowStatus, PolicyBody, Status
from tunsec_lab.capture import LeakWatch
from tunsec_lab.charon import LabCharon
from tunsec_lab.cluster import Cluster
from tunsec_lab.host import Host, Lab
from tunsec_lab.namespaces import inside
from tunsec_lab.probe import Probe

pytestmark = pytest.mark.needs(
    "esp-ipv4", "esp-ipv6", "esn", "vxlan", "bridge", "nft-inet", "nft-netdev-egress"
)

QUICK = "  {rekey: {after: 1s, hard: 5m}}\n"
STEADY = "  {rekey: {after: 6s, hard: 5m}}\n"
MIXED = (
    "  overlay: {kind: vxlan, between: all, keying: ike}\n"
    "  second: {kind: vxlan, between: all, port: 4790, keying: directory}\n"
)
MOVE_SECONDS = 60.0
T = TypeVar("T")
OTHER = "connections { other { remote_addrs = 203.0.113.9 } }\n"
"""What somebody else has loaded into charon."""


def paths(lab: Lab) -> list[tuple[Host, Host, str]]:
    """From, to, and the address: over every overlay, both ways."""
    a, b = lab.hosts.values()
    return [
        (source, target, str(target.overlay_addresses(overlay.name)[0]))
        for overlay in lab.topology.overlays
        for source, target in ((a, b), (b, a))
    ]


def one_flow(keying: Keying) -> str:
    """The `flows:` of a policy with one flow."""
    return f"  overlay: {{kind: vxlan, between: all, keying: {keying}}}\n"


def begin(
    lab: Lab, *, flows: str, defaults: str = STEADY, charons: bool = True
) -> tuple[Cluster, dict[str, "InCharon"]]:
    """Everything runs and is protected; what each charon held before tunsecd came."""
    cluster = Cluster(lab, flows=flows, defaults=defaults)
    before = {}
    for host in lab.hosts.values() if charons else ():
        charon = cluster.start_charon(host)
        load_others(charon)
        before[host.name] = in_charon(charon)
        assert before[host.name].connections == ("other",)
        assert len(before[host.name].keys) == 1
    cluster.start_all()
    for host in lab.hosts.values():
        host.raise_overlays()
    return cluster, before


@contextmanager
def nothing_lost(lab: Lab, *, rate: int = 1000) -> Iterator[None]:
    """1,000 packets a second over every overlay, both ways; every one of them arrives."""
    with ExitStack() as stack:
        running = [
            stack.enter_context(Probe(source, target, to=to, rate=rate, port=9000 + number))
            for number, (source, target, to) in enumerate(paths(lab))
        ]
        yield
    for probe in running:
        assert probe.report.sent > 1000
        assert probe.report.lost == 0, f"{probe.source.name} to {probe.to}: {probe.report}"


# What there is


@dataclass(frozen=True)
class InCharon:
    """All that a charon holds, by name; connections and keys of others too."""

    connections: tuple[str, ...]
    ikes: tuple[str, ...]
    secrets: tuple[str, ...]
    authorities: tuple[str, ...]
    keys: tuple[str, ...]


def asking(charon: LabCharon, ask: Callable[[Charon], Awaitable[T]]) -> T:
    """What a charon answers, with the adapter that tunsecd uses."""

    async def session() -> T:
        link = Charon(charon.socket, tell=lambda event: None)
        try:
            return await ask(link)
        finally:
            link.close()

    return asyncio.run(session())


def in_charon(charon: LabCharon) -> InCharon:
    async def ask(link: Charon) -> InCharon:
        return InCharon(
            tuple(sorted(one.name for one in await link.connections())),
            tuple(sorted(ike.name for ike in await link.sas())),
            await link.loaded_secrets(),
            await link.loaded_authorities(),
            await link.loaded_keys(),
        )

    return asking(charon, ask)


def load_others(charon: LabCharon) -> None:
    """A connection and a key that are not tunsec's."""
    config = charon.host.folder / "other.conf"
    config.write_text(OTHER)
    charon.host.run(
        ["swanctl", "--load-conns", "--file", config, "--uri", f"unix://{charon.socket}"]
    )
    pem = Ed25519PrivateKey.generate().private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    asking(charon, lambda link: link.load_key(Secret(pem)))


def sas_of(host: Host) -> set[str]:
    """SPIs of our SAs in the kernel that have keys."""
    with inside(host.netns):
        kernel = XfrmKernel()
    try:
        return {
            spi_hex(sa.id.spi)
            for sa in kernel.sas().values()
            if is_our_reqid(sa.reqid) and not sa.larval
        }
    finally:
        kernel.close()


def pins_of(host: Host) -> set[str]:
    """SPIs that our outbound SPs pin."""
    with inside(host.netns):
        kernel = XfrmKernel()
    try:
        return {
            spi_hex(spi)
            for sp in kernel.sps().values()
            if is_our_sp(sp) and sp.id.direction is SpDirection.OUT
            for template in sp.templates
            if (spi := template.spi) is not None
        }
    finally:
        kernel.close()


def named(flow: FlowStatus) -> set[str]:
    """SPIs of the SAs that a settled flow has, by its status."""
    if flow.ike is None:
        return {spi for spi in (flow.spi_in, flow.spi_out) if spi is not None}
    return {spi for one in flow.ike.child_sas for spi in (one.spi_in, one.spi_out)}


def records(cluster: Cluster) -> list[str]:
    """Everything in the directory."""
    return sorted(
        str(path.relative_to(cluster.directory))
        for path in cluster.directory.rglob("*")
        if path.is_file()
    )


# Moving


def apply(cluster: Cluster, keying: Keying, *hosts: Host) -> None:
    """`tunsec apply` of a policy whose one flow has this keying."""
    body = PolicyBody(cluster.policy(flows=one_flow(keying)), f"{keying}.yaml")
    for host in hosts:
        cluster.client(host).apply(body)


def until(what: str, holds: Callable[[], object], *, timeout: float = MOVE_SECONDS) -> None:
    """`holds` returns what is still in the way."""
    end = time.monotonic() + timeout
    while wrong := holds():
        assert time.monotonic() < end, f"{what}: {wrong}"
        time.sleep(0.2)


def wait_moved(cluster: Cluster, keying: Keying, before: dict[str, InCharon]) -> None:
    """Returns when every flow has the new keying, and nothing of the old one is left."""
    for host in cluster.lab.hosts.values():
        until(f"{host.name} to {keying}", partial(unsettled, cluster, host, keying))
    if keying is Keying.IKE:
        until("records", partial(records, cluster), timeout=20)
    else:
        for name, charon in cluster.charons.items():
            until(f"charon of {name}", partial(left_in, charon, before[name]), timeout=20)


def left_in(charon: LabCharon, before: InCharon) -> str:
    """What a charon holds, if it is not what it held before."""
    held = in_charon(charon)
    return "" if held == before else f"{held}, not {before}"


def unsettled(cluster: Cluster, host: Host, keying: Keying) -> str:
    """What is not as it should be after a move; empty when all is."""
    status = cluster.status(host)
    wanted = set().union(*(named(flow) for flow in status.flows))
    pinned = {flow.spi_out for flow in status.flows}
    if any(flow.keying != keying or flow.state != "INSTALLED" for flow in status.flows):
        return str(status.flows)
    if any(flow.warnings for flow in status.flows) or status.warnings:
        return f"{status.warnings} {[flow.warnings for flow in status.flows]}"
    found, pins = sas_of(host), pins_of(host)
    if found != wanted or pins != pinned:
        return f"SAs {found}, SPs pin {pins}; status has {status.flows}"
    return ""


ORDERS = {"a first": ("a", "b"), "b first": ("b", "a"), "at once": ("a", "b")}


@pytest.mark.long
@pytest.mark.timeout(240)
@pytest.mark.parametrize("order", ORDERS)
def test_a_flow_moves_to_ike_and_back_under_load(lab: Lab, watch: LeakWatch, order: str) -> None:
    hosts = [lab.hosts[name] for name in ORDERS[order]]
    cluster, before = begin(lab, flows=one_flow(Keying.DIRECTORY))
    with nothing_lost(lab):
        for keying in (Keying.IKE, Keying.DIRECTORY):
            if order == "at once":
                at_once([partial(apply, cluster, keying, host) for host in hosts])
            else:
                apply(cluster, keying, hosts[0])
                time.sleep(5)
                still = {flow.keying for flow in cluster.status(hosts[0]).flows}
                assert still == {other(keying)}, "one host alone cannot move"
                apply(cluster, keying, hosts[1])
            wait_moved(cluster, keying, before)


def other(keying: Keying) -> Keying:
    """Where a flow comes from."""
    return Keying.DIRECTORY if keying is Keying.IKE else Keying.IKE


def at_once(acts: Sequence[Callable[[], object]]) -> None:
    """Do things at the same time."""
    threads = [Thread(target=act) for act in acts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.mark.long
@pytest.mark.timeout(240)
def test_a_policy_that_goes_back_and_forth(lab: Lab, watch: LeakWatch) -> None:
    """Faster than a move is done, on one host and on both; each keying has the last word once."""
    a, b = lab.hosts.values()
    cluster, before = begin(lab, flows=one_flow(Keying.DIRECTORY))
    with nothing_lost(lab):
        for last in (Keying.IKE, Keying.DIRECTORY):
            for pause in (0.0, 0.1, 0.3, 1.0, 2.5):
                for keying in (last, other(last)):
                    apply(cluster, keying, a, b)
                    time.sleep(pause)
                apply(cluster, last, a)
                time.sleep(pause)
                apply(cluster, other(last), a)
            apply(cluster, last, a, b)
            wait_moved(cluster, last, before)


@pytest.mark.long
@pytest.mark.timeout(240)
def test_tunsecd_dies_in_the_middle_of_a_move(lab: Lab, watch: LeakWatch) -> None:
    a, b = lab.hosts.values()
    cluster, before = begin(lab, flows=one_flow(Keying.DIRECTORY))
    with nothing_lost(lab):
        for one, two, wait in ((a, b, 0.1), (b, a, 0.5)):
            for keying in (Keying.IKE, Keying.DIRECTORY):
                apply(cluster, keying, one)
                time.sleep(wait)
                apply(cluster, keying, two)
                time.sleep(wait)
                cluster.daemons["a"].kill9()
                time.sleep(wait)
                cluster.start(a)
                wait_moved(cluster, keying, before)


@pytest.mark.long
@pytest.mark.timeout(240)
def test_a_flow_waits_for_charon_on_its_old_keys(lab: Lab, watch: LeakWatch) -> None:
    a, b = lab.hosts.values()
    cluster, before = begin(lab, flows=one_flow(Keying.DIRECTORY), charons=False)
    with nothing_lost(lab):
        apply(cluster, Keying.IKE, a, b)
        rekeys = min(flow.rekeys for flow in cluster.status(a).flows)
        cluster.wait_until(a, rekeys=rekeys + 1, timeout=20)
        assert_waits_for_charon(cluster.status(a))
        cluster.daemons["a"].kill9()
        cluster.start(a)
        cluster.wait_until(a, rekeys=1, timeout=30)
        assert_waits_for_charon(cluster.status(a))
        for host in (a, b):
            before[host.name] = in_charon(cluster.start_charon(host))
        wait_moved(cluster, Keying.IKE, before)


def assert_waits_for_charon(status: Status) -> None:
    """Protected as before, and status tells what it waits for."""
    for flow in status.flows:
        assert flow.protected, flow
        assert flow.keying == Keying.DIRECTORY
        [warning] = flow.warnings
        assert "ike" in warning
        assert "charon" in warning


@pytest.mark.long
@pytest.mark.timeout(240)
def test_the_policy_changes_while_no_daemon_runs(lab: Lab, watch: LeakWatch) -> None:
    cluster, before = begin(lab, flows=one_flow(Keying.DIRECTORY))
    with nothing_lost(lab):
        for keying in (Keying.IKE, Keying.DIRECTORY):
            cluster.policy_file.write_text(cluster.policy(flows=one_flow(keying)))
            for host in lab.hosts.values():
                cluster.daemons[host.name].kill9()
            for host in lab.hosts.values():
                cluster.start(host)
            wait_moved(cluster, keying, before)


@pytest.mark.timeout(240)
def test_one_flow_by_ike_beside_one_by_directory() -> None:
    with Lab("two-ports", overlays_up=False) as lab, watched(lab):
        cluster, _ = begin(lab, flows=MIXED, defaults=QUICK)
        with nothing_lost(lab, rate=500):
            before = [
                min(flow.rekeys for flow in cluster.status(host).flows)
                for host in lab.hosts.values()
            ]
            for host, rekeys in zip(lab.hosts.values(), before, strict=True):
                cluster.wait_until(host, rekeys=rekeys + 4, timeout=90)
                flows = cluster.status(host).flows
                assert {(flow.flow, flow.keying) for flow in flows} == {
                    ("overlay", "ike"),
                    ("second", "directory"),
                }
                assert all(flow.protected for flow in flows)
                assert cluster.status(host).drift.sas == 0, "one took the other's SAs for its own"
            for name in lab.hosts:
                assert "by another" not in cluster.daemons[name].output()
