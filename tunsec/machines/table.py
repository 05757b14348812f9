"""A machine is a table: (state, event) -> next state; races are listed, anything else is a bug."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

from tunsec.model.errors import Bug

S = TypeVar("S", bound=StrEnum)
E = TypeVar("E", bound=StrEnum)


@dataclass(frozen=True, slots=True)
class Table(Generic[S, E]):
    """Transitions, and the pairs that are races with the reason why they are harmless."""

    name: str
    first: S
    """Where a fresh one begins."""
    transitions: Mapping[tuple[S, E], S]
    ignored: Mapping[tuple[S, E], str]

    def next(self, state: S, event: E) -> S:
        """The next state, the same one for a listed race; raises Bug for an impossible pair."""
        after = self.transitions.get((state, event))
        if after is not None:
            return after
        if (state, event) in self.ignored:
            return state
        raise Bug(f"{self.name}: {event} in state {state} cannot happen")
