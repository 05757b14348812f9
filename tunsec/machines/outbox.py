"""The outbox machine: what must still reach the directory, the newest content of each path.

One write is under way at a time; whatever comes meanwhile goes out together in the next one. A
failed write is tried again with backoff, for ever: nothing installed depends on it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
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
class WriteEnded(Event):
    """The write under way ended; `error` is empty when all of it is durable."""

    error: str


@dataclass(frozen=True, slots=True)
class DirectoryBack(Event):
    """The directory can be reached again."""


@dataclass(frozen=True, slots=True)
class Write(Action):
    """Write the newest content of these paths; WriteEnded answers."""

    paths: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Delivered(Action):
    """Tell whoever put these: this content, or newer, is durable."""

    paths: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class OutboxState:
    """Paths with the number of the put that is pending, and those under way."""

    pending: Mapping[str, int] = field(default_factory=dict)
    under_way: Mapping[str, int] | None = None
    puts: int = 0
    failures: int = 0
    retry_at: Instant | None = None
    error: str = ""


OutboxEvent = Put | WriteEnded | DirectoryBack | TimerFired


@dataclass(frozen=True, slots=True)
class OutboxStep:
    """A new state and what must be done."""

    state: OutboxState
    actions: tuple[Action, ...]


def step(state: OutboxState, event: OutboxEvent, now: Instant, fraction: float) -> OutboxStep:
    """One fact in, orders out. `fraction` in [0, 1) is dice for jitter."""
    match event:
        case Put(path):
            puts = state.puts + 1
            state = replace(state, puts=puts, pending={**state.pending, path: puts})
            return _write(state) if state.retry_at is None else OutboxStep(state, ())
        case WriteEnded(error):
            return _ended(state, error, now, fraction)
        case DirectoryBack():
            return _write(replace(state, retry_at=None))
        case TimerFired():
            if state.retry_at is None or state.retry_at > now:
                return OutboxStep(state, ())
            return _write(replace(state, retry_at=None))


def deadline(state: OutboxState) -> Deadline | None:
    """When a failed write is tried again."""
    return None if state.retry_at is None else Deadline(state.retry_at, "directory is tried again")


def _write(state: OutboxState) -> OutboxStep:
    if state.under_way is not None or not state.pending:
        return OutboxStep(state, ())
    return OutboxStep(
        replace(state, under_way=dict(state.pending), pending={}), (Write(tuple(state.pending)),)
    )


def _ended(state: OutboxState, error: str, now: Instant, fraction: float) -> OutboxStep:
    under_way = state.under_way or {}
    if error:
        failures = state.failures + 1
        span = Seconds(min(LONGEST_RETRY, backoff(failures, fraction)))
        return OutboxStep(
            replace(
                state,
                under_way=None,
                pending={**under_way, **state.pending},
                failures=failures,
                retry_at=Instant(now + span),
                error=error,
            ),
            (),
        )
    delivered = tuple(path for path in under_way if path not in state.pending)
    written = _write(replace(state, under_way=None, failures=0, retry_at=None, error=""))
    return OutboxStep(written.state, (Delivered(delivered), *written.actions))
