"""The `tunsec` command against a daemon in memory behind a real socket."""

import json
import os
import pty
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.daemon.control_fake import OVERLAY, Served, nobody, served
from tunsec import __version__
from tunsec.cli import client
from tunsec.cli.__main__ import main
from tunsec.cli.exits import Exit
from tunsec.cli.render import aligned, size, span
from tunsec.wire.control import ChildSaStatus, IkeStatus

ROOT = Path(__file__).parents[3]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Served]:
    with served(tmp_path / "control.sock") as running:
        yield running


@pytest.fixture
def where(server: Served) -> tuple[str, ...]:
    return ("--socket", str(server.path))


def test_status_in_a_pipe_is_plain_and_aligned(
    where: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", *where]) == Exit.NO
    head, columns, red, backbone, *notes = capsys.readouterr().out.splitlines()
    assert head == (
        "db1: 1 of 2 protected, policy /etc/tunsec/policy.yaml (0123456789ab) for 3s, "
        "tunsecd 0.1.0 up 1d 1h"
    )
    assert columns.split()[:5] == ["FLOW", "KIND", "PEER", "TENANT", "MODE"]
    assert " ".join(red.split()) == (
        "tenant-overlay vxlan db2 red esp/directory INSTALLED 0000c001 0000c002 "
        "chacha20-poly1305 2m 5s 57m 55s 3 3.0 MiB 512 B 0"
    )
    assert columns.index("STATE") == red.index("INSTALLED") == backbone.index("BLOCKED")
    others = "2 arriving in clear, 3 sent by local users, 4 from one tenant to another"
    assert notes == [
        "backbone db3: db3 has published no offer",
        f"guard: tenant-overlay: dropped 1 leaving in clear, {others}",
        "directory: file:/srv/tunsec is away: Permission denied",
        "directory: refused records: 1 stale",
        "drift put right: 1 SAs, 2 SPs, guard table 1 times",
        "warning: the clock went back",
    ]


def test_status_is_ok_when_everything_is_protected(
    server: Served, where: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    server.show(replace(server.daemon.current, flows=(OVERLAY,)))
    assert main(["status", "--json", *where]) == Exit.OK
    found = json.loads(capsys.readouterr().out)
    assert found["flows"][0]["spi_in"] == "0000c001"
    assert found["api"] == 1


def test_status_tells_of_ike_sas_in_charons_words(
    server: Served, where: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    ours = ChildSaStatus(True, "ACTIVE", "0000c00a", "0000c00b", 4.0)
    theirs = ChildSaStatus(False, "INSTALLED", "0000c00c", "0000c00d", 5.0)
    old = ChildSaStatus(True, "REKEYED", "0000c00e", "0000c00f", 3600.0)
    told = IkeStatus(
        "ESTABLISHED",
        initiator=False,
        authenticated=125.0,
        next_rekey=7200.0,
        algorithms=("AES_GCM_16", "CURVE_25519"),
        ppk=True,
        child_sas=(ours, theirs, old),
        error="no trusted ED25519 public key found for 'db2'",
    )
    server.show(replace(server.daemon.current, flows=(replace(OVERLAY, keying="ike", ike=told),)))
    assert main(["status", *where]) == Exit.OK
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    row = lines[lines.index("") + 2]
    assert row.endswith(
        "ESTABLISHED db2 2m 5s 2h AES_GCM_16/CURVE_25519/PPK 0000c00b 0000c00a, "
        "0000c00d 0000c00c (peer's), 0000c00f 0000c00e (rekeyed) "
        "no trusted ED25519 public key found for 'db2'"
    )


def test_explain(where: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    packet = ("udp", "192.0.2.11:49152", "192.0.2.12:4789", "--vni", "0x29")
    assert main(["explain", *packet, *where]) == Exit.OK
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[:4] == [
        "out: udp 192.0.2.11:49152 > 192.0.2.12:4789 VNI 41",
        "protected: flow tenant-overlay/red: leaves to db2 in ESP, SPI 0000c002",
        "on the wire: 192.0.2.11 > 192.0.2.12: ESP(spi=0x0000c002)",
        "rule: tenant-overlay/red: vxlan, udp port 4789, VNI 41 (tenant red)",
    ]
    assert (
        "out 192.0.2.11/32 -> 192.0.2.12/32 udp dport 4789 protect 5453 0x81000000/0xff000000 "
        "0000c002 tenant-overlay/red db2 2s ago yes"
    ) in lines
    assert (
        "out 0000c002 tenant-overlay/red db2 ACTIVE yes chacha20-poly1305 2m 5s 7 512 B 7 "
        "1024 ESN 0 - 2h"
    ) in lines
    assert lines[-2:] == [
        "guard: drops what no SP protects: 3 so far (counter clear_out.tenant-overlay)",
        "note: the underlay is small",
    ]
    assert main(["explain", "--json", *packet, *where]) == Exit.OK
    assert json.loads(capsys.readouterr().out)["relations"][0]["sas"][0]["in_use"] is True


def test_explain_of_what_is_not_protected(
    where: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", "backbone", *where]) == Exit.NO
    assert capsys.readouterr().out.startswith("flow backbone\nblocked: 0 of 1\n")
    assert main(["explain", "nothing", *where]) == Exit.USAGE
    assert "there is no flow 'nothing' on this host" in capsys.readouterr().err
    assert main(["explain", "udp", "192.0.2.11", *where]) == Exit.USAGE
    assert capsys.readouterr().err.count("\n") == 1


def test_plan_apply_reload_release(
    server: Served,
    where: tuple[str, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text("good")
    bad.write_text("bad")
    assert main(["plan", *where]) == Exit.OK
    assert capsys.readouterr().out == "nothing to do in the kernel\n"
    assert main(["plan", str(good), *where]) == Exit.OK
    assert capsys.readouterr().out == "+ backbone\n   1. add SP one\n"
    assert main(["apply", str(good), *where]) == Exit.OK
    assert capsys.readouterr().out == f"+ backbone\n{good} (fedcba987654) is in force\n"
    assert main(["apply", str(bad), *where]) == Exit.NO
    assert capsys.readouterr().err.splitlines() == [
        "p.yaml:1: flows: 'bad' is bad (write a good one)",
        "p.yaml:1: flows: 'worse' is bad (write a good one)",
        "tunsec: the policy is not taken",
    ]
    assert server.daemon.applied == ["good"]
    assert main(["reload", *where]) == Exit.AWAY
    assert main(["release", "backbone", "--yes", *where]) == Exit.REFUSED
    assert main(["release", "--yes", "--json", *where]) == Exit.OK
    assert json.loads(capsys.readouterr().out) == {"released": ["backbone", "tenant-overlay"]}


def test_errors_are_json_when_json_is_asked_for(
    where: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("bad")
    assert main(["apply", "--json", str(bad), *where]) == Exit.NO
    found = json.loads(capsys.readouterr().out)
    assert (found["kind"], len(found["problems"])) == ("policy", 2)
    assert main(["status", "--json", "--socket", "/nonexistent"]) == Exit.AWAY
    assert json.loads(capsys.readouterr().out)["kind"] == "away"


def test_a_policy_that_cannot_be_read_is_a_usage_error(
    where: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["apply", str(tmp_path / "none.yaml"), *where]) == Exit.USAGE
    assert "none.yaml: No such file or directory" in capsys.readouterr().err
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"caf\xe9")
    assert main(["apply", str(latin), *where]) == Exit.NO
    assert "byte 3 is no UTF-8" in capsys.readouterr().err


def test_without_a_daemon_there_is_one_line_and_a_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", "--run", str(tmp_path)]) == Exit.AWAY
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert "systemctl start tunsecd" in said.err
    assert str(tmp_path / "control.sock") in said.err


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_without_permission_there_is_one_line_and_a_remedy(server: Served) -> None:
    for folder in (server.path.parent, *server.path.parents):
        if folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o011)
    command = (sys.executable, "-m", "tunsec.cli", "status", "--socket", str(server.path))
    done = subprocess.run(
        (*nobody(), *command), cwd=ROOT, capture_output=True, text=True, check=False, timeout=30
    )
    assert done.returncode == Exit.DENIED
    assert done.stderr.count("\n") == 1
    assert "join the group tunsec" in done.stderr


def test_wait(server: Served, where: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["wait", "--flow", "tenant-overlay", *where]) == Exit.OK
    assert main(["wait", "--timeout", "0.1", *where]) == Exit.NO
    assert capsys.readouterr().err == "not protected: backbone db3: db3 has published no offer\n"
    assert main(["wait", "--flow", "nothing", "--timeout", "5", *where]) == Exit.USAGE


def test_wait_outlasts_a_daemon_that_is_not_there_yet(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with subprocess.Popen(
        (
            sys.executable,
            "-m",
            "tunsec.cli",
            "wait",
            "--flow",
            "tenant-overlay",
            "--timeout",
            "30",
            "--socket",
            str(path),
        ),
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    ) as waiting:
        assert waiting.stderr is not None
        assert "waiting: tunsecd is not running here" in waiting.stderr.readline()
        with served(path):
            assert waiting.wait(20) == Exit.OK
    assert main(["wait", "--timeout", "0", "--socket", str(path)]) == Exit.AWAY


def test_wait_does_not_outlast_its_timeout_for_a_daemon_that_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(client, "ROOM_TO_ANSWER", 0.1)
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(path))
        deaf.listen()
        assert main(["wait", "--timeout", "0.1", "--socket", str(path)]) == Exit.AWAY
    assert "does not answer: timed out" in capsys.readouterr().err


def test_watch_in_a_pipe_tells_each_change_once(server: Served, where: tuple[str, ...]) -> None:
    with subprocess.Popen(
        (sys.executable, "-m", "tunsec.cli", "watch", *where),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    ) as watching:
        assert watching.stdout is not None
        first = sorted(watching.stdout.readline()[9:] for _ in range(2))
        assert first == [
            "backbone db3: new -> BLOCKED db3 has published no offer\n",
            "tenant-overlay/red db2: new -> INSTALLED 0000c002\n",
        ]
        while server.listeners() == 0:
            time.sleep(0.01)
        server.show(replace(server.daemon.current, flows=(OVERLAY,)))
        assert watching.stdout.readline()[9:] == (
            "backbone db3: BLOCKED db3 has published no offer -> gone\n"
        )
        watching.terminate()


def test_a_terminal_gets_a_table(server: Served, where: tuple[str, ...]) -> None:
    control, terminal = pty.openpty()
    with subprocess.Popen(
        (sys.executable, "-m", "tunsec.cli", "status", *where),
        cwd=ROOT,
        stdout=terminal,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "200"},
    ) as showing:
        assert showing.wait(30) == Exit.NO
    os.close(terminal)
    shown = os.read(control, 65536).decode()
    os.close(control)
    assert "\x1b[32mINSTALLED" in shown
    assert "\x1b[31mBLOCKED" in shown


def test_the_command_imports_little_and_starts_fast(server: Served, where: tuple[str, ...]) -> None:
    """0.2 s on an idle host is some ten bare starts of Python; a ratio holds on a busy one too."""
    command = ("-m", "tunsec.cli", "status", *where)
    imported = subprocess.run(
        (sys.executable, "-X", "importtime", *command),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    ).stderr
    for heavy in ("pydantic", "cryptography", "asyncio", "rich", "yaml", "h11", "tunsec.daemon"):
        assert f" {heavy}\n" not in imported

    def once(*words: str) -> float:
        """Seconds of CPU: what else the machine does has no part in it."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            (sys.executable, *words),
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            check=False,
            timeout=30,
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    pairs = [(once(*command), once("-c", "pass")) for _ in range(7)]
    assert min(ours for ours, _ in pairs) < 12 * min(bare for _, bare in pairs)


def test_version_and_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version"]) == Exit.OK
    assert main(["version", "--json"]) == Exit.OK
    assert capsys.readouterr().out == f'tunsec {__version__}\n{{"version":"{__version__}"}}\n'
    for usage in (
        [],
        ["nothing"],
        ["wait", "--timeout", "-1"],
        ["wait", "--timeout", "soon"],
        ["explain"],
        ["explain", "x", "--vni", "y"],
    ):
        with pytest.raises(SystemExit) as caught:
            main(usage)
        assert caught.value.code == Exit.USAGE
    assert "invalid _" not in capsys.readouterr().err, "each is told what it should be"


def test_a_full_disk_behind_the_output_is_told_in_one_line(where: tuple[str, ...]) -> None:
    for words in (["status", *where], ["version"]):
        with Path("/dev/full").open("w") as full:
            done = subprocess.run(
                (sys.executable, "-m", "tunsec.cli", *words),
                cwd=ROOT,
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
                timeout=30,
            )
        assert done.returncode == Exit.USAGE
        assert done.stderr == ("tunsec: the output cannot be written: No space left on device\n")


@pytest.mark.parametrize("command", ["check", "ca", "doctor", "status", "explain", "release"])
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert f"usage: tunsec {command}" in capsys.readouterr().out


def test_spans_and_sizes_for_people() -> None:
    assert [span(seconds) for seconds in (None, 0.4, 59, 60, 3725, 86400, 90061)] == [
        *("-", "0s", "59s", "1m", "1h 2m", "1d", "1d 1h")
    ]
    assert [size(octets) for octets in (0, 1023, 1536, 1 << 30)] == [
        *("0 B", "1023 B", "1.5 KiB", "1.0 GiB")
    ]
    assert aligned(("A", "B"), [("long", "x")]) == ["A     B", "long  x"]
