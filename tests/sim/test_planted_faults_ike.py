"""Faults planted in IKE keying are caught: as in test_planted_faults.py, by trials with charons."""

from dataclasses import replace

import pytest

from tests.sim.ike_trial import ike_chaos_trial
from tests.sim.script import Script
from tests.sim.test_planted_faults import Plant, first_that_breaks
from tunsec.daemon import ike_desk
from tunsec.daemon.ike_desk import Connection, IkeDesk
from tunsec.machines import ike_flow as flows
from tunsec.machines import ike_peer
from tunsec.machines.ike_flow import ChildState, HeldChild, IkeFlow
from tunsec.machines.ike_orders import Initiate, TerminateChild
from tunsec.machines.ike_peer import IkeState
from tunsec.machines.orders import Action
from tunsec.model.clock import Instant
from tunsec.model.ike import ConnectionId

SEEDS = range(60)


def sends_before_the_answer_has_come(patch: pytest.MonkeyPatch) -> None:
    """The responder takes a CHILD_SA for made when charon tells it; the initiator has none yet."""
    patch.setattr(flows, "stands", lambda one, now: True)


def removes_strays_that_are_all_there_is(patch: pytest.MonkeyPatch) -> None:
    """What a crashed charon left goes when it is idle, whether the peer has others or not."""
    patch.setattr(flows, "newer_than_strays_at", lambda flow, now: now)


def breaks_before_it_makes(patch: pytest.MonkeyPatch) -> None:
    """Room is made for the successor before it is there."""
    truly = IkeDesk._perform

    def perform(self: IkeDesk, connection: Connection, action: Action) -> None:
        if isinstance(action, Initiate):
            for one in connection.state.flows[action.child].held:
                if one.own:
                    truly(self, connection, TerminateChild(one.ike, one.id))
        truly(self, connection, action)

    patch.setattr(IkeDesk, "_perform", perform)


def ends_what_the_peer_sends_on(patch: pytest.MonkeyPatch) -> None:
    """A CHILD_SA of the peer is spare, so it is ended."""

    def supersede(flow: IkeFlow, doubted: frozenset[int], now: Instant) -> IkeFlow:
        def end(one: HeldChild) -> HeldChild:
            if one.own or one.state is not ChildState.INSTALLED:
                return one
            return replace(one, state=ChildState.DELETING, check_at=now)

        return replace(flow, held=tuple(map(end, flow.held)))

    patch.setattr(flows, "supersede_older_of_peer", supersede)


def takes_charon_at_its_word(patch: pytest.MonkeyPatch) -> None:
    """What was asked for is in the kernel, for charon accepted it."""
    patch.setattr(ike_desk, "ignored_options", lambda *asked, **more: ())


def keeps_ike_sas_that_carry_nothing(patch: pytest.MonkeyPatch) -> None:
    """They may be of use one day."""

    def sweep(state: IkeState, now: Instant, actions: list[Action]) -> IkeState:
        return state

    patch.setattr(ike_peer, "_sweep", sweep)


def leaves_connections_in_charon(patch: pytest.MonkeyPatch) -> None:
    """A connection without flows hurts nobody."""
    truly = IkeDesk._shut

    def shut(self: IkeDesk, connection_id: ConnectionId) -> None:
        ike, self._ike = self._ike, None
        truly(self, connection_id)
        self._ike = ike

    patch.setattr(IkeDesk, "_shut", shut)
    patch.setattr(IkeDesk, "_unload_strangers", lambda self, names: None)


FAULTS: dict[Plant, str] = {
    sends_before_the_answer_has_come: "law 2",
    removes_strays_that_are_all_there_is: "law 2",
    breaks_before_it_makes: "law 2",
    ends_what_the_peer_sends_on: "law 2",
    takes_charon_at_its_word: "law 6",
    keeps_ike_sas_that_carry_nothing: "carries nothing",
    leaves_connections_in_charon: "charon has connections",
}
"""Each fault, and what must be said of it."""


@pytest.mark.parametrize("plant", FAULTS, ids=lambda plant: plant.__name__)
def test_a_planted_fault_is_caught(plant: Plant) -> None:
    """Some seed breaks the law that the fault offends, and breaks none without the fault."""
    seed, said = first_that_breaks(plant, ike_chaos_trial, SEEDS)
    assert FAULTS[plant] in said.splitlines()[0]
    ike_chaos_trial(Script(seed))
