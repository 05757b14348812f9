"""What the running daemon is asked, and what becomes of its answer."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.daemon.control_fake import OVERLAY, FakeDaemon, Served, served
from tunsec import __version__
from tunsec.cli.doctor.daemon import (
    check_daemon,
    check_flows,
    check_guard_in_force,
    check_policy_in_force,
    check_trouble,
    check_version,
)
from tunsec.cli.doctor.finding import Verdict
from tunsec.cli.doctor.part import Part
from tunsec.policy.intent import parse_policy
from tunsec.wire.control import GuardStatus, PolicyStatus, Status

POLICY = """\
version: 1
hosts:
  db1: {address: 192.0.2.11}
  db2: {address: 192.0.2.12}
flows:
  overlay: {kind: vxlan, between: all}
"""


@pytest.fixture
def part() -> Part:
    return Part.of(parse_policy(POLICY, "p.yaml"), "db1")


@pytest.fixture
def well(part: Part) -> Status:
    """The status of a daemon to which nothing is wrong."""
    return replace(
        FakeDaemon().current,
        version=__version__,
        flows=(OVERLAY,),
        policy=PolicyStatus("p.yaml", part.intent.digest, 3.0),
        directory=None,
        warnings=(),
    )


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Served]:
    with served(tmp_path / "control.sock") as running:
        yield running


def test_a_daemon_to_which_nothing_is_wrong(server: Served, well: Status, part: Part) -> None:
    server.daemon.current = well
    found = list(check_daemon(server.path, part))
    assert [finding.verdict for finding in found] == [Verdict.OK] * 4
    assert found[0].found == f"{__version__} runs as db1"


def test_no_daemon_is_how_a_host_begins(tmp_path: Path, part: Part) -> None:
    (finding,) = check_daemon(tmp_path / "control.sock", part)
    assert finding.verdict is Verdict.WARNING
    assert "not running here" in finding.found
    assert finding.remedy == "start it with `systemctl start tunsecd`"


def test_a_daemon_with_a_bug_is_a_problem(server: Served, part: Part) -> None:
    server.daemon.bug = RuntimeError("a state that cannot be")
    (finding,) = check_daemon(server.path, part)
    assert finding.verdict is Verdict.PROBLEM


def test_another_version(well: Status) -> None:
    assert check_version(well).verdict is Verdict.OK
    finding = check_version(replace(well, version="0.0.1"))
    assert finding.verdict is Verdict.WARNING
    assert "tunsecd 0.0.1 runs" in finding.found


def test_another_policy_than_the_file(well: Status, part: Part) -> None:
    assert check_policy_in_force(well, part).verdict is Verdict.OK
    assert check_policy_in_force(well, None).verdict is Verdict.OK
    other = replace(well, policy=PolicyStatus("/tmp/other.yaml", "abc", 3.0))
    finding = check_policy_in_force(other, part)
    assert finding.verdict is Verdict.WARNING
    assert "/tmp/other.yaml" in finding.found
    refused = replace(well, policy=replace(well.policy, error="p.yaml:3: bad\np.yaml:4: worse"))
    finding = check_policy_in_force(refused, part)
    assert finding.verdict is Verdict.WARNING
    assert "p.yaml:3: bad; p.yaml:4: worse" in finding.found


def test_a_guard_that_does_not_stand(well: Status) -> None:
    assert check_guard_in_force(well).verdict is Verdict.OK
    finding = check_guard_in_force(replace(well, guard=GuardStatus(False, "nft is gone")))
    assert (finding.verdict, finding.found) == (Verdict.PROBLEM, "nft is gone")


def test_flows_without_keys() -> None:
    finding = check_flows(FakeDaemon().current)
    assert finding.verdict is Verdict.WARNING
    assert finding.found == "1 of 2 not protected: backbone db3: db3 has published no offer"


def test_whatever_else_it_warns_of(well: Status) -> None:
    assert list(check_trouble(well)) == []
    warned = replace(
        FakeDaemon().current,
        flows=(replace(OVERLAY, warnings=("it is slow",)),),
    )
    found = [(finding.verdict, finding.found) for finding in check_trouble(warned)]
    assert found == [
        (Verdict.PROBLEM, "file:/srv/tunsec is away: Permission denied"),
        (Verdict.WARNING, "the clock went back"),
        (Verdict.WARNING, "it is slow"),
    ]
