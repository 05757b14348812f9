"""Every pair of state and fact is a transition, a race with its reason, or a bug."""

from enum import StrEnum
from typing import TypeVar

import pytest

from tunsec.machines.slots import INBOUND, OUTBOUND, InboundFact, OutboundFact, SaState
from tunsec.machines.table import Table
from tunsec.model.errors import Bug

S = TypeVar("S", bound=StrEnum)
E = TypeVar("E", bound=StrEnum)


def impossible(table: Table[S, E], states: type[S], facts: type[E]) -> set[tuple[S, E]]:
    """Pairs that raise; those that do not are listed exactly once."""
    found = set()
    for state in states:
        for fact in facts:
            listed = ((state, fact) in table.transitions) + ((state, fact) in table.ignored)
            assert listed <= 1, f"{table.name}: {state}, {fact} is listed twice"
            if listed:
                assert table.next(state, fact) in states
                continue
            with pytest.raises(Bug, match=table.name):
                table.next(state, fact)
            found.add((state, fact))
    return found


def test_anything_may_happen_to_an_inbound_sa_at_any_time() -> None:
    assert impossible(INBOUND, SaState, InboundFact) == set()


def test_an_outbound_sa_is_in_use_from_the_start() -> None:
    """It is installed and switched to in one order: no machine sees it before."""
    assert impossible(OUTBOUND, SaState, OutboundFact) == {
        (SaState.INSTALLED, OutboundFact.SUCCEEDED),
        (SaState.CONFIRMED, OutboundFact.SUCCEEDED),
    }


@pytest.mark.parametrize("table", [INBOUND, OUTBOUND], ids=lambda table: table.name)
def test_each_race_has_a_reason(table: Table[SaState, StrEnum]) -> None:
    assert all(len(reason) > 10 for reason in table.ignored.values())


def test_nothing_is_removed_under_a_sender() -> None:
    assert INBOUND.next(SaState.REKEYED, InboundFact.PEER_SENDS) is SaState.ACTIVE
