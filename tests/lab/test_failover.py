"""What of `make failover` fits: troubles that no quick test makes, each on a cluster of its own.

They are the entries of netns-lab/scenarios/failover/catalogue.py, at a faster pace.
"""

import pytest

from scenarios.failover.catalogue import SCENARIOS
from scenarios.failover.page import row
from scenarios.failover.traffic import KINDS
from scenarios.failover.trial import run
from tunsec.model.flow import Keying

PACE = 0.2
"""A partition of 30 s lasts 6 s."""
VXLAN = KINDS["vxlan"]
CHOSEN = (
    ("tunsecd-upgraded", Keying.DIRECTORY),
    ("charon-killed", Keying.IKE),
    ("host-rebooted", Keying.DIRECTORY),
    ("partition", Keying.DIRECTORY),
    ("link-flaps", Keying.IKE),
    ("loss-and-reordering", Keying.DIRECTORY),
    ("directory-gone", Keying.DIRECTORY),
    ("clock-ahead", Keying.DIRECTORY),
    ("policy-reloaded", Keying.DIRECTORY),
    ("events-overrun", Keying.DIRECTORY),
)


@pytest.mark.needs(*VXLAN.needs, "netem")
@pytest.mark.parametrize(("name", "keying"), CHOSEN)
def test_a_trouble_costs_no_more_than_it_may(name: str, keying: Keying) -> None:
    scenario = next(one for one in SCENARIOS if one.name == name)
    outcome = run(scenario, "vxlan", keying, pace=PACE)
    print(" | ".join(row(outcome)))
    assert not outcome.faults
    assert outcome.sent > 1000
