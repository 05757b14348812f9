"""The gate machine, fact by fact."""

import ipaddress
from dataclasses import replace

import pytest

from tunsec.machines import reconnect
from tunsec.machines.orders import Action
from tunsec.machines.reconnect import (
    FATE_WITHIN,
    UNKNOWN_FOR,
    Begun,
    Drop,
    Ended,
    Gate,
    GateState,
    Let,
    Looked,
    PeerAsked,
    Renew,
    Standing,
    SynHeld,
    closed_reason,
)
from tunsec.model.clock import Instant
from tunsec.model.connection import Connection, Ends, Syn
from tunsec.model.flow import ChildId
from tunsec.model.names import FlowName, HostName, Spi

HERE, THERE = ipaddress.ip_address("192.0.2.1"), ipaddress.ip_address("192.0.2.2")
CHILD = ChildId(HostName("b"), FlowName("bus"), None, HERE, THERE)
OLD, NEW = Spi(0x100), Spi(0x200)
READY = Standing(sends=True, fresh=frozenset({OLD}))
SPENT = Standing(sends=True, stale=frozenset({OLD}))
RENEWED = Standing(sends=True, fresh=frozenset({NEW}), renewed=True)


def ends(port: int) -> Ends:
    return Ends(HERE, port, THERE, 16385)


def there(*ports: int, carried: bool = True, alive: bool = True) -> tuple[Connection, ...]:
    return tuple(Connection(ends(port), alive, carried) for port in ports)


def syn(port: int, *, sequence: int = 1, spi: Spi | None = None, number: int = 1) -> Syn:
    return Syn(number, ends(port), spi is None, sequence, spi=spi)


class Driven:
    """A gate and the orders that it gave last."""

    def __init__(self) -> None:
        self.gate = Gate(CHILD)
        self.now = 100.0
        self.orders: tuple[Action, ...] = ()

    def tell(self, event: reconnect.GateEvent) -> tuple[Action, ...]:
        done = reconnect.step(self.gate, event, Instant(self.now), 0.5)
        self.gate, self.orders = done.state, done.actions
        return self.orders

    @property
    def state(self) -> GateState:
        return self.gate.state


@pytest.fixture
def used() -> Driven:
    """A gate through which one connection went, which has carried something since."""
    one = Driven()
    assert one.tell(SynHeld(syn(1), (), READY)) == (Let(syn(1)),)
    one.tell(Looked(there(1), READY))
    assert one.state is GateState.IN_USE
    return one


def test_a_second_connection_beside_the_first_needs_no_other_authentication(used: Driven) -> None:
    assert used.tell(SynHeld(syn(2), there(1, 2), READY)) == (Let(syn(2)),)


def test_a_syn_that_is_sent_again_passes(used: Driven) -> None:
    assert used.tell(SynHeld(syn(1), there(1), READY)) == (Let(syn(1)),)


def test_after_an_end_the_next_waits_for_what_is_fresh(used: Driven) -> None:
    assert used.tell(Ended(there(1)[0], (), READY)) == (Renew(CHILD, "the connection to b broke"),)
    assert used.tell(SynHeld(syn(2), there(2, carried=False), SPENT)) == ()
    assert used.tell(Looked(there(2, carried=False), SPENT)) == ()
    assert used.tell(Looked(there(2, carried=False), RENEWED)) == (Let(syn(2)),)
    assert used.state is GateState.IN_USE


def test_the_syn_itself_shows_that_what_carried_something_is_gone(used: Driven) -> None:
    [order] = used.tell(SynHeld(syn(2), there(2, carried=False), READY))
    assert isinstance(order, Renew)


def test_the_same_ports_with_another_sequence_number_are_another_connection(used: Driven) -> None:
    [order] = used.tell(SynHeld(syn(1, sequence=2), there(1, carried=False), READY))
    assert isinstance(order, Renew)


def test_what_carried_nothing_breaks_nothing() -> None:
    one = Driven()
    one.tell(SynHeld(syn(1), (), READY))
    assert one.tell(SynHeld(syn(2), there(2, carried=False), READY)) == ()
    ended = Connection(ends(1), alive=False, carried=False)
    assert one.tell(Ended(ended, (), READY)) == (Let(syn(2)),)


def test_without_news_what_is_missing_has_broken() -> None:
    one = Driven()
    one.tell(SynHeld(syn(1), (), READY))
    one.tell(Looked((), READY))
    deadline = reconnect.deadline(one.gate)
    assert deadline is not None
    assert deadline.at == one.now + FATE_WITHIN
    one.now = deadline.at
    [order] = one.tell(Looked((), READY))
    assert isinstance(order, Renew)


def test_an_inbound_syn_of_before_the_break_is_dropped(used: Driven) -> None:
    used.tell(Ended(there(1)[0], (), READY))
    late = syn(2, spi=OLD)
    assert used.tell(SynHeld(late, (), SPENT)) == (Drop(late),)


def test_an_inbound_syn_that_came_by_the_fresh_sa_waits_for_this_end(used: Driven) -> None:
    used.tell(Ended(there(1)[0], (), READY))
    early = syn(2, spi=NEW)
    half = Standing(sends=True, fresh=frozenset({NEW}), stale=frozenset({OLD}))
    assert used.tell(SynHeld(early, (), half)) == ()
    used.now += 10 * UNKNOWN_FOR
    assert reconnect.deadline(used.gate) is None
    assert used.tell(Looked((), half)) == ()
    assert used.tell(Looked((), RENEWED)) == (Let(early),)


def test_an_inbound_syn_by_an_sa_that_nobody_knows_is_dropped_in_the_end() -> None:
    one = Driven()
    stray = syn(2, spi=NEW)
    assert one.tell(SynHeld(stray, (), READY)) == ()
    one.now += UNKNOWN_FOR
    assert one.tell(Looked((), READY)) == (Drop(stray),)


def test_a_held_syn_whose_socket_is_gone_is_dropped(used: Driven) -> None:
    used.tell(Ended(there(1)[0], (), READY))
    used.tell(SynHeld(syn(2), there(2, carried=False), SPENT))
    assert used.tell(Looked((), RENEWED)) == (Drop(syn(2)),)
    assert used.state is GateState.UNUSED


def test_a_held_syn_that_is_sent_again_takes_the_place_of_the_first(used: Driven) -> None:
    used.tell(Ended(there(1)[0], (), READY))
    used.tell(SynHeld(syn(2), there(2, carried=False), SPENT))
    again = syn(2, number=2)
    assert used.tell(SynHeld(again, there(2, carried=False), SPENT)) == (Drop(syn(2)),)
    assert used.tell(Looked(there(2, carried=False), RENEWED)) == (Let(again),)


def test_what_lives_on_uses_the_fresh_authentication_too(used: Driven) -> None:
    used.tell(SynHeld(syn(2), there(1, 2), READY))
    used.tell(Ended(there(1)[0], there(2), READY))
    used.tell(Looked(there(2), RENEWED))
    assert used.state is GateState.IN_USE
    [order] = used.tell(Ended(there(2)[0], (), RENEWED))
    assert isinstance(order, Renew)


def test_paths_that_break_at_once_are_one_break(used: Driven) -> None:
    used.tell(SynHeld(syn(2), there(1, 2), READY))
    [order] = used.tell(Ended(there(1)[0], (), READY))
    assert isinstance(order, Renew)
    assert used.tell(Ended(there(2)[0], (), READY)) == ()


def test_what_goes_on_beside_and_ends_later_is_another(used: Driven) -> None:
    used.tell(SynHeld(syn(2), there(1, 2), READY))
    used.tell(Ended(there(1)[0], there(2), READY))
    [order] = used.tell(Ended(there(2)[0], (), SPENT))
    assert isinstance(order, Renew)


def test_an_end_of_before_the_fresh_authentication_comes_late(used: Driven) -> None:
    used.tell(Ended(there(1)[0], (), READY))
    used.tell(Looked((), RENEWED))
    assert used.tell(Ended(there(3)[0], (), RENEWED)) == ()
    assert used.state is GateState.UNUSED


def test_the_peer_has_seen_a_break_that_we_have_not(used: Driven) -> None:
    assert used.tell(PeerAsked((), covers=True)) == ()
    assert used.state is GateState.RENEWING
    assert used.tell(Ended(there(1)[0], (), SPENT)) == ()
    assert "re-authenticating: the connection to b broke" in reconnect.closed_reason(used.gate)


def test_what_the_peer_asked_before_does_not_serve_a_break_of_since(used: Driven) -> None:
    [order] = used.tell(PeerAsked((), covers=False))
    assert isinstance(order, Renew)


def test_what_goes_on_while_the_peer_asks_breaks_nothing(used: Driven) -> None:
    assert used.tell(PeerAsked(there(1), covers=False)) == ()
    assert used.state is GateState.RENEWING
    [order] = used.tell(Ended(there(1)[0], (), SPENT))
    assert isinstance(order, Renew)


def test_nothing_is_renewed_while_an_end_is_waited_for() -> None:
    one = Driven()
    one.tell(SynHeld(syn(1), (), READY))
    one.tell(PeerAsked((), covers=False))
    one.tell(Looked((), RENEWED))
    assert one.state is GateState.RENEWING
    one.now += FATE_WITHIN
    [order] = one.tell(Looked((), RENEWED))
    assert isinstance(order, Renew)


def test_breaks_that_follow_each_other_are_damped() -> None:
    one = Driven()
    for number in range(6):
        port = number + 1
        one.tell(SynHeld(syn(port), there(port), replace(READY, renewed=True)))
        one.tell(Looked(there(port), READY))
        one.tell(Ended(there(port)[0], (), READY))
        if one.state is GateState.RENEWING:
            one.tell(Looked((), RENEWED))
            one.tell(Looked((), READY))
    assert one.state is GateState.BROKEN
    assert one.tell(SynHeld(syn(9), there(9, carried=False), READY)) == ()
    deadline = reconnect.deadline(one.gate)
    assert deadline is not None
    assert deadline.at > one.now
    one.now = deadline.at
    [order] = one.tell(Looked(there(9, carried=False), READY))
    assert isinstance(order, Renew)


@pytest.mark.parametrize(
    ("connections", "used", "state"),
    [
        ((), False, GateState.UNUSED),
        (there(1), False, GateState.IN_USE),
        (there(1), True, GateState.BROKEN),
        ((), True, GateState.BROKEN),
    ],
    ids=["nothing was said", "something goes on", "something may have broken", "all may have"],
)
def test_a_daemon_that_begins(
    connections: tuple[Connection, ...], used: bool, state: GateState
) -> None:
    one = Driven()
    assert one.tell(Begun(connections, used)) == ()
    assert one.state is state
    assert closed_reason(one.gate) == ""


def test_what_may_have_broken_before_is_asked_of_the_next_connection_alone() -> None:
    one = Driven()
    one.tell(Begun(there(1), used=True))
    assert one.tell(Looked(there(1), READY)) == ()
    [order] = one.tell(SynHeld(syn(2), there(1, 2), READY))
    assert isinstance(order, Renew)
    assert one.tell(Looked(there(1, 2), SPENT)) == ()
    assert one.tell(Looked(there(1, 2), RENEWED)) == (Let(syn(2)),)


def test_what_stands_when_a_daemon_begins_and_ends_then_is_a_break() -> None:
    one = Driven()
    one.tell(Begun(there(1), used=True))
    [order] = one.tell(Ended(there(1)[0], (), READY))
    assert isinstance(order, Renew)
