"""The IKE machine when a flow moves: what charon tells late, or tells again."""

from dataclasses import replace

from tests.unit.machines.one_connection import AEAD, OneConnection, ike_children
from tunsec.machines.facts import ChildrenChanged, OutboundTaken
from tunsec.machines.ike_facts import Adopted, CharonReady, KernelSa
from tunsec.machines.orders import BlockOutbound
from tunsec.model.flow import Keying
from tunsec.model.ike import SLOTS


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


def test_what_is_pinned_stays_pinned_when_charon_tells_of_it_anew() -> None:
    """After a restart the SPs pin the peer's CHILD_SA, which is too young to be chosen afresh."""
    one = OneConnection()
    one.tell(ChildrenChanged(ike_children()))
    one.make(one.child, own=False)
    theirs = one.up[max(one.up)]
    one.pinned[one.child] = theirs.spi_out
    inbound, outbound = KernelSa(theirs.spi_in, AEAD), KernelSa(theirs.spi_out, AEAD)
    one.silent = True
    one.tell(Adopted(one.child, (inbound,), outbound), CharonReady())
    assert one.flow.held
    assert one.ordered(BlockOutbound) == []
    assert one.pinned == {one.child: theirs.spi_out}


def test_a_charon_that_tells_again_in_the_middle_of_rekeys_leaves_slots_for_more() -> None:
    one = OneConnection().begin(after="10s")
    one.wait(1.0)
    for slot in range(1, SLOTS):
        one.tell(*one.make(one.child, own=True, slot=slot))
    assert len(one.up) == SLOTS
    one.tell(CharonReady())
    one.wait(5.0)
    assert len(one.up) == 1
    rekeys = one.flow.rekeys
    one.wait(30.0)
    assert one.flow.rekeys > rekeys
