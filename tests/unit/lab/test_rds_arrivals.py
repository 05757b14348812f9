"""What the receiver of a stream of RDS messages makes of those that come."""

from tunsec_lab.rds import STREAM_SIZES, Arrivals, numbered

MS = 1_000_000


def heard(*numbers: int) -> Arrivals:
    """One after the other, a millisecond apart, each when it was sent."""
    arrivals = Arrivals()
    for at, number in enumerate(numbers, start=1):
        arrivals.take(numbered(number, at * MS), at * MS)
    return arrivals


def test_in_order() -> None:
    summary = heard(0, 1, 2).summary()
    assert (summary["received"], summary["highest"], summary["holes"]) == (3, 2, [])
    assert (summary["first_at"], summary["last_at"]) == (MS, 3 * MS)
    assert summary["gaps"] == []


def test_what_came_twice_or_late_is_lost_too() -> None:
    summary = heard(0, 2, 1, 3, 3, 5).summary()
    assert (summary["duplicated"], summary["reordered"]) == (1, 1)
    assert summary["received"] == 3  # 0, 2 and 5: 1 was late, 3 came twice, 4 did not come
    assert summary["holes"] == [(4, 1)]


def test_an_altered_message_did_not_come() -> None:
    arrivals = Arrivals()
    message = bytearray(numbered(0, MS))
    message[-10] ^= 1
    arrivals.take(bytes(message), MS)
    assert arrivals.summary()["received"] == 0
    assert arrivals.summary()["altered"] == 1


def test_a_message_that_waits_makes_a_gap_and_a_slow_sender_none() -> None:
    arrivals = heard(0)
    arrivals.take(numbered(1, 900 * MS), 901 * MS)
    assert arrivals.summary()["gaps"] == []
    arrivals.take(numbered(2, 910 * MS), 1400 * MS)
    assert arrivals.summary()["gaps"] == [(901 * MS, 1400 * MS)]


def test_a_machine_that_had_no_time_makes_no_gap() -> None:
    arrivals = heard(0)
    arrivals.late(-10 * MS)
    arrivals.late(450 * MS)
    arrivals.take(numbered(1, 2 * MS), 500 * MS)
    assert arrivals.summary()["gaps"] == []
    arrivals.take(numbered(2, 500 * MS), 1000 * MS)
    assert arrivals.summary()["gaps"] == [(500 * MS, 1000 * MS)]


def test_sizes_go_round_and_the_last_message_says_so() -> None:
    assert tuple(len(numbered(number, 0)) for number in range(3)) == STREAM_SIZES
    arrivals = heard(0)
    assert not arrivals.ended
    arrivals.take(numbered(1, MS, last=True), MS)
    assert arrivals.ended
