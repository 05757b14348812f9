"""The unit files, as the service manager's own tools see them."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

UNITS = Path(__file__).parents[2] / "systemd"
SERVICES = sorted(path.name for path in UNITS.glob("*.service"))

THRESHOLDS = {"tunsecd.service": 25, "tunsec-guard.service": 15, "tunsec-wait.service": 10}
"""Tenths of systemd-analyze's exposure level that a unit may have at most."""

needs_analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)


def run(*argv: str | Path) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, f"{argv}: exit {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


@needs_analyze
def test_the_units_are_free_of_errors_and_warnings(tmp_path: Path) -> None:
    for path in (*UNITS.glob("*.service"), *UNITS.glob("*.target")):
        # The commands need not be installed where this runs.
        (tmp_path / path.name).write_text(
            re.sub(r"(?<==)nft|/usr/bin/tunsecd?", "/bin/true", path.read_text())
        )
    assert run("systemd-analyze", "verify", "--man=no", *sorted(tmp_path.iterdir())) == ""


@needs_analyze
@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_hardened(name: str) -> None:
    run(
        *("systemd-analyze", "security", "--offline=true", "--no-pager"),
        *(f"--threshold={THRESHOLDS[name]}", UNITS / name),
    )


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_never_gets_another_capability_than_net_admin(name: str) -> None:
    text = (UNITS / name).read_text()
    granted = re.findall(r"^(?:Ambient|CapabilityBounding)\w*=(.*)$", text, re.MULTILINE)
    assert set(granted) <= {"CAP_NET_ADMIN", ""}
    assert "CapabilityBoundingSet=" in text
    assert re.search(r"^User=tunsec$", text, re.MULTILINE)


@pytest.mark.skipif(shutil.which("systemd-sysusers") is None, reason="no systemd-sysusers")
def test_user_and_folders_come_out_as_written(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    run("systemd-sysusers", f"--root={tmp_path}", UNITS / "tunsec.sysusers.conf")
    assert re.search(r"^tunsec:x:\d+:", (tmp_path / "etc/passwd").read_text(), re.MULTILINE)
    assert re.search(r"^tunsec:x:\d+:", (tmp_path / "etc/group").read_text(), re.MULTILINE)
    if shutil.which("systemd-tmpfiles") is None:
        return
    identity = tmp_path / "etc/tunsec/identity"
    identity.mkdir(parents=True)
    (identity / "key.pem").touch(mode=0o600)
    conf = tmp_path / "tunsec.conf"
    text = (UNITS / "tunsec.tmpfiles.conf").read_text()
    conf.write_text(re.sub(r" (root|tunsec) +tunsec$", " - -", text, flags=re.MULTILINE))
    run("systemd-tmpfiles", f"--root={tmp_path}", "--create", conf)
    assert oct(identity.stat().st_mode) == "0o40700"
    assert oct(identity.parent.stat().st_mode) == "0o40750"
    assert oct((identity / "key.pem").stat().st_mode) == "0o100600"
