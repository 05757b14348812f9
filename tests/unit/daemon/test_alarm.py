"""Deadlines of many machines."""

from hypothesis import given
from hypothesis import strategies as st

from tunsec.daemon.alarm import SLACK, Alarms
from tunsec.model.clock import Deadline, Instant

KEYS = st.sampled_from(["a", "b", "c"])
ACTS = st.one_of(
    st.tuples(st.just("put"), KEYS, st.integers(0, 20)),
    st.tuples(st.just("cancel"), KEYS, st.just(0)),
    st.tuples(st.just("due"), st.just(""), st.integers(0, 20)),
)


@given(st.lists(ACTS, max_size=80))
def test_as_a_table_that_is_searched(acts: list[tuple[str, str, int]]) -> None:
    alarms: Alarms[str] = Alarms()
    table: dict[str, Deadline] = {}
    for act, key, number in acts:
        at = Instant(float(number))
        match act:
            case "put":
                table[key] = Deadline(at, "test")
                alarms.put(key, table[key])
            case "cancel":
                table.pop(key, None)
                alarms.put(key, None)
            case _:
                expected = {name for name, deadline in table.items() if deadline.at <= at}
                found = alarms.due(at)
                assert set(found) == expected
                assert len(found) == len(expected)
                times = [table.pop(name).at for name in found]
                assert times == sorted(times)
        assert alarms.next() == min(table.values(), default=None)
        assert all(alarms.get(name) == table.get(name) for name in "abc")


def test_deadlines_that_move_all_the_time_do_not_pile_up() -> None:
    """An offer's end is told anew with every record, always a little different and hours ahead."""
    alarms: Alarms[int] = Alarms()
    for turn in range(1_000):
        for peer in range(10):
            alarms.put(peer, Deadline(Instant(7200.0 + turn / 1e6), "offer of a peer expires"))
        assert len(alarms) <= 2 * 10 + SLACK
    assert sorted(alarms.due(Instant(7201.0))) == list(range(10))
    assert alarms.next() is None
