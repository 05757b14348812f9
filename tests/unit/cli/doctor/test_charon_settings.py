"""What is asked of charon's files is what systemd/charon-tunsec.conf says."""

from dataclasses import replace
from pathlib import Path

import pytest

from tunsec.cli.doctor.charon_settings import (
    ACQUIRE,
    RETRANSMISSION,
    SETTINGS,
    THREADS,
    Bound,
    Setting,
    gives_up_after,
    judge,
    judge_retransmission,
    judge_settings,
)
from tunsec.cli.doctor.finding import Verdict
from tunsec.model.ike import GIVES_UP_AFTER
from tunsec.wire.strongswan_conf import Settings, parse_settings

DROP_IN = Path(__file__).parents[4] / "systemd" / "charon-tunsec.conf"
JUDGED = (*SETTINGS, THREADS, ACQUIRE)
OTHER: dict[Bound, str] = {
    Bound.AT_MOST: "100000",
    Bound.AT_LEAST: "1",
    Bound.AT_LEAST_OR_OFF: "1",
}


def settings(text: str) -> Settings:
    """Of one file without includes."""
    return parse_settings(text, "conf", lambda _pattern, _name: ())


@pytest.fixture
def drop_in() -> Settings:
    return settings(DROP_IN.read_text())


def values_of(found: Settings) -> dict[str, str | None]:
    """What a peer's patience hangs on."""
    return {key: found.value(f"charon.{key}") for key in RETRANSMISSION}


def worse(setting: Setting) -> str:
    """A value that is not good enough."""
    if setting.bound is Bound.EXACTLY:
        return "no" if setting.wanted == "yes" else "yes"
    return OTHER[setting.bound]


def test_the_drop_in_is_good_and_all_of_it_is_judged(drop_in: Settings) -> None:
    assert [finding.verdict for finding in judge_settings(drop_in, "charon")] == [Verdict.OK]
    judged = {f"charon.{setting.key}" for setting in JUDGED}
    judged |= {f"charon.{key}" for key in RETRANSMISSION}
    assert drop_in.values.keys() <= judged
    for setting in (THREADS, ACQUIRE):
        assert judge(setting, drop_in.value(f"charon.{setting.key}")) is None


def test_what_is_advised_is_what_the_drop_in_has(drop_in: Settings) -> None:
    for setting in JUDGED:
        has = drop_in.value(f"charon.{setting.key}")
        assert has == setting.wanted or (has is None and setting.default == setting.wanted)


def test_the_daemon_counts_on_the_drop_ins_patience(drop_in: Settings) -> None:
    assert gives_up_after(values_of(drop_in)) == pytest.approx(3.552)
    assert gives_up_after(values_of(drop_in)) <= GIVES_UP_AFTER
    assert gives_up_after({}) == pytest.approx(165.06, abs=0.01)  # strongswan.conf(5)


def test_charons_defaults_are_told_one_by_one() -> None:
    found = judge_settings(settings(""), "charon")
    assert {finding.verdict for finding in found} == {Verdict.WARNING}
    assert len(found) == 1 + sum(setting.default != setting.wanted for setting in SETTINGS)
    assert found[0].found.startswith("a peer that does not answer is given up after 165 s")
    table = next(finding for finding in found if "ikesa_table_size" in finding.found)
    assert table.found.startswith("ikesa_table_size is 1 (charon's default): ")
    assert "charon.ikesa_table_size = 1024" in table.remedy


@pytest.mark.parametrize("setting", JUDGED, ids=lambda setting: setting.key)
def test_each_setting_can_be_found_wrong(setting: Setting) -> None:
    finding = judge(setting, worse(setting))
    assert finding is not None
    assert finding.verdict is setting.otherwise
    assert f"is {worse(setting)} (set so): {setting.why}" in finding.found
    assert judge(setting, setting.wanted) is None


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.key)
def test_each_setting_is_looked_up_in_the_files(setting: Setting, drop_in: Settings) -> None:
    changed = replace(drop_in, values={**drop_in.values, f"charon.{setting.key}": worse(setting)})
    (finding,) = judge_settings(changed, "charon")
    assert setting.why in finding.found


def test_better_values_are_good_too() -> None:
    by_key = {setting.key: setting for setting in SETTINGS}
    assert judge(by_key["half_open_timeout"], "5") is None
    assert judge(by_key["ikesa_table_size"], "0x1000") is None
    assert judge(by_key["cookie_threshold"], "0") is None  # off
    assert judge(by_key["make_before_break"], "Enabled") is None


def test_what_charon_cannot_read_is_its_default() -> None:
    by_key = {setting.key: setting for setting in SETTINGS}
    finding = judge(by_key["half_open_timeout"], "10s")
    assert finding is not None
    assert "is 30 (charon's default, as '10s' is no value for it)" in finding.found
    assert judge(by_key["make_before_break"], "maybe") is None
    assert gives_up_after({"retransmit_tries": "3.0"}) == gives_up_after({})


def test_patience_has_a_ceiling_and_no_end() -> None:
    limited = {"retransmit_tries": "5", "retransmit_timeout": "0.5", "retransmit_limit": "1"}
    assert gives_up_after(limited) == pytest.approx(0.5 + 0.9 + 4 * 1.0)
    assert gives_up_after({"retransmit_tries": "1000000", "retransmit_base": "2.0"}) > 1e6
    finding = judge_retransmission({"retransmit_timeout": "2.0"})
    assert finding is not None
    assert "dead_after" in finding.remedy


def test_without_protection_no_threshold_counts() -> None:
    text = DROP_IN.read_text() + "charon { dos_protection = no\n block_threshold = 1\n }"
    assert [finding.verdict for finding in judge_settings(settings(text), "charon")] == ["ok"]


def test_charon_systemd_has_its_own_section(drop_in: Settings) -> None:
    both = settings(DROP_IN.read_text() + "charon-systemd { install_routes = yes }")
    assert [one.verdict for one in judge_settings(both, "charon")] == [Verdict.OK]
    (finding,) = judge_settings(both, "charon-systemd")
    assert finding.found.startswith("install_routes is yes")
    below = settings(DROP_IN.read_text().replace("charon {", "libstrongswan {", 1))
    assert [one.verdict for one in judge_settings(below, "charon")] == [Verdict.OK]
