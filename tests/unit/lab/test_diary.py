"""The diary of `make year`: the same for the same seed, and everything comes up."""

from collections import Counter
from itertools import pairwise

from scenarios.failover.catalogue import SCENARIOS
from scenarios.year.diary import APART, DAY, REBOOT, WEEK, Day, day

HOSTS = 3


def diary(seed: int, days: int) -> list[Day]:
    return [
        day(number, seed=seed, hosts=HOSTS, known=SCENARIOS, troubles=2) for number in range(days)
    ]


def test_a_seed_draws_the_same_days_and_another_one_others() -> None:
    assert diary(1, 30)[12] == diary(1, 13)[12]
    assert diary(1, 30) != diary(2, 30)


def test_troubles_leave_each_other_room() -> None:
    for today in diary(1, 100):
        times = [entry.at for entry in today.troubles]
        assert all(later - one >= APART for one, later in pairwise(times))
        assert times[-1] + APART < DAY


def test_each_week_has_its_reboots_and_renewals() -> None:
    for number in range(0, 10 * WEEK, WEEK):
        week = diary(1, number + WEEK)[number:]
        assert sorted(one.renewal for one in week if one.renewal is not None) == [0, 1, 2]
        reboots = {entry.turn for one in week for entry in one.troubles if entry.trouble == REBOOT}
        assert reboots == {0, 1, 2}


def test_a_year_has_everything_by_every_keying_that_it_applies_to() -> None:
    happened = Counter(
        (entry.trouble, today.keying) for today in diary(1, 365) for entry in today.troubles
    )
    assert happened.keys() == {(each.name, keying) for each in SCENARIOS for keying in each.keyings}
