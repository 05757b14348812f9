"""A directory that delays, reorders, repeats and fails, as a file system or a cluster may."""

import functools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tunsec.model.clock import Instant
from tunsec.model.errors import Unavailable
from tunsec.ports import Record

POLL_AFTER = 2.0
"""Seconds between two looks at the whole directory by who is not told (adapters/dir_file.py)."""

Later = Callable[[float, Callable[[], None]], None]


@dataclass(slots=True)
class DirectoryFaults:
    """How bad the directory is; spans in seconds, chances in 0..1."""

    longest_delay: float = 0.05
    lose: float = 0.0
    """That a reader is not told, and finds what is new when it looks by itself."""
    repeat: float = 0.0
    replay_old: float = 0.0
    fail: float = 0.0
    full: bool = False
    """There is no room: nothing is written, and what is there can be read."""


@dataclass(slots=True)
class Directory:
    """The store that all hosts see, and those who watch it."""

    dice: random.Random
    later: Later
    now: Callable[[], Instant]
    faults: DirectoryFaults = field(default_factory=DirectoryFaults)
    away: bool = False
    cut_off: set[str] = field(default_factory=set)
    """Hosts that cannot reach it; the others can."""
    records: dict[str, bytes] = field(default_factory=dict)
    history: dict[str, list[bytes]] = field(default_factory=dict)
    watchers: dict[str, Callable[[Sequence[Record]], None]] = field(default_factory=dict)
    writes: int = 0
    _lands_at: dict[str, float] = field(default_factory=dict)

    def write(
        self, author: str, records: Sequence[Record], done: Callable[[Exception | None], None]
    ) -> None:
        """A write takes a while, then tells its author and, a while later, every reader."""

        self._land(author, lambda: self._store(records), done)

    def remove(
        self, author: str, paths: Sequence[str], done: Callable[[Exception | None], None]
    ) -> None:
        """Records go; that one is not there is no error, and nobody is told."""

        def drop() -> None:
            for path in paths:
                self.records.pop(path, None)

        self._land(author, drop, done)

    def claim(
        self,
        author: str,
        service: str,
        token: int,
        body: bytes,
        done: Callable[[int | Exception], None],
    ) -> None:
        """One host alone gets a token, and none that is below the highest."""
        standing = 0

        def take() -> None:
            nonlocal standing
            taken = {path: path.rpartition(".") for path in self.records}
            tokens = {
                int(number): path
                for path, (prefix, _, number) in taken.items()
                if prefix == f"claims/{service}"
            }
            standing = max((number for number in tokens if number >= token), default=0)
            if standing:
                return
            for path in tokens.values():
                del self.records[path]
            self._store([Record(f"claims/{service}.{token}", body)])

        self._land(author, take, lambda error: done(standing if error is None else error))

    def _land(
        self, author: str, act: Callable[[], None], done: Callable[[Exception | None], None]
    ) -> None:
        """Have something happen to the store in a while, or fail, or both."""

        def land() -> None:
            unreachable = self.away or author in self.cut_off
            refused = unreachable or self.faults.full
            failed = refused or self.dice.random() < self.faults.fail
            if not failed or (not refused and self.dice.random() < 0.5):
                act()  # it may land, and its author be told otherwise
            done(Unavailable("the directory is away") if failed else None)

        # One author's calls land in their order.
        at = max(self.now() + self._delay(), self._lands_at.get(author, 0.0))
        self._lands_at[author] = at
        self.later(at - self.now(), land)

    def _store(self, records: Sequence[Record]) -> None:
        self.writes += len(records)
        for record in records:
            self.records[record.path] = record.body
            self.history.setdefault(record.path, []).append(record.body)
            for name in list(self.watchers):
                self._notify(name, record)

    def _notify(self, name: str, record: Record) -> None:
        if not _concerns(name, record.path):
            return
        if self.faults.lose and self.dice.random() < self.faults.lose:
            self.later(self.dice.uniform(0.0, POLL_AFTER), lambda: self._find(name, record.path))
            return
        times = 2 if self.dice.random() < self.faults.repeat else 1
        for _ in range(times):
            self.later(self._delay(), lambda: self._deliver(name, record))
        if self.dice.random() < self.faults.replay_old:
            old = self.dice.choice(self.history[record.path])
            self.later(self._delay() * 3, lambda: self._deliver(name, Record(record.path, old)))

    def _find(self, name: str, path: str) -> None:
        body = self.records.get(path)
        if body is not None:
            self._deliver(name, Record(path, body))

    def _deliver(self, name: str, record: Record) -> None:
        watcher = self.watchers.get(name)
        if watcher is None:
            return
        if self.away or name in self.cut_off:
            self.later(0.5, lambda: self._deliver(name, record))
            return
        watcher([record])

    def watch(self, name: str, watcher: Callable[[Sequence[Record]], None]) -> None:
        """A daemon starts: it is shown everything that is there."""
        self.watchers[name] = watcher
        self.retell(name)

    def retell(self, name: str) -> None:
        """A watcher looks at everything anew: one by one, or all at once."""
        if name not in self.watchers:
            return  # who comes later looks then
        seen = [Record(path, body) for path, body in self.records.items() if _concerns(name, path)]
        if self.dice.random() < 0.5:
            self.later(self._delay(), lambda: self._deliver_all(name, seen))
            return
        for record in seen:
            self.later(self._delay(), functools.partial(self._deliver, name, record))

    def _deliver_all(self, name: str, records: Sequence[Record]) -> None:
        watcher = self.watchers.get(name)
        if watcher is None or not records:
            return
        if self.away or name in self.cut_off:
            self.later(0.5, lambda: self._deliver_all(name, records))
            return
        watcher(records)

    def unwatch(self, name: str) -> None:
        """A daemon is gone."""
        self.watchers.pop(name, None)

    def _delay(self) -> float:
        return self.dice.uniform(0.0, self.faults.longest_delay)


def _concerns(name: str, path: str) -> bool:
    return path.startswith(("offers/", "claims/", f"confirmations/{name}/"))
