"""The outbox: the newest content of each path gets to the directory, and it is told truly."""

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from tunsec.machines import outbox
from tunsec.machines.facts import TimerFired
from tunsec.machines.outbox import (
    LONGEST_RETRY,
    Delivered,
    DirectoryBack,
    OutboxEvent,
    OutboxState,
    Put,
    Write,
    WriteEnded,
)
from tunsec.model.clock import Instant


@dataclass(slots=True)
class Author:
    """The outside: contents by number, a directory, and who was told what."""

    now: float = 1000.0
    dice: float = 0.5
    state: OutboxState = field(default_factory=OutboxState)
    contents: dict[str, int] = field(default_factory=dict)
    written: dict[str, int] | None = None
    stored: dict[str, int] = field(default_factory=dict)
    told: dict[str, int] = field(default_factory=dict)
    writes: int = 0

    def tell(self, event: OutboxEvent) -> None:
        """One event, its orders carried out."""
        done = outbox.step(self.state, event, Instant(self.now), self.dice)
        self.state = done.state
        for action in done.actions:
            match action:
                case Write(paths):
                    assert self.written is None, "two writes at a time"
                    assert paths
                    self.writes += 1
                    self.written = {path: self.contents[path] for path in paths}
                case Delivered(paths):
                    for path in paths:
                        assert self.stored[path] == self.contents[path], "told too early"
                        self.told[path] = self.contents[path]

    def put(self, path: str) -> None:
        """There is newer content."""
        self.contents[path] = self.contents.get(path, 0) + 1
        self.tell(Put(path))

    def end(self, error: str, *, landed: bool) -> None:
        """The write under way ends."""
        written, self.written = self.written, None
        if written is None:
            return
        if landed or not error:
            self.stored |= written
        self.tell(WriteEnded(error))

    def wait(self, span: float) -> None:
        """Time passes."""
        end = self.now + span
        while (due := outbox.deadline(self.state)) is not None and due.at <= end:
            self.now = max(self.now, due.at)
            self.tell(TimerFired())
        self.now = end


PATHS = st.sampled_from(["a", "b", "c"])
ACTS = st.one_of(
    st.tuples(st.just("put"), PATHS),
    st.tuples(st.just("fail"), st.sampled_from(["landed", "lost"])),
    st.tuples(st.just("succeed"), st.just("")),
    st.tuples(st.just("wait"), st.just("")),
    st.tuples(st.just("back"), st.just("")),
    st.tuples(st.just("early"), st.just("")),
)


@given(st.lists(ACTS, max_size=60))
def test_the_newest_content_arrives_and_nothing_is_told_too_early(
    acts: list[tuple[str, str]],
) -> None:
    author = Author()
    for act, value in acts:
        match act:
            case "put":
                author.put(value)
            case "fail":
                author.end("away", landed=value == "landed")
            case "succeed":
                author.end("", landed=True)
            case "wait":
                author.wait(1.0)
            case "back":
                author.tell(DirectoryBack())
            case _:
                author.tell(TimerFired())
    for _ in range(3):
        author.wait(LONGEST_RETRY)
        author.end("", landed=True)
    assert author.stored == author.contents
    assert author.told == author.contents
    assert not author.state.pending
    assert author.state.under_way is None
    assert outbox.deadline(author.state) is None
    assert author.state.error == ""


@given(st.integers(1, 200), st.floats(0.0, 1.0, exclude_max=True))
def test_retries_slow_down_and_never_stop(failures: int, dice: float) -> None:
    author = Author(dice=dice)
    author.put("a")
    for number in range(1, failures + 1):
        author.end("away", landed=False)
        due = outbox.deadline(author.state)
        assert due is not None
        assert 0 < due.at - author.now <= LONGEST_RETRY + 1e-9
        author.wait(due.at - author.now)
        assert author.writes == number + 1


def test_what_comes_while_one_is_written_goes_out_together() -> None:
    author = Author()
    author.put("a")
    for path in ("b", "a", "c", "b"):
        author.put(path)
    assert author.writes == 1
    author.end("", landed=True)
    assert author.told == {}, "what was written is no longer the newest"
    assert author.written == {"a": 2, "b": 2, "c": 1}
    author.end("", landed=True)
    assert author.told == author.contents


def test_nothing_is_written_while_a_retry_waits_and_all_of_it_after() -> None:
    author = Author()
    author.put("a")
    author.end("away", landed=False)
    author.put("b")
    assert author.written is None
    author.tell(DirectoryBack())
    assert author.written == {"a": 1, "b": 1}


def test_a_failed_write_does_not_overtake_newer_content() -> None:
    author = Author()
    author.put("a")
    author.put("a")
    author.end("away", landed=True)
    author.wait(LONGEST_RETRY)
    assert author.written == {"a": 2}
