"""RoCE beside IPsec: hardware that bypasses the kernel, and packets without room for ESP."""

import ipaddress
from dataclasses import replace
from typing import Final

import pytest

from tunsec.model.flow import Child, OffloadWish
from tunsec.model.rdma import RdmaDevice
from tunsec.plan.rdma import REMEDY, bypassed, roce_warnings
from tunsec.policy.desired import desired
from tunsec.policy.intent import parse_policy

POLICY = """\
version: 1
hosts:
  db1: {address: [192.0.2.11, 2001:db8::11]}
  db2: {address: [192.0.2.12, 2001:db8::12]}
flows:
  overlay: {kind: vxlan, between: all}
  storage: {kind: rocev2, between: all}
"""
V4, V6 = ipaddress.ip_address("192.0.2.11"), ipaddress.ip_address("2001:db8::11")
FAR4, FAR6 = ipaddress.ip_address("192.0.2.12"), ipaddress.ip_address("2001:db8::12")
HOLDERS: Final = {V4: "eth0", V6: "eth0.7"}
MLX: Final = RdmaDevice("mlx5_0", hardware=True, roce=True, netdevs=frozenset({"eth0"}))


@pytest.fixture
def children() -> tuple[Child, ...]:
    return desired(parse_policy(POLICY, "p"), "db1").children


def test_hardware_takes_the_roce_of_its_addresses_past_the_kernel(
    children: tuple[Child, ...],
) -> None:
    ((child, reason),) = bypassed(children, [MLX], HOLDERS).items()
    assert (child.flow, child.local) == ("storage", V4)
    assert reason == (
        "mlx5_0 sends RoCE from eth0 past the kernel: ESP cannot protect it, nor can tunsec "
        f"block it; {REMEDY}"
    )


def test_every_device_is_named(children: tuple[Child, ...]) -> None:
    both = replace(MLX, name="mlx5_1", netdevs=frozenset({"eth0", "eth0.7"}))
    reasons = bypassed(children, [MLX, both], HOLDERS)
    assert [reason.split(" sends")[0] for reason in reasons.values()] == [
        "mlx5_0, mlx5_1",
        "mlx5_1",
    ]


@pytest.mark.parametrize(
    "device",
    [
        replace(MLX, hardware=False),
        replace(MLX, roce=False),
        replace(MLX, netdevs=frozenset({"eth1", ""})),
    ],
)
def test_others_stand_in_nobodys_way(children: tuple[Child, ...], device: RdmaDevice) -> None:
    assert bypassed(children, [device], HOLDERS) == {}


def test_an_address_that_is_not_here_sends_nothing(children: tuple[Child, ...]) -> None:
    assert bypassed(children, [MLX], {}) == {}


def test_packet_offload_lets_the_device_itself_encrypt(children: tuple[Child, ...]) -> None:
    offloaded = [replace(child, offload=OffloadWish.PACKET) for child in children]
    assert bypassed(offloaded, [MLX], HOLDERS) == {}


@pytest.mark.parametrize("mtu", [1500, 9000])
def test_usual_mtus_have_room(children: tuple[Child, ...], mtu: int) -> None:
    assert roce_warnings(children, {FAR4: mtu, FAR6: mtu}) == ()


def test_an_mtu_just_above_roces_has_none(children: tuple[Child, ...]) -> None:
    (warning,) = roce_warnings(children, {FAR4: 4200, FAR6: 4200})
    assert warning == (
        "storage to db2 2001:db8::12: RoCE packets of path MTU 4096 take up to 4216 bytes with "
        "ESP, and the underlay's MTU is 4200: queue pairs with it fail; raise the underlay's MTU "
        "to 4216, or give queue pairs path MTU 2048"
    )


def test_nothing_is_said_of_a_way_that_is_not_there(children: tuple[Child, ...]) -> None:
    assert roce_warnings(children, {FAR4: None, FAR6: 200}) == ()
