"""The IKE machine when directory keying takes its flow: whatever charon tells after that drains."""

from dataclasses import replace

from tests.unit.machines.one_connection import OneConnection
from tunsec.machines.facts import ChildrenChanged, OutboundTaken
from tunsec.machines.ike_facts import CharonReady
from tunsec.model.flow import Keying


def taken() -> OneConnection:
    """A flow with a CHILD_SA of ours, of which directory keying has the SPs."""
    one = OneConnection().begin()
    child = replace(one.flow.child, keying=Keying.DIRECTORY)
    one.tell(ChildrenChanged((child,)), OutboundTaken(child.id))
    one.pinned.clear()
    return one


def test_a_charon_that_is_reached_again_tells_of_what_was_taken() -> None:
    one = taken()
    assert one.up
    one.tell(CharonReady())
    one.wait(30)
    assert (one.up, one.kernel, one.pinned) == ({}, {}, {})
    assert one.flow.empty


def test_a_child_sa_that_was_on_its_way_comes_too_late() -> None:
    one = taken()
    one.tell(*one.make(one.child, own=True, slot=1))
    one.wait(30)
    assert (one.up, one.kernel, one.pinned) == ({}, {}, {})
    assert one.flow.empty
