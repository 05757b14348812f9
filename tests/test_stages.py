"""The figures at the end of `make test`, which CI reads."""

import sys
from pathlib import Path

import pytest

from tests import stages
from tests.stages import Outcome, Runner, Stage, closing_of

PYTEST_SAID = """
tests/unit/test_a.py ..F                                      [100%]
=================================== FAILURES ===================================
============================= short test summary info ==========================
FAILED tests/unit/test_a.py::test_c - assert 1 == 2
============ 1 failed, 2 passed, 1 skipped, 1 error in 62.50s (0:01:02) ============
"""


def test_closing_lines_of_pytest_are_found_and_counted() -> None:
    lines, counts = closing_of(PYTEST_SAID)
    assert lines == [PYTEST_SAID.strip().splitlines()[-1]]
    assert counts == {"passed": 2, "failed": 2, "skipped": 1}


def test_another_runner_ends_with_its_last_line() -> None:
    assert closing_of("a.py: fine\nAll checks passed!\n\n") == (["All checks passed!"], {})


@pytest.mark.parametrize(
    ("ok", "tests", "failed"),
    [
        (True, {"passed": 3}, 0),
        (False, {"passed": 3}, 1),  # it ended badly after its last test
        (False, {}, 1),  # no test at all
        (False, {"failed": 2}, 2),
    ],
)
def test_a_stage_that_fails_counts(ok: bool, tests: dict[str, int], failed: int) -> None:
    assert Outcome("unit", ok, 1.0, tests=tests).figures()["failed"] == failed


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


def test_every_stage_runs_and_the_total_stands_alone(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    ran = tmp_path / "ran"
    table = (
        Stage("bad", (python("raise SystemExit(3)"), python(f"open({str(ran)!r}, 'w')"))),
        Stage("after", (python("print('=== 4 passed, 1 skipped in 0.10s ===')"),)),
        Stage("needy", (python("print('never')"),), needs="bad"),
        Stage("alone", (python("print('=== 2 passed in 0.10s ===')"),)),
    )
    monkeypatch.setattr(stages, "STAGES", {stage.name: stage for stage in table})
    monkeypatch.setattr(stages, "SIDE_BY_SIDE", (("bad", "needy"), ("after",)))
    monkeypatch.setattr(stages, "AFTERWARDS", (("alone",),))
    runner = Runner()
    runner.run_all()
    assert runner.conclude() == 1
    said = capfd.readouterr().out.splitlines()
    assert said[-1] == "6 passed, 2 failed, 1 skipped"
    assert "=== 2 passed in 0.10s ===" in said[-4:]
    assert ran.exists(), "a command was left out because the one before it failed"
    assert not any(line == "never" for line in said)
