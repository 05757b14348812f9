"""The command line of tunsecd."""

from pathlib import Path

import pytest

from tunsec.adapters.charon import parse_url
from tunsec.daemon.settings import parse_settings


def test_a_host_under_systemd_needs_no_options() -> None:
    settings = parse_settings([], hostname="db1", environment={})
    assert settings.host == "db1"
    assert settings.policy == Path("/etc/tunsec/policy.yaml")
    assert settings.identity == Path("/etc/tunsec/identity")
    assert settings.directory == "file:///srv/tunsec"
    assert (settings.run, settings.state) == (Path("/run/tunsec"), Path("/var/lib/tunsec"))


def test_credentials_of_systemd_are_the_identity() -> None:
    environment = {"CREDENTIALS_DIRECTORY": "/run/credentials/tunsecd.service"}
    settings = parse_settings([], hostname="db1", environment=environment)
    assert settings.identity == Path("/run/credentials/tunsecd.service")
    told = parse_settings(["--identity", "/x"], hostname="db1", environment=environment)
    assert told.identity == Path("/x")


def test_charon_is_where_it_always_is_or_where_it_is_said_to_be() -> None:
    settings = parse_settings([], hostname="db1", environment={})
    assert parse_url(settings.charon) == Path("/run/charon.vici")
    told = parse_settings(["--charon", "unix:///run/x/vici"], hostname="db1", environment={})
    assert parse_url(told.charon) == Path("/run/x/vici")


def test_the_kernel_is_read_every_five_minutes_or_as_often_as_told() -> None:
    assert parse_settings([], hostname="db1", environment={}).look_every == 300.0
    told = parse_settings(["--look-every", "2h"], hostname="db1", environment={})
    assert told.look_every == 7200.0


@pytest.mark.parametrize("span", ["10", "0s", "often"])
def test_a_span_that_makes_no_sense_is_a_usage_error(
    span: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse_settings(["--look-every", span], hostname="db1", environment={})
    assert "--look-every" in capsys.readouterr().err


def test_an_unknown_option_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse_settings(["--fast"], hostname="db1", environment={})
    assert stopped.value.code == 2
    assert "--fast" in capsys.readouterr().err
