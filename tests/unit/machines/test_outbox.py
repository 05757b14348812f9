"""The outbox: the newest content of each path gets to the directory, what is dropped goes from it,
and both are told truly."""

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from tunsec.machines import outbox
from tunsec.machines.facts import TimerFired
from tunsec.machines.outbox import (
    LONGEST_RETRY,
    Delivered,
    DirectoryBack,
    Drop,
    OutboxEvent,
    OutboxState,
    Put,
    Withdraw,
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
    """As the engine has it: what was dropped is not there."""
    numbers: dict[str, int] = field(default_factory=dict)
    written: dict[str, int] | None = None
    withdrawn: tuple[str, ...] | None = None
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
                    assert self.withdrawn is None, "a write beside a withdrawal"
                    assert paths
                    self.writes += 1
                    self.written = {path: self.contents[path] for path in paths}
                case Withdraw(paths):
                    assert self.written is None, "a withdrawal beside a write"
                    assert self.withdrawn is None, "two withdrawals at a time"
                    assert paths
                    assert not self.contents.keys() & set(paths), "wanted again"
                    self.withdrawn = paths
                case Delivered(paths):
                    for path in paths:
                        assert self.stored[path] == self.contents[path], "told too early"
                        self.told[path] = self.contents[path]

    def put(self, path: str) -> None:
        """There is newer content."""
        self.numbers[path] = self.contents[path] = self.numbers.get(path, 0) + 1
        self.tell(Put(path))

    def drop(self, path: str) -> None:
        """A path must go."""
        self.contents.pop(path, None)
        self.told.pop(path, None)
        self.tell(Drop(path))

    def end(self, error: str, *, landed: bool) -> None:
        """What is under way ends."""
        written, self.written = self.written, None
        withdrawn, self.withdrawn = self.withdrawn, None
        if written is None and withdrawn is None:
            return
        if landed or not error:
            self.stored |= written or {}
            for path in withdrawn or ():
                self.stored.pop(path, None)
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
    st.tuples(st.just("drop"), PATHS),
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
            case "drop":
                author.drop(value)
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
    for _ in range(5):
        author.wait(LONGEST_RETRY)
        author.end("", landed=True)
    assert author.stored == author.contents
    assert author.told == author.contents
    assert author.state.idle
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


def test_what_is_dropped_before_it_was_written_is_never_written() -> None:
    author = Author()
    author.put("a")
    author.put("b")
    author.drop("b")
    author.end("", landed=True)
    assert author.written is None
    assert author.withdrawn == ("b",)
    author.end("", landed=True)
    assert author.stored == author.told == {"a": 1}
    assert author.state.idle


def test_what_is_dropped_while_it_is_written_goes_when_it_has_landed() -> None:
    author = Author()
    author.put("a")
    author.drop("a")
    assert author.written == {"a": 1}
    author.end("", landed=True)
    assert author.told == {}
    assert author.withdrawn == ("a",)


def test_a_failed_write_of_a_dropped_path_is_not_tried_again() -> None:
    author = Author()
    author.put("a")
    author.drop("a")
    author.end("away", landed=True)
    assert author.withdrawn == ("a",)
    author.end("", landed=True)
    author.wait(LONGEST_RETRY)
    assert (author.writes, author.stored) == (1, {})
    assert author.state.idle


def test_content_that_comes_while_its_path_is_withdrawn_is_written_after() -> None:
    author = Author()
    author.drop("a")
    author.put("a")
    assert author.withdrawn == ("a",)
    author.end("away", landed=True)
    assert author.written == {"a": 1}
    author.end("", landed=True)
    author.wait(LONGEST_RETRY)
    assert author.stored == {"a": 1}
    assert author.state.idle


def test_a_file_that_cannot_be_removed_holds_up_no_write() -> None:
    author = Author()
    author.drop("a")
    for number in range(1, 20):
        author.end("not permitted", landed=False)
        assert author.state.error == "not permitted"
        author.put("b")
        assert author.written == {"b": number}
        author.end("", landed=True)
        assert author.state.error == "not permitted", "the write that went well is not about it"
        author.wait(LONGEST_RETRY)
        assert author.withdrawn == ("a",), "and it is tried for ever"


def test_what_is_put_while_a_withdrawal_is_under_way_does_not_make_it_forget() -> None:
    author = Author()
    author.drop("a")
    waits = []
    for _ in range(6):
        author.end("not permitted", landed=False)
        due = outbox.deadline(author.state)
        assert due is not None
        waits.append(due.at - author.now)
        author.end("", landed=True)
        author.wait(LONGEST_RETRY)
        assert author.withdrawn == ("a",)
        author.put("b")
        assert author.state.error == "not permitted"
    assert waits == sorted(waits)
    assert waits[-1] > waits[0]


def test_a_withdrawal_is_tried_again_until_it_is_done() -> None:
    author = Author()
    author.stored["a"] = 7
    author.drop("a")
    author.end("away", landed=False)
    assert outbox.deadline(author.state) is not None
    author.tell(DirectoryBack())
    author.end("", landed=True)
    assert author.stored == {}
    assert author.state.error == ""
    assert author.state.idle
