"""A hardware RoCE device makes its flow an error that says why (law 6), and no other one."""

from typing import Final

import pytest

from tests.sim.host import SimHost
from tests.sim.test_explain import ask, asked_of
from tests.sim.world import World
from tunsec.daemon import report
from tunsec.daemon.engine import DUMP_EVERY
from tunsec.model.clock import Instant
from tunsec.model.flow import Keying
from tunsec.model.names import HostName
from tunsec.model.rdma import RdmaDevice
from tunsec.model.sp import SpDirection
from tunsec.plan.image import Image
from tunsec.plan.rdma import REMEDY
from tunsec.policy.intent import parse_policy
from tunsec.wire.control import FlowStatus
from tunsec.wire.control_explain import Verdict

MLX: Final = RdmaDevice("mlx5_0", hardware=True, roce=True, netdevs=frozenset({"eth0"}))
RXE: Final = RdmaDevice("rxe0", hardware=False, roce=True, netdevs=frozenset({"eth0"}))
POLICY: Final = """\
version: 1
hosts:
  h0: {{address: [192.0.2.1, 2001:db8::1]}}
  h1: {{address: [192.0.2.2, 2001:db8::2]}}
defaults: {{keying: {keying}}}
flows:
  overlay: {{kind: vxlan, between: all}}
  storage: {{kind: rocev2, between: all}}
"""
REASON: Final = (
    "mlx5_0 sends RoCE from eth0 past the kernel: ESP cannot protect it, nor can tunsec block it; "
    f"{REMEDY}"
)


def world_of(keying: Keying) -> tuple[World, SimHost]:
    """Two hosts that do not run yet, and the one whose RDMA devices matter."""
    world = World(1, parse_policy(POLICY.format(keying=keying), "sim.yaml"), start_within=None)
    return world, world.hosts[HostName("h0")]


def start(world: World, host: SimHost) -> None:
    """Both daemons run, and the host's other flow is protected."""
    for one in world.hosts.values():
        world.start(one)
    world.run_until(lambda: protected(world, host, "overlay"), 120.0)


def protected(world: World, host: SimHost, name: str) -> bool:
    return all(flow.protected for flow in flows(world, host, name))


def flows(world: World, host: SimHost, name: str) -> list[FlowStatus]:
    """Both relations of a flow, as status shows them."""
    assert host.engine is not None
    told = report.flow_statuses(host.engine, have=Image(), now=Instant(world.now))
    found = [flow for flow in told if flow.flow == name]
    assert len(found) == 2
    return found


def links_change(host: SimHost) -> None:
    assert host.engine is not None
    host.engine.on_links_changed()


def sends_by(host: SimHost, name: str) -> int:
    """SPs that send a flow."""
    reqids = {child.reqid for child in host.scope.children if child.id.flow == name}
    return sum(1 for sp in host.kernel.spd() if sp.templates and sp.templates[0].reqid in reqids)


@pytest.mark.parametrize("keying", Keying)
def test_hardware_keeps_its_flow_blocked_and_says_why(keying: Keying) -> None:
    world, host = world_of(keying)
    host.rdma.found = (MLX,)
    start(world, host)
    for flow in flows(world, host, "storage"):
        assert (flow.state, flow.reason, flow.protected) == ("BLOCKED", REASON, False)
        assert flow.keying is keying
    assert protected(world, host, "overlay")
    for child in host.scope.children:
        if child.id.flow == "storage":
            told = ask(world, host, asked_of(host, child, SpDirection.OUT))
            assert told.verdict is Verdict.BLOCKED
            assert REASON in str(told)
    peer = world.hosts[HostName("h1")]
    assert not any(flow.protected for flow in flows(world, peer, "storage"))

    host.rdma.found = (RXE,)
    links_change(host)
    world.run_until(lambda: protected(world, host, "storage"), 300.0)
    world.run_until(world.settled, 300.0)


@pytest.mark.parametrize("keying", Keying)
def test_hardware_that_comes_later_ends_what_was_protected(keying: Keying) -> None:
    world, host = world_of(keying)
    host.rdma.found = (RXE,)
    start(world, host)
    world.run_until(world.settled, 120.0)
    assert protected(world, host, "storage")
    assert sends_by(host, "storage")
    storage = {child.id: REASON for child in host.scope.children if child.id.flow == "storage"}
    world.laws.may_drop(host, host.scope.with_bypassed(storage))
    host.rdma.found = (RXE, MLX)
    world.run(DUMP_EVERY + 1.0)  # nobody tells of RDMA devices
    assert [flow.reason for flow in flows(world, host, "storage")] == [REASON, REASON]
    assert sends_by(host, "storage") == 0
    assert protected(world, host, "overlay")


def test_devices_that_cannot_be_listed_keep_a_flow_from_beginning_and_end_none() -> None:
    world, host = world_of(Keying.DIRECTORY)
    host.rdma.trouble = "cannot list RDMA devices: Permission denied"
    start(world, host)
    assert {flow.reason for flow in flows(world, host, "storage")} == {host.rdma.trouble}

    host.rdma.trouble = ""
    links_change(host)
    world.run_until(world.settled, 300.0)
    host.rdma.trouble = "cannot list RDMA devices: Permission denied"
    links_change(host)
    assert protected(world, host, "storage")
