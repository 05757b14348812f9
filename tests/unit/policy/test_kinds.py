"""The wire table, kind by kind, as the kernel was seen to need it."""

import ipaddress

import pytest

from tunsec.model.flow import Kind
from tunsec.model.sp import SpDirection
from tunsec.policy.kinds import ON_WIRE, selectors

LOCAL = ipaddress.ip_network("192.0.2.11/32")
REMOTE = ipaddress.ip_network("192.0.2.12/32")


@pytest.mark.parametrize(
    ("kind", "outbound", "inbound"),
    [
        (Kind.VXLAN, ["udp dport 4789"], ["udp dport 4789"]),
        (Kind.GENEVE, ["udp dport 6081"], ["udp dport 6081"]),
        (
            Kind.RDS_TCP,
            ["tcp dport 16385", "tcp sport 16385"],
            ["tcp dport 16385", "tcp sport 16385"],
        ),
        (Kind.ROCEV2, ["udp"], ["udp dport 4791"]),
        (Kind.TCP, ["tcp dport 7", "tcp sport 7"], ["tcp dport 7", "tcp sport 7"]),
        (Kind.UDP, ["udp dport 7", "udp sport 7"], ["udp dport 7", "udp sport 7"]),
    ],
)
def test_selectors(kind: Kind, outbound: list[str], inbound: list[str]) -> None:
    port = ON_WIRE[kind].port or 7
    out = selectors(kind, SpDirection.OUT, port=port, src=LOCAL, dst=REMOTE)
    into = selectors(kind, SpDirection.IN, port=port, src=REMOTE, dst=LOCAL)
    assert [str(one) for one in out] == [f"{LOCAL} -> {REMOTE} {rest}" for rest in outbound]
    assert [str(one) for one in into] == [f"{REMOTE} -> {LOCAL} {rest}" for rest in inbound]


def test_nothing_is_forwarded() -> None:
    for kind in Kind:
        assert selectors(kind, SpDirection.FWD, port=7, src=LOCAL, dst=REMOTE) == ()


def test_what_looks_at_more_packets_comes_later() -> None:
    """Both hosts must pick the same flow for a packet, or the receiver drops it."""
    ranks = {kind: ON_WIRE[kind].precedence for kind in Kind}
    assert ranks[Kind.VXLAN] < ranks[Kind.UDP] < ranks[Kind.ROCEV2]
