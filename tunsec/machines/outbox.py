"""The outbox machine: what must still reach the directory: the newest content of each path, and
paths that must go.

One thing is under way at a time; whatever comes meanwhile goes out together in the next one. What
fails is tried again with backoff, for ever: nothing installed depends on it. Of a Put and a Drop of
one path the later wins, and content of a dropped path is never written. Writes go before
withdrawals and wait for none: a file that cannot be removed must not hold up keys.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from tunsec.machines.backoff import backoff
from tunsec.machines.facts import TimerFired
from tunsec.machines.orders import Action
from tunsec.model.clock import Deadline, Instant, Seconds
from tunsec.model.event import Event

LONGEST_RETRY: Final = Seconds(5.0)


@dataclass(frozen=True, slots=True)
class Put(Event):
    """There is newer content for a path."""

    path: str


@dataclass(frozen=True, slots=True)
class Drop(Event):
    """A path must go from the directory, if it is there."""

    path: str


@dataclass(frozen=True, slots=True)
class WriteEnded(Event):
    """The write or withdrawal under way ended; `error` is empty when all of it is durable."""

    error: str


@dataclass(frozen=True, slots=True)
class DirectoryBack(Event):
    """The directory can be reached again."""


@dataclass(frozen=True, slots=True)
class Write(Action):
    """Write the newest content of these paths; WriteEnded answers."""

    paths: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Withdraw(Action):
    """Remove these paths from the directory; WriteEnded answers."""

    paths: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Delivered(Action):
    """Tell whoever put these: this content, or newer, is durable."""

    paths: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Due:
    """Paths that wait to be written, or to be withdrawn, and how it went the last time."""

    paths: frozenset[str] = frozenset()
    failures: int = 0
    retry_at: Instant | None = None
    error: str = ""

    @property
    def ready(self) -> bool:
        """Whether there is something to do, and now."""
        return bool(self.paths) and self.retry_at is None

    def without(self, path: str) -> "Due":
        """The same less a path; what failed and is no longer wanted is forgotten."""
        if path not in self.paths:
            return self
        left = self.paths - {path}
        return replace(self, paths=left) if left else Due()

    def again(self, now: Instant) -> "Due":
        """The same, with nothing to wait for once the time of a retry has come."""
        late = self.retry_at is not None and self.retry_at <= now
        return replace(self, retry_at=None) if late else self

    def ended(self, left: Iterable[str], error: str, now: Instant, fraction: float) -> "Due":
        """An attempt ended; `left` of it are still wanted."""
        if not error:
            return Due(self.paths)
        paths = self.paths.union(left)
        if not paths:
            return Due()
        failures = self.failures + 1
        span = min(LONGEST_RETRY, backoff(failures, fraction))
        return Due(paths, failures, Instant(now + span), error)


@dataclass(frozen=True, slots=True)
class OutboxState:
    """What is due, and what is under way."""

    puts: Due = Due()
    drops: Due = Due()
    under_way: Write | Withdraw | None = None

    @property
    def error(self) -> str:
        """Why the directory could not be written the last time; empty when it could."""
        return self.puts.error or self.drops.error

    @property
    def idle(self) -> bool:
        """Whether all has reached the directory."""
        return not (self.puts.paths or self.drops.paths or self.under_way)


OutboxEvent = Put | Drop | WriteEnded | DirectoryBack | TimerFired


@dataclass(frozen=True, slots=True)
class OutboxStep:
    """A new state and what must be done."""

    state: OutboxState
    actions: tuple[Action, ...]


def step(state: OutboxState, event: OutboxEvent, now: Instant, fraction: float) -> OutboxStep:
    """One fact in, orders out. `fraction` in [0, 1) is dice for jitter."""
    puts, drops = state.puts, state.drops
    match event:
        case Put(path):
            puts = replace(puts, paths=puts.paths | {path})
            return _begin(replace(state, puts=puts, drops=drops.without(path)))
        case Drop(path):
            drops = replace(drops, paths=drops.paths | {path})
            return _begin(replace(state, puts=puts.without(path), drops=drops))
        case WriteEnded(error):
            return _ended(state, error, now, fraction)
        case DirectoryBack():
            puts, drops = replace(puts, retry_at=None), replace(drops, retry_at=None)
            return _begin(replace(state, puts=puts, drops=drops))
        case TimerFired():
            return _begin(replace(state, puts=puts.again(now), drops=drops.again(now)))


def deadline(state: OutboxState) -> Deadline | None:
    """When what failed is tried again."""
    waiting = [
        Deadline(due.retry_at, "directory is tried again")
        for due in (state.puts, state.drops)
        if due.retry_at is not None
    ]
    return min(waiting, default=None)


def _begin(state: OutboxState) -> OutboxStep:
    order: Write | Withdraw
    if state.under_way is not None:
        return OutboxStep(state, ())
    if state.puts.ready:
        order = Write(tuple(sorted(state.puts.paths)))
        state = replace(state, puts=replace(state.puts, paths=frozenset()))
    elif state.drops.ready:
        order = Withdraw(tuple(sorted(state.drops.paths)))
        state = replace(state, drops=replace(state.drops, paths=frozenset()))
    else:
        return OutboxStep(state, ())
    return OutboxStep(replace(state, under_way=order), (order,))


def _ended(state: OutboxState, error: str, now: Instant, fraction: float) -> OutboxStep:
    """What was asked for meanwhile is newer than what was under way."""
    order, state = state.under_way, replace(state, under_way=None)
    if order is None:
        return OutboxStep(state, ())
    newer = state.puts.paths | state.drops.paths
    left = tuple(path for path in order.paths if path not in newer)
    if isinstance(order, Write):
        state = replace(state, puts=state.puts.ended(left, error, now, fraction))
    else:
        state = replace(state, drops=state.drops.ended(left, error, now, fraction))
    begun = _begin(state)
    if error or isinstance(order, Withdraw):
        return begun
    return OutboxStep(begun.state, (Delivered(left), *begun.actions))
