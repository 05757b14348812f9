"""A failing seed's story: short, of the same fault, and to be played again as it says."""

import re
import shlex

import pytest

from tests.sim import soak
from tests.sim.repertoire import SHARES, TRIALS, Failure, play_all, shrunk, tried
from tests.sim.script import Script
from tests.sim.test_planted_faults import (
    forgets_to_block,
    takes_back_what_is_wanted,
    takes_silence_for_refusal,
)
from tests.sim.trial import chaos_trial, stage


def long_script() -> Script:
    """Many hosts, long trouble."""
    return next(
        script
        for script in map(Script, range(1000))
        if len(stage(script).intent.hosts) == 5 and script.trouble == 8.0
    )


def failing(script: Script) -> Failure:
    """What fails in a trial."""
    failure = tried(chaos_trial, script)
    assert failure is not None
    return failure


def test_what_does_not_need_a_host_or_a_strike_is_left_out() -> None:
    script = long_script()
    with pytest.MonkeyPatch.context() as patch:
        takes_silence_for_refusal(patch)
        before = failing(script)
        least, failure, tries = shrunk(chaos_trial, script, before)
        assert tries > 3
        assert before.kind == failure.kind == "law 2"
        assert len(stage(least).intent.hosts) == 2
        assert len(least.struck) < len(script.struck)
        assert least.plain
        assert failing(least) == failure


def test_a_story_says_how_to_play_it_again(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        takes_back_what_is_wanted(patch)
        with pytest.raises(AssertionError) as told:
            play_all("chaos", range(3))
        [again] = re.findall(r"play it again: python -m tests\.sim\.soak (.*)", str(told.value))
        with pytest.raises(AssertionError, match="records that are missing"):
            soak.main(shlex.split(again))
    assert soak.main(shlex.split(again)) == 0
    assert capsys.readouterr().out.startswith("seed ")


def test_another_fault_is_not_taken_for_the_one_that_is_sought() -> None:
    script = Script(3)
    with pytest.MonkeyPatch.context() as patch:
        forgets_to_block(patch)
        assert failing(script).kind == "law 1"
        other = Failure("law 3", "law 3: a key is used twice")
        assert shrunk(chaos_trial, script, other)[:2] == (script, other)


def test_a_soak_counts_and_ends(capsys: pytest.CaptureFixture[str]) -> None:
    assert soak.main(["--for", "1s", "--first", "3", "--trial", "chaos"]) == 0
    assert re.search(r"\d+ seeds in \d+ s .*, failed: none", capsys.readouterr().out)


def test_every_kind_of_trial_has_its_share() -> None:
    assert SHARES.keys() == TRIALS.keys()
    assert sum(SHARES.values()) == 1000
