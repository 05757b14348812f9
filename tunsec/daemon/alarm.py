"""Deadlines of many machines, the earliest first."""

import heapq
from collections.abc import Hashable
from typing import Final, Generic, TypeVar

from tunsec.model.clock import Deadline, Instant

K = TypeVar("K", bound=Hashable)

SLACK: Final = 64
"""Replaced deadlines that may lie in the heap besides as many as there are keys."""


class Alarms(Generic[K]):
    """One deadline per key; setting it again replaces it, in O(log n)."""

    def __init__(self) -> None:
        self._at: dict[K, Deadline] = {}
        self._heap: list[tuple[Instant, int, K]] = []
        self._order = 0

    def __len__(self) -> int:
        """Deadlines kept, with those that were replaced and wait to be dropped."""
        return len(self._heap)

    def put(self, key: K, deadline: Deadline | None) -> None:
        """Set, move or (None) cancel the deadline of a key."""
        if deadline is None:
            self._at.pop(key, None)
            return
        if self._at.get(key) == deadline:
            return
        self._at[key] = deadline
        self._order += 1
        heapq.heappush(self._heap, (deadline.at, self._order, key))
        if len(self._heap) > 2 * len(self._at) + SLACK:
            self._drop_replaced()

    def _drop_replaced(self) -> None:
        """Deadlines that were moved far too often would otherwise stay until their hour comes."""
        self._heap = [
            (deadline.at, order, key) for order, (key, deadline) in enumerate(self._at.items())
        ]
        heapq.heapify(self._heap)

    def get(self, key: K) -> Deadline | None:
        """The deadline of a key."""
        return self._at.get(key)

    def next(self) -> Deadline | None:
        """The earliest deadline of all."""
        while self._heap:
            at, _, key = self._heap[0]
            deadline = self._at.get(key)
            if deadline is not None and deadline.at == at:
                return deadline
            heapq.heappop(self._heap)
        return None

    def due(self, now: Instant) -> list[K]:
        """Keys whose deadline has come, the earliest first; they are cancelled."""
        keys: list[K] = []
        while (deadline := self.next()) is not None and deadline.at <= now:
            _, _, key = heapq.heappop(self._heap)
            del self._at[key]
            keys.append(key)
        return keys
