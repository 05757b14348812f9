"""Where `tunsec doctor` looks."""

import argparse
from pathlib import Path

import pytest

from tunsec.cli import doctor
from tunsec.cli.doctor import options
from tunsec.cli.doctor.options import Options, read_options
from tunsec.daemon.settings import parse_settings


def given(*words: str) -> argparse.Namespace:
    """A command line."""
    parser = argparse.ArgumentParser(prog="tunsec")
    doctor.add_parser(parser.add_subparsers(required=True))
    return parser.parse_args(["doctor", *words])


def read(unit: Path, *words: str) -> Options:
    """Options of a command line beside a unit's."""
    return read_options(given(*words), unit)


def test_defaults_are_tunsecds(tmp_path: Path) -> None:
    found = read(tmp_path / "none")
    daemons = parse_settings([], hostname=found.host, environment={})
    for name in ("policy", "identity", "directory", "charon", "run", "state"):
        assert getattr(found, name) == getattr(daemons, name), name
    assert (found.charon_wanted, found.trouble) == (False, "")
    assert Path("/etc/default/tunsecd") == options.UNIT_OPTIONS


def test_what_is_not_given_is_the_units(tmp_path: Path) -> None:
    unit = tmp_path / "tunsecd"
    unit.write_text(
        "# options of tunsecd\nOTHER=--host=no\n"
        "TUNSECD_OPTIONS=\"--host db1 --directory 'file:///srv/a b' --log-level debug --run /r\"\n"
    )
    found = read(unit, "--run", "/run/mine", "--policy", "p.yaml")
    assert (found.host, found.directory) == ("db1", "file:///srv/a b")
    assert (found.run, found.policy) == (Path("/run/mine"), Path("p.yaml"))


def test_a_charon_of_the_unit_is_not_looked_at_for_that_alone(tmp_path: Path) -> None:
    unit = tmp_path / "tunsecd"
    unit.write_text("TUNSECD_OPTIONS=--charon=unix:///run/c\n")
    assert read(unit).charon == "unix:///run/c"
    assert not read(unit).charon_wanted
    assert read(unit, "--charon", "unix:///run/d").charon_wanted


@pytest.mark.parametrize("text", ['TUNSECD_OPTIONS="--host', "TUNSECD_OPTIONS=--host"])
def test_options_that_cannot_be_understood_are_told(text: str, tmp_path: Path) -> None:
    unit = tmp_path / "tunsecd"
    unit.write_text(text)
    found = read(unit)
    assert found.trouble.startswith(f"{unit}: ")
    assert found.policy == options.POLICY
