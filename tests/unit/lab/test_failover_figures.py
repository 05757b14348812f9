"""The figures of `make failover`: gaps, and the page that shows them."""

from pathlib import Path
from typing import Any

import pytest

from scenarios.failover import page
from scenarios.failover.catalogue import SCENARIOS
from scenarios.failover.scenario import Cost
from scenarios.failover.trial import Outcome, back_after, gaps_of, judge
from tunsec.model.flow import Keying
from tunsec_lab.probe import PACKET, ProbeReport, Tally

PAGE = Path(__file__).parents[3] / "docs" / "failover.md"
MS = 1_000_000


def heard(arrivals: dict[int, int]) -> Tally:
    """Packets by number, and the millisecond at which they came."""
    tally = Tally()
    for number, at in arrivals.items():
        tally.take(PACKET.pack(number, 0), at * MS)
    return tally


def report(**figures: Any) -> ProbeReport:
    """Of a probe to which nothing happened but this."""
    plain = ProbeReport(1000, 1000, 0, 0, 0.0, 0.0)
    return plain._replace(**{"began_at": 1.0, "ended_at": 2.0, "last_at": 2.0} | figures)


def test_silence_in_which_packets_were_lost_is_a_gap() -> None:
    assert heard({0: 1, 1: 2, 9: 500}).silent() == [(2 * MS, 500 * MS)]


def test_silence_after_which_everything_comes_is_none() -> None:
    assert heard({0: 1, 1: 2, 3: 500, 2: 501}).silent() == []
    assert heard({0: 1, 1: 500}).silent() == []


def test_a_packet_lost_from_a_stream_is_no_gap() -> None:
    assert heard({0: 1, 2: 3}).silent() == []


def test_what_never_comes_again_is_a_gap_to_the_end() -> None:
    assert list(gaps_of([report(last_at=1.5)])) == [(1.5, 2.0)]
    assert list(gaps_of([report()])) == []


def test_from_one_life_of_a_host_to_the_next_is_a_gap() -> None:
    later = report(began_at=6.0, first_at=7.0, last_at=9.0, ended_at=9.0)
    assert list(gaps_of([report(), later])) == [(2.0, 7.0)]
    silent = report(received=0, began_at=6.0, first_at=0.0, last_at=0.0, ended_at=9.0)
    assert list(gaps_of([report(), silent])) == [(2.0, 9.0)]


def test_packets_are_back_when_the_last_gap_after_a_trouble_ends() -> None:
    ended_at = [10.0, 20.0]
    assert back_after((9.0, 9.5), ended_at, reliable=False) == 0.0
    assert back_after((9.0, 10.5), ended_at, reliable=False) == 0.5
    assert back_after((19.0, 22.0), ended_at, reliable=True) == 2.0


def test_what_is_reliable_waits_a_moment_whenever_a_machine_is_slow() -> None:
    assert back_after((15.0, 15.5), [10.0], reliable=False) == 5.5
    assert back_after((15.0, 15.5), [10.0], reliable=True) == 0.0
    assert back_after((15.0, 16.5), [10.0], reliable=True) == 6.5


@pytest.mark.parametrize(
    ("cost", "figures", "missed"),
    [
        (Cost.NOTHING, {"lost": 1}, "1 packets lost"),
        (Cost.NOTHING, {"gap_ms": 3001.0}, "nothing came for 3001 ms"),
        (Cost.GAP, {"lost": 9, "back_ms": 999.0}, ""),
        (Cost.GAP, {"lost": 9, "back_ms": 1001.0}, "1001 ms after"),
    ],
)
def test_what_a_scenario_may_cost(cost: Cost, figures: dict[str, Any], missed: str) -> None:
    [scenario] = [one for one in SCENARIOS if one.name == _example(cost)]
    outcome = Outcome(scenario, "vxlan", Keying.DIRECTORY, **figures)
    judge(outcome, [], "", "")
    assert len(outcome.missed) == bool(missed)
    assert missed in "".join(outcome.missed)


def _example(cost: Cost) -> str:
    return "partition" if cost is Cost.GAP else "rekeys-at-once"


def test_what_is_left_over_is_told() -> None:
    outcome = Outcome(SCENARIOS[-1], "vxlan", Keying.DIRECTORY)
    judge(outcome, ["a: SAs: 9, not 8"], "", "")
    assert outcome.orphans == 1
    assert "not 8" in outcome.faults[0]


def test_the_page_has_every_scenario_as_it_is() -> None:
    text = PAGE.read_text()
    assert page.replaced(text, "scenarios", page.stories(SCENARIOS)) == text
    assert page.replaced(text, "results", "new").count("new") == text.count("new") + 1


def test_a_run_of_some_replaces_their_rows() -> None:
    partition, last = (one for one in SCENARIOS if one.name in ("partition", SCENARIOS[-1].name))
    both = [
        Outcome(partition, "vxlan", Keying.IKE, lost=7, faults=["late"]),
        Outcome(last, "vxlan", Keying.IKE),
    ]
    before = page.results(both, where="There.")
    assert "- partition on vxlan by ike: late" in before
    after = page.results(
        [Outcome(partition, "vxlan", Keying.IKE, lost=8)], where="Here.", before=before
    )
    assert (before.count("\n| "), after.count("\n| ")) == (3, 3)
    assert "| 8 |" in after
    assert "There" not in after
    assert "late" not in after
    again = page.results([Outcome(last, "vxlan", Keying.DIRECTORY)], where="Here.", before=before)
    assert again.count("\n| ") == 4
    assert "- partition on vxlan by ike: late" in again


def test_a_page_without_the_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="results"):
        page.replaced("nothing", "results", "")
