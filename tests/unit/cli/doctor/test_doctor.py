"""`tunsec doctor` as it is typed: lines, JSON, exit status, what it imports."""

import json
import os
import pty
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tunsec.cli.__main__ import main
from tunsec.cli.doctor.examination import examine
from tunsec.cli.doctor.finding import (
    Group,
    Verdict,
    as_json,
    counted,
    ok,
    problem,
    show,
    told,
    warning,
)
from tunsec.cli.doctor.options import Options
from tunsec.cli.doctor.part import Part
from tunsec.cli.exits import Exit
from tunsec.model.errors import PolicyError, Problem
from tunsec.model.flow import Keying
from tunsec.model.names import HostName
from tunsec.policy.intent import parse_policy

TOP = Path(__file__).parents[4]
POLICY = """\
version: 1
hosts: {db1: {address: 192.0.2.11}, db2: {address: 192.0.2.12}, db3: {address: 192.0.2.13}}
flows:
  overlay: {kind: vxlan, between: [db1, db2]}
  backbone: {kind: vxlan, port: 4790, keying: ike, between: [db2, db3]}
"""
GOOD = ok(Group.KERNEL, "esn", "with a replay window of 1024 packets")
SLOW = warning(Group.CHARON, "settings", "threads is 16", "charon.threads = 32")
BAD = problem(Group.HOST, "policy", "p.yaml cannot be read", "name it with --policy")


@pytest.fixture
def where(tmp_path: Path) -> tuple[str, ...]:
    """Options of a host on which nothing is set up."""
    return (
        *("--host", "db1", "--run", str(tmp_path / "run"), "--state", str(tmp_path / "state")),
        *("--policy", str(tmp_path / "policy.yaml"), "--identity", str(tmp_path / "identity")),
        *("--directory", (tmp_path / "directory").as_uri()),
    )


def test_a_line_for_each_check(where: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", *where]) == Exit.NO
    *lines, last = capsys.readouterr().out.splitlines()
    words = [line.split() for line in lines]
    assert {verdict for verdict, *_ in words} <= {"ok", "warning", "problem"}
    assert {group for _, group, *_ in words} == {"host", "kernel", "daemon"}
    assert words[0][:3] == ["problem", "host", "policy"]
    assert "problems, " in last
    assert last.endswith(" ok")


def test_json_says_the_same(where: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json", *where]) == Exit.NO
    found = json.loads(capsys.readouterr().out)
    assert found["good"] is False
    (policy,) = [one for one in found["findings"] if one["check"] == "policy"]
    assert policy["verdict"] == "problem"
    assert policy["found"].endswith("cannot be read: No such file or directory")
    assert set(policy) == {"group", "check", "verdict", "found", "remedy"}


def test_nothing_is_made(where: tuple[str, ...], tmp_path: Path) -> None:
    main(["doctor", *where])
    assert list(tmp_path.iterdir()) == []


def test_charon_is_looked_at_when_it_matters(
    where: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def groups(*more: str) -> set[str]:
        main(["doctor", "--json", *where, *more])
        return {one["group"] for one in json.loads(capsys.readouterr().out)["findings"]}

    nowhere = f"unix://{tmp_path}/none"
    assert "charon" not in groups()
    assert "charon" in groups("--charon", nowhere)
    (tmp_path / "policy.yaml").write_text(POLICY)
    assert "charon" not in groups()
    assert "charon" in groups("--host", "db2")


def test_the_directory_is_looked_at_where_it_keys_something(
    where: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def checks(*more: str) -> set[str]:
        main(["doctor", "--json", *where, *more])
        found = json.loads(capsys.readouterr().out)["findings"]
        return {one["check"] for one in found if one["group"] == "host"}

    assert "directory" in checks()
    (tmp_path / "policy.yaml").write_text(POLICY)
    assert "directory" in checks("--host", "db2")
    assert "directory" not in checks("--host", "db3")
    assert {"addresses", "identity", "tunnels", "clock"} <= checks("--host", "db3")


def test_options_that_could_not_be_taken_are_told_first(tmp_path: Path) -> None:
    options = Options(
        host=HostName("db1"),
        policy=tmp_path / "policy.yaml",
        identity=tmp_path,
        directory=tmp_path.as_uri(),
        charon="unix:///run/charon.vici",
        charon_wanted=False,
        run=tmp_path,
        state=tmp_path,
        trouble="/etc/default/tunsecd: No closing quotation",
    )
    first = next(examine(options))
    assert (first.verdict, first.found) == (Verdict.WARNING, options.trouble)
    assert next(examine(replace(options, trouble=""))).check == "policy"


def test_a_part_is_what_concerns_the_host() -> None:
    intent = parse_policy(POLICY, "p.yaml")
    first, second = Part.of(intent, "db1"), Part.of(intent, "db2")
    assert [flow.name for flow in first.flows] == ["overlay"]
    assert (first.uses(Keying.DIRECTORY), first.uses(Keying.IKE)) == (True, False)
    assert (second.uses(Keying.DIRECTORY), second.uses(Keying.IKE)) == (True, True)
    assert {child.id.peer for child in first.desired.children} == {"db2"}
    with pytest.raises(PolicyError):
        Part.of(intent, "db9")


def test_lines(capsys: pytest.CaptureFixture[str]) -> None:
    for finding in (GOOD, SLOW, BAD):
        show(finding)
    assert capsys.readouterr().out.splitlines() == [
        "ok       kernel  esn                with a replay window of 1024 packets",
        "warning  charon  settings           threads is 16 (charon.threads = 32)",
        "problem  host    policy             p.yaml cannot be read (name it with --policy)",
    ]
    assert counted([GOOD, SLOW, BAD, GOOD]) == "1 problem, 1 warning, 2 ok"
    assert counted([]) == "0 problems, 0 warnings, 0 ok"
    assert as_json(BAD)["remedy"] == "name it with --policy"


def test_problems_of_others_become_findings() -> None:
    (finding,) = told(
        Group.HOST, "identity", [Problem("id/key.pem", "is open", "chmod 600")], BAD.verdict
    )
    assert finding == problem(Group.HOST, "identity", "id/key.pem: is open", "chmod 600")
    assert finding.verdict is Verdict.PROBLEM


def test_a_terminal_gets_colour(where: tuple[str, ...]) -> None:
    control, terminal = pty.openpty()
    with subprocess.Popen(
        (sys.executable, "-m", "tunsec.cli", "doctor", *where),
        cwd=TOP,
        stdout=terminal,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "80"},
    ) as running:
        os.close(terminal)
        shown = b""
        while piece := _read(control):
            shown += piece
        assert running.wait(30) == Exit.NO
    os.close(control)
    assert "\x1b[1;31mproblem" in shown.decode()


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # the other end of a terminal has gone
        return b""


def test_nothing_comes_along_before_it_is_carried_out() -> None:
    code = (
        "import sys, tunsec.cli.__main__, tunsec.cli.doctor; "
        "print([name for name in sys.modules if name.startswith('tunsec.adapters') "
        "or name in ('pydantic', 'cryptography', 'asyncio', 'rich', 'yaml')])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=TOP, capture_output=True, text=True, check=True
    )
    assert ran.stdout == "[]\n"
