"""Every pair of state and fact is a transition, a race with its reason, or a bug."""

from enum import StrEnum
from pathlib import Path
from typing import TypeVar

import pytest

from tunsec.machines.diagrams import TABLES, page
from tunsec.machines.offer import OFFER, OfferFact, OfferPhase
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


def test_an_offer_is_published_once_and_lingers_once() -> None:
    forgotten = {(OfferPhase.FORGOTTEN, fact) for fact in OfferFact}
    assert impossible(OFFER, OfferPhase, OfferFact) == forgotten | {
        # At most one is on its way to the directory, and one in it.
        (OfferPhase.PUBLISHING, OfferFact.SUCCEEDED),
        (OfferPhase.PUBLISHING, OfferFact.LINGERED),
        (OfferPhase.CURRENT, OfferFact.PUBLISHED),
        (OfferPhase.CURRENT, OfferFact.LINGERED),
        (OfferPhase.SUPERSEDED, OfferFact.PUBLISHED),
    }


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_each_race_has_a_reason(table: Table[StrEnum, StrEnum]) -> None:
    assert all(len(reason) > 10 for reason in table.ignored.values())


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_all_that_a_table_names_can_be_reached(table: Table[StrEnum, StrEnum]) -> None:
    reached: set[StrEnum] = set()
    waiting: set[StrEnum] = {table.first}
    while waiting:
        reached |= waiting
        waiting = {
            after for (before, _), after in table.transitions.items() if before in waiting
        } - reached
    assert {state for state, _ in {**table.transitions, **table.ignored}} <= reached


def test_every_table_is_on_the_page() -> None:
    folder = Path(__file__).parents[3] / "tunsec" / "machines"
    made = sum(path.read_text().count(": Final = Table(") for path in folder.glob("*.py"))
    assert made == len(TABLES)


def test_the_page_of_the_machines_is_up_to_date() -> None:
    committed = (Path(__file__).parents[3] / "docs" / "machines.md").read_text()
    assert committed == page(), (
        "make it anew: python3 -m tunsec.machines.diagrams > docs/machines.md"
    )


def test_nothing_is_removed_under_a_sender() -> None:
    assert INBOUND.next(SaState.REKEYED, InboundFact.PEER_SENDS) is SaState.ACTIVE
