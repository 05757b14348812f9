"""`tunsec check`: what it prints and its exit status."""

import argparse
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tunsec.cli.check import add_parser

POLICY = """\
version: 1
hosts:
  db1: {address: [192.0.2.11, 2001:db8::11]}
  db2: {address: [192.0.2.12, 2001:db8::12]}
flows:
  overlay: {kind: vxlan, between: [db1, db2]}
"""


def tunsec(*argv: str) -> int:
    """Run the command in this process; its exit status."""
    parser = argparse.ArgumentParser(prog="tunsec")
    add_parser(parser.add_subparsers(required=True))
    args = parser.parse_args(argv)
    status: int = args.run(args)
    return status


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    file = tmp_path / "policy.yaml"
    file.write_text(POLICY)
    return file


def test_a_good_policy(policy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tunsec("check", str(policy)) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    head, columns, row = shown.out.splitlines()
    assert head.startswith(f"{policy}: good, 2 hosts, 1 flow, digest ")
    assert columns.split() == ["flow", "kind", "hosts", "mode", "keying", "aead", "rekey"]
    assert row.split() == ["overlay", "vxlan", "4789", "2", "esp", "directory", "auto", "1h"]


def test_what_a_host_would_hold(policy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tunsec("check", str(policy), "--host", "db2") == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "  flow     peer  local         remote        protected",
        "  overlay  db1   192.0.2.12    192.0.2.11    udp dport 4789",
        "  overlay  db1   2001:db8::12  2001:db8::11  udp dport 4789",
        "db2: 2 pairs of addresses, 4 block SPs under them, until 'tunsec release'",
    ]


def test_a_bad_policy(policy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy.write_text(POLICY.replace("vxlan", "vxlam").replace("db2]", "db3]"))
    assert tunsec("check", str(policy)) == 1
    assert capsys.readouterr().out.splitlines() == [
        f"{policy}:6: flows.overlay.kind: 'vxlam' is no kind of flow (did you mean 'vxlan'?)",
        "1 problem",
    ]


def test_an_unknown_host(policy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tunsec("check", str(policy), "--host", "db9") == 1
    assert capsys.readouterr().out.startswith("host db9: the policy does not name it (")


def test_json_of_a_good_policy(policy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tunsec("check", str(policy), "--json", "--host", "db1") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["good"] is True
    assert shown["flows"]["overlay"]["rekey"]["after_seconds"] == 3600
    assert [child["remote"] for child in shown["children"]] == ["192.0.2.12", "2001:db8::12"]
    assert len(shown["blocks"]) == 4
    assert shown["flows"]["overlay"]["strangers"] == "blocked"


def test_json_of_a_bad_policy(policy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy.write_text(POLICY.replace("vxlan", "tcp, port: 7, mode: ktls"))
    assert tunsec("check", str(policy), "--json") == 1
    assert json.loads(capsys.readouterr().out) == {
        "file": str(policy),
        "good": False,
        "problems": [
            {
                "where": f"{policy}:6: flows.overlay.mode",
                "what": "'mode: ktls' is not in this release",
                "remedy": "use 'mode: esp'",
            }
        ],
    }


def test_a_file_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "nothing.yaml"
    assert tunsec("check", str(file)) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == f"tunsec check: {file}: No such file or directory\n"


def test_a_file_that_is_no_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "policy.yaml"
    file.write_bytes(b"version: 1\nhosts: \xff\n")
    assert tunsec("check", str(file)) == 1
    assert capsys.readouterr().out.startswith(
        f"{file}:2: (whole file): the file is not valid UTF-8"
    )


def test_a_file_without_end_is_not_read_to_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    assert tunsec("check", "/dev/zero") == 1
    assert "the file has more than 1048576 bytes" in capsys.readouterr().out


def test_standard_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(POLICY.encode())))
    assert tunsec("check", "-") == 0
    assert capsys.readouterr().out.startswith("-: good")


def test_wrong_usage() -> None:
    with pytest.raises(SystemExit) as caught:
        tunsec("check")
    assert caught.value.code == 2


def test_adding_the_command_imports_nothing_slow() -> None:
    code = (
        "import sys, tunsec.cli.check; "
        "print(sorted({'pydantic', 'yaml', 'rich'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"
