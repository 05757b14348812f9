"""What every ports.Directory keeps to, with those who watch it: the folder, and the simulation's.

A test class inherits DirectoryContract and supplies a `meeting` fixture: hosts that share one
directory, and a way to let time pass.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from tunsec.model.errors import Unavailable
from tunsec.ports import Directory, Record

OFFER = "offers/h0"
WORD = "confirmations/h1/h0"


@dataclass(slots=True)
class Member:
    """A host at the directory: what it was answered, and what it was told."""

    directory: Directory
    answers: list[Exception | None] = field(default_factory=list)
    told: list[Record] = field(default_factory=list)
    claimed: list[int | Exception] = field(default_factory=list)
    """What it was answered when it claimed."""

    def publish(self, *records: Record) -> None:
        """Publish in one call."""
        self.directory.publish(records, done=self.answers.append)

    def withdraw(self, *paths: str) -> None:
        """Withdraw in one call."""
        self.directory.withdraw(paths, done=self.answers.append)

    def claim(self, token: int, *, service: str = "vip") -> Record:
        """Claim a service address; returns the record that this makes, if it does."""
        record = Record(f"claims/{service}.{token}", b"claim %d by %d" % (token, id(self)))
        self.directory.claim(service, token, record.body, done=self.claimed.append)
        return record

    def hear(self, records: Sequence[Record]) -> None:
        """Called with what is new."""
        self.told.extend(records)


class Meeting(Protocol):
    """Hosts and their directory."""

    def join(self, name: str) -> Member:
        """A host begins to watch; it has not been told anything yet."""
        ...

    def until(self, true: Callable[[], bool]) -> None:
        """Let time pass until it is true; raises when it never gets so."""
        ...

    def settle(self) -> None:
        """Let pass as much time as anything may take that is under way."""
        ...

    def go_away(self) -> None:
        """Nobody reaches the directory."""
        ...

    def come_back(self) -> None:
        """It is as it was."""
        ...


class DirectoryContract:
    """The promises of ports.Directory."""

    def test_a_record_comes_back_equal(self, meeting: Meeting) -> None:
        author, reader = meeting.join("h0"), meeting.join("h1")
        record = Record(WORD, bytes(range(256)) * 100)
        author.publish(record)
        meeting.until(lambda: record in reader.told)
        assert [one for one in reader.told if one != record] == []

    def test_who_comes_later_is_told_what_is_there(self, meeting: Meeting) -> None:
        author = meeting.join("h0")
        records = [Record(OFFER, b"offer"), Record(WORD, b"word")]
        author.publish(*records)
        meeting.until(lambda: author.answers == [None])
        late = meeting.join("h1")
        meeting.until(lambda: len(late.told) >= 2)
        assert {record.path: record for record in late.told} == {
            record.path: record for record in records
        }

    def test_all_is_there_when_the_answer_comes(self, meeting: Meeting) -> None:
        author = meeting.join("h0")
        author.publish(Record(OFFER, b"offer"), Record(WORD, b"word"))
        meeting.until(lambda: bool(author.answers))
        assert author.answers == [None]
        late = meeting.join("h1")
        meeting.until(lambda: {one.path for one in late.told} == {OFFER, WORD})

    def test_each_call_is_answered_once(self, meeting: Meeting) -> None:
        author = meeting.join("h0")
        for number in range(5):
            author.publish(Record(OFFER, b"%d" % number))
        author.publish(Record(WORD, b"word"))
        author.publish()
        author.withdraw(WORD)
        author.withdraw("offers/nobody")
        meeting.until(lambda: len(author.answers) >= 9)
        meeting.settle()
        assert author.answers == [None] * 9

    def test_the_latest_wins(self, meeting: Meeting) -> None:
        author, reader = meeting.join("h0"), meeting.join("h1")
        bodies = [b"%d" % number for number in range(20)]
        for body in bodies:
            author.publish(Record(OFFER, body))
        meeting.until(lambda: Record(OFFER, bodies[-1]) in reader.told)
        meeting.until(lambda: len(author.answers) == len(bodies))
        late = meeting.join("h2")
        meeting.until(lambda: bool(late.told))
        meeting.settle()
        assert {record.body for record in late.told} == {bodies[-1]}

    def test_nobody_sees_half_a_record(self, meeting: Meeting) -> None:
        author, reader = meeting.join("h0"), meeting.join("h1")
        bodies = {bytes([number]) * 60_000 for number in range(40)}
        for body in sorted(bodies):
            author.publish(Record(OFFER, body))
            meeting.until(lambda: None in author.answers)
            author.answers.clear()
        meeting.until(lambda: Record(OFFER, max(bodies)) in reader.told)
        assert {record.body for record in reader.told} <= bodies

    def test_nobody_is_told_what_is_for_others(self, meeting: Meeting) -> None:
        author, other = meeting.join("h0"), meeting.join("h2")
        author.publish(Record(WORD, b"for h1"), Record(OFFER, b"for all"))
        meeting.until(lambda: Record(OFFER, b"for all") in other.told)
        meeting.settle()
        assert {record.path for record in other.told} == {OFFER}

    def test_what_is_withdrawn_is_not_shown_again(self, meeting: Meeting) -> None:
        author = meeting.join("h0")
        author.publish(Record(OFFER, b"offer"), Record(WORD, b"word"))
        meeting.until(lambda: author.answers == [None])
        author.withdraw(WORD)
        meeting.until(lambda: author.answers == [None, None])
        late = meeting.join("h1")
        meeting.until(lambda: bool(late.told))
        meeting.settle()
        assert {record.path for record in late.told} == {OFFER}

    def test_what_is_withdrawn_and_published_again_is_told_again(self, meeting: Meeting) -> None:
        author, reader = meeting.join("h0"), meeting.join("h1")
        word = Record(WORD, b"word")
        author.publish(word)
        meeting.until(lambda: reader.told == [word])
        author.withdraw(WORD)
        meeting.until(lambda: author.answers == [None, None])
        meeting.settle()
        author.publish(word)
        meeting.until(lambda: reader.told == [word, word])

    def test_only_what_is_named_is_withdrawn(self, meeting: Meeting) -> None:
        author, other = meeting.join("h0"), meeting.join("h2")
        author.publish(Record(OFFER, b"offer"), Record(WORD, b"word"))
        other.publish(Record("offers/h2", b"offer"), Record("confirmations/h1/h2", b"word"))
        meeting.until(lambda: author.answers == other.answers == [None])
        author.withdraw(OFFER, WORD)
        meeting.until(lambda: author.answers == [None, None])
        late = meeting.join("h1")
        meeting.until(lambda: len(late.told) >= 2)
        meeting.settle()
        assert {record.path for record in late.told} == {"offers/h2", "confirmations/h1/h2"}

    def test_withdrawing_from_a_directory_that_is_away_is_an_error(self, meeting: Meeting) -> None:
        author = meeting.join("h0")
        author.publish(Record(OFFER, b"offer"), Record(WORD, b"word"))
        meeting.until(lambda: author.answers == [None])
        meeting.go_away()
        author.withdraw(WORD)
        meeting.until(lambda: len(author.answers) == 2)
        assert isinstance(author.answers[1], Unavailable)
        meeting.come_back()
        author.withdraw(WORD)
        meeting.until(lambda: author.answers[2:] == [None])
        late = meeting.join("h1")
        meeting.until(lambda: bool(late.told))
        meeting.settle()
        assert {record.path for record in late.told} == {OFFER}

    def test_a_directory_that_is_away_is_an_error_and_loses_nothing(self, meeting: Meeting) -> None:
        author, reader = meeting.join("h0"), meeting.join("h1")
        author.publish(Record(OFFER, b"before"))
        meeting.until(lambda: Record(OFFER, b"before") in reader.told)
        meeting.until(lambda: author.answers == [None])
        meeting.go_away()
        author.publish(Record(OFFER, b"meanwhile"))
        meeting.until(lambda: len(author.answers) == 2)
        assert isinstance(author.answers[1], Unavailable)
        meeting.come_back()
        late = meeting.join("h2")
        meeting.until(lambda: Record(OFFER, b"before") in late.told)
        author.publish(Record(OFFER, b"after"))
        meeting.until(lambda: Record(OFFER, b"after") in reader.told)
        assert author.answers[2:] in ([], [None])

    def test_of_those_that_claim_by_one_token_one_gets_it(self, meeting: Meeting) -> None:
        members = [meeting.join(f"h{number}") for number in range(5)]
        for token in range(1, 6):
            records = [member.claim(token) for member in members]
            meeting.until(lambda: all(member.claimed for member in members))
            assert sorted(member.claimed for member in members) == [[0], *[[token]] * 4]
            [winner] = [
                record
                for member, record in zip(members, records, strict=True)
                if member.claimed == [0]
            ]
            meeting.until(lambda: all(winner in member.told for member in members))  # noqa: B023
            for member in members:
                assert [one for one in member.told if one in records] == [winner]
                member.claimed.clear()
                member.told.clear()

    def test_a_token_below_one_that_is_there_is_not_given(self, meeting: Meeting) -> None:
        one, two = meeting.join("h0"), meeting.join("h1")
        one.claim(7)
        meeting.until(lambda: one.claimed == [0])
        for token in (1, 6, 7):
            two.claim(token)
        meeting.until(lambda: len(two.claimed) == 3)
        assert two.claimed == [7, 7, 7]
        two.claim(1, service="vip.7")  # another service, whatever its name looks like
        two.claim(8)
        meeting.until(lambda: len(two.claimed) == 5)
        assert two.claimed[3:] == [0, 0]

    def test_claims_below_the_newest_are_not_shown_to_who_comes_later(
        self, meeting: Meeting
    ) -> None:
        one, two = meeting.join("h0"), meeting.join("h1")
        for token, member in enumerate((one, two, one), start=1):
            newest = member.claim(token)
            meeting.until(lambda: one.claimed[-1:] == [0] or two.claimed[-1:] == [0])
            meeting.settle()
        late = meeting.join("h2")
        meeting.until(lambda: bool(late.told))
        meeting.settle()
        assert late.told == [newest]

    def test_claiming_from_a_directory_that_is_away_is_an_error(self, meeting: Meeting) -> None:
        one, reader = meeting.join("h0"), meeting.join("h1")
        one.claim(1)
        meeting.until(lambda: one.claimed == [0])
        meeting.go_away()
        one.claim(2)
        meeting.until(lambda: len(one.claimed) == 2)
        assert isinstance(one.claimed[1], Unavailable)
        meeting.come_back()
        third = one.claim(3)
        meeting.until(lambda: third in reader.told)
        assert one.claimed[2] == 0
