"""Tunnel devices beside flows: no room for ESP, and no flow at all."""

import ipaddress
from dataclasses import replace

import pytest

from tunsec.model.flow import Kind
from tunsec.model.names import Address, Vni
from tunsec.model.overlay import OverlayDevice
from tunsec.plan.devices import group_warnings, mtu_warnings, uncovered_devices, ways_wanted
from tunsec.policy.desired import Desired, desired
from tunsec.policy.intent import parse_policy

POLICY = """\
version: 1
hosts:
  db1: {address: [192.0.2.11, 2001:db8::11]}
  db2: {address: [192.0.2.12, 2001:db8::12]}
flows:
  overlay: {kind: vxlan, between: all}
"""
RED = OverlayDevice(
    name="red",
    ifindex=7,
    kind=Kind.VXLAN,
    port=4789,
    mtu=1416,
    local=ipaddress.ip_address("192.0.2.11"),
    remote=ipaddress.ip_address("192.0.2.12"),
    group=None,
    vni=Vni(41),
    external=False,
    underlay_mtu=1500,
)


@pytest.fixture
def wanted() -> Desired:
    intent = parse_policy(POLICY, "p")
    return desired(intent, "db1")


def test_only_devices_of_a_flow_are_told_their_mtu(wanted: Desired) -> None:
    large = replace(RED, mtu=1450)
    other_port = replace(large, port=8472)
    way_unknown = replace(large, underlay_mtu=None)
    assert mtu_warnings(wanted.guarded, [RED, other_port, way_unknown], {}) == ()
    (warning,) = mtu_warnings(wanted.guarded, [RED, large], {})
    assert warning.startswith("red: MTU 1450 leaves no room for ESP")
    assert "mtu 1416" in warning


def test_the_address_says_which_family_the_packets_have(wanted: Desired) -> None:
    over_ipv6 = replace(RED, local=None, remote=ipaddress.ip_address("2001:db8::12"))
    (warning,) = mtu_warnings(wanted.guarded, [over_ipv6], {})
    assert "are lost" in warning
    assert "mtu 1396" in warning


def test_a_device_to_a_peer_that_no_flow_covers(wanted: Desired) -> None:
    elsewhere = replace(RED, port=8472, remote=ipaddress.ip_address("203.0.113.9"))
    to_peer = replace(RED, name="blue", port=8472)
    assert uncovered_devices(wanted.guarded, wanted.children, [RED, elsewhere, to_peer]) == (
        "blue (vxlan on port 8472) goes to db2 in clear: no flow of the policy has this port",
    )


def test_a_device_without_a_remote_has_the_tightest_way_to_its_peers(wanted: Desired) -> None:
    four, six = (ipaddress.ip_address(text) for text in ("192.0.2.12", "2001:db8::12"))
    flooding = replace(RED, remote=None, underlay_mtu=None)
    external = replace(flooding, name="ext", local=None, external=True, vni=None)
    assert ways_wanted(wanted.guarded, [RED]) == frozenset()
    assert ways_wanted(wanted.guarded, [flooding]) == {four}
    assert ways_wanted(wanted.guarded, [replace(external, port=8472)]) == frozenset()
    assert ways_wanted(wanted.guarded, [flooding, external]) == {four, six}
    ways: dict[Address, int | None] = {four: 1500, six: 1500}
    (warning,) = mtu_warnings(wanted.guarded, [flooding, external], ways)
    assert warning.startswith("ext: MTU 1416")
    assert "mtu 1396" in warning
    ways[four] = 1400
    both = mtu_warnings(wanted.guarded, [flooding, external], ways)
    assert ["mtu 1316" in warning for warning in both] == [True, True]
    assert mtu_warnings(wanted.guarded, [flooding], {four: None}) == ()


def test_a_group_is_told_what_becomes_of_its_flood(wanted: Desired) -> None:
    grouped = replace(RED, remote=None, group=ipaddress.ip_address("239.1.1.1"))
    assert group_warnings(wanted.guarded, [RED, replace(grouped, port=8472)]) == ()
    (dropped,) = group_warnings(wanted.guarded, [grouped])
    assert "what it floods to 239.1.1.1 is dropped" in dropped
    assert "`bridge fdb append 00:00:00:00:00:00 dev red dst PEER`" in dropped
    open_to_all = [replace(flow, strangers_blocked=False) for flow in wanted.guarded]
    (clear,) = group_warnings(open_to_all, [grouped])
    assert "is SENT IN CLEAR" in clear
