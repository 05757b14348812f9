"""What of `make failover` fits: troubles that no quick test makes, each on a cluster of its own.

They are the entries of netns-lab/scenarios/failover/catalogue.py, at a faster pace. How long a gap
is, is a figure of docs/failover.md and fails no test.
"""

import pytest

from scenarios.failover.catalogue import SCENARIOS
from scenarios.failover.page import row
from scenarios.failover.traffic import KINDS
from scenarios.failover.trial import Outcome, run
from tunsec.model.flow import Keying

PACE = 0.2
"""A partition of 30 s lasts 6 s."""
CHOSEN = (
    ("charon-killed", "vxlan", Keying.IKE),
    ("link-flaps", "vxlan", Keying.IKE),
    ("rds-reset", "rds-tcp", Keying.DIRECTORY),
    ("loss-and-reordering", "vxlan", Keying.DIRECTORY),
    ("clock-ahead", "vxlan", Keying.DIRECTORY),
    ("policy-reloaded", "vxlan", Keying.DIRECTORY),
)
LONG = (
    ("tunsecd-upgraded", "vxlan", Keying.DIRECTORY),
    ("host-rebooted", "vxlan", Keying.DIRECTORY),
    ("partition", "vxlan", Keying.DIRECTORY),
    ("directory-gone", "vxlan", Keying.DIRECTORY),
    ("events-overrun", "vxlan", Keying.DIRECTORY),
    ("tunsecd-killed", "rds-tcp", Keying.DIRECTORY),
    ("charon-killed", "rds-tcp", Keying.IKE),
    ("loss-and-reordering", "rds-tcp", Keying.IKE),
)


@pytest.mark.parametrize(
    ("name", "kind", "keying"),
    [*CHOSEN, *(pytest.param(*trial, marks=pytest.mark.long) for trial in LONG)],
)
@pytest.mark.needs(*KINDS["vxlan"].needs, *KINDS["rds-tcp"].needs, "netem")
def test_a_trouble_costs_no_more_than_it_may(name: str, kind: str, keying: Keying) -> None:
    outcome = trial_of(name, kind, keying)
    assert not outcome.faults
    assert outcome.sent > 100


@pytest.mark.long
@pytest.mark.needs(*KINDS["rds-tcp"].needs)
@pytest.mark.parametrize("keying", list(Keying))
@pytest.mark.parametrize("name", ["address-moved", "address-split"])
def test_a_transfer_over_a_service_address_goes_on(name: str, keying: Keying) -> None:
    """How soon is RDS's own matter, too: it is in docs/failover.md."""
    outcome = trial_of(name, "rds-tcp", keying)
    assert (outcome.clear, outcome.orphans) == (0, 0), outcome.faults
    assert outcome.reauth_s is not None, outcome.faults
    assert outcome.sent > outcome.lost


def trial_of(name: str, kind: str, keying: Keying) -> Outcome:
    """With its figures told."""
    scenario = next(one for one in SCENARIOS if one.name == name)
    outcome = run(scenario, kind, keying, pace=PACE)
    print(" | ".join(row(outcome)))
    return outcome
