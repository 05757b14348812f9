"""A week of three hosts' life, in virtual time: `make year` lives 365 days of the same.

A fault names its seed and its time: `make year ARGS="--seed SEED --from DAY --days 1"`.
"""

import pytest

from scenarios.failover.scenario import Scenario
from scenarios.failover.stage import Stage
from scenarios.year.life import TROUBLED, live

pytestmark = [pytest.mark.needs(*TROUBLED.needs), pytest.mark.virtual_time, pytest.mark.long]

SEED = 6
WEEK = 7
QUIET_DAY = 34
"""Without a reboot and a renewal, and what happens comes early."""


def test_a_week_of_troubles_leaks_nothing_and_leaves_nothing() -> None:
    life = live(SEED, days=WEEK, troubles=1)
    print(life.story())
    assert not life.faults
    assert life.days == WEEK
    assert life.clear == 0
    assert life.sent > 1000
    assert life.happened["host-rebooted"] >= 3
    assert life.happened["certificate-renewed"] == 3
    assert life.happened["policy-changed"] == WEEK
    # Three hosts that send, and new keys for each every hour.
    assert life.sas >= 3 * 24 * WEEK


def test_a_leak_ends_it_and_tells_seed_and_time() -> None:
    released = Scenario("released", "an admin opens all flows", release)
    life = live(SEED, days=1, first=QUIET_DAY, troubles=1, known=(released,))
    assert life.days == 0
    assert life.clear > 0
    assert life.faults[0].startswith(f"seed {SEED}, day {QUIET_DAY} ")
    assert "released by " in life.faults[0]
    assert f"{life.clear} clear packets" in "".join(life.faults)


def release(stage: Stage) -> None:
    """Protection is off, for good."""
    for host in stage.hosts:
        stage.cluster.client(host).release(None)
