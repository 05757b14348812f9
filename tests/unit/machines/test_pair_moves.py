"""The pair machine when IKE takes its flow, and when the flow comes back."""

from dataclasses import replace

from tests.unit.machines.one_pair import OnePair
from tunsec.machines.facts import ChildrenChanged, InboundTaken, OutboundTaken
from tunsec.machines.orders import BlockOutbound
from tunsec.model.flow import Keying


def taken() -> OnePair:
    """A flow in use both ways, of which IKE has the SPs; its outbound SA has drained."""
    one = OnePair().begin()
    one.in_use()
    one.pinned.clear()
    one.tell(
        ChildrenChanged((replace(one.flow.child, keying=Keying.IKE),)), OutboundTaken(one.child)
    )
    one.wait(5.0)
    assert one.outbound == {}
    return one


def comes_back(one: OnePair) -> None:
    """The policy has the directory key the flow again."""
    one.tell(ChildrenChanged((replace(one.flow.child, keying=Keying.DIRECTORY),)))


def test_what_ike_took_drains_and_is_never_blocked() -> None:
    one = taken()
    assert one.inbound, "the peer may send on it still"
    one.tell(InboundTaken(one.child))
    one.wait(30.0)
    assert (one.inbound, one.flow.empty) == ({}, True)
    assert not any(isinstance(order, BlockOutbound) for order in one.orders)


def test_what_the_peer_named_meanwhile_is_told_to_be_passed_over_when_the_flow_comes_back() -> None:
    """The peer removes at once what it sees declined, so it must not be used later."""
    one = OnePair().begin()
    one.tell(
        ChildrenChanged((replace(one.flow.child, keying=Keying.IKE),)), OutboundTaken(one.child)
    )
    one.confirmed(receives=[(one.child, 0x9002)], heard=0)
    records = len(one.records)
    comes_back(one)
    assert one.outbound == {}
    assert [record.heard for record in one.records[records:]] == [one.sequence]
    one.confirmed(receives=[(one.child, 0x9002)], heard=0)
    assert one.outbound == {}, "it may be gone by now"
    one.confirmed(receives=[(one.child, 0x9003)], heard=0)
    assert list(one.outbound) == [0x9003]


def test_nothing_is_said_when_the_peer_named_nothing() -> None:
    one = taken()
    records = len(one.records)
    comes_back(one)
    assert len(one.records) == records
