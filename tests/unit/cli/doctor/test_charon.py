"""The checks of charon, against a VICI server that says what each test wants."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.adapters.vici_server import VERSION, Server
from tunsec.adapters.strongswan_files import CharonProcess
from tunsec.cli.doctor.charon import (
    NEEDED_PLUGINS,
    check_acquire,
    check_algorithms,
    check_charon,
    check_files,
    check_network,
    check_plugins,
)
from tunsec.cli.doctor.finding import Finding, Verdict
from tunsec.cli.doctor.user import User
from tunsec.model.clock import WallTime
from tunsec.model.ike_sa import Algorithms, CharonStats

SELF = User("me", os.geteuid(), os.getegid(), ())
NOBODY = User("nobody", 65534, 65534, ())
PLUGINS = ("openssl", "socket-default", *NEEDED_PLUGINS)
ALGORITHMS: dict[str, Any] = {
    "aead": {"AES_GCM_16": "openssl"},
    "prf": {"PRF_HMAC_SHA2_256": "openssl"},
    "ke": {"CURVE_25519": "openssl", "ECP_256": "openssl"},
}


def stats(*plugins: str, workers: int = 32) -> dict[str, Any]:
    """An answer of charon's."""
    return {
        "workers": {"total": str(workers), "idle": "28"},
        "queues": {"critical": "0", "high": "0", "medium": "0", "low": "0"},
        "ikesas": {"total": "0", "half-open": "0"},
        "plugins": list(plugins),
    }


def loaded(*plugins: str) -> CharonStats:
    """The same, decoded."""
    return CharonStats(32, 28, 0, 0, 0, plugins)


def by_check(findings: Iterator[Finding]) -> dict[str, list[Finding]]:
    """Findings by the name of their check."""
    found: dict[str, list[Finding]] = {}
    for finding in findings:
        found.setdefault(finding.check, []).append(finding)
    return found


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path / "charon.vici")

    def connections(_: dict[str, Any]) -> dict[str, Any]:
        for name in ("tunsec-db2", "office", "home"):
            body: dict[str, Any] = {name: {"local_addrs": [], "remote_addrs": [], "children": {}}}
            made.tell("list-conn", body)
        return {}

    made.commands |= {
        "get-algorithms": lambda _: ALGORITHMS,
        "stats": lambda _: stats(*PLUGINS),
        "list-conns": connections,
    }
    yield made
    made.close()


@pytest.fixture
def url(server: Server) -> str:
    return f"unix://{server.path}"


def test_a_charon_that_answers(url: str) -> None:
    found = by_check(check_charon(url, SELF))
    assert found["version"][0].found == "charon 6.0.1"
    assert found["algorithms"][0].found == "x25519, ecp256, no ML-KEM"
    assert found["plugins"][0].found == f"{len(PLUGINS)} loaded"
    assert found["threads"][0].found == "32, 28 idle"
    assert found["connections"][0].found == "1 of tunsec, 2 of others"
    assert found["network"][0].verdict is Verdict.OK


def test_no_charon(tmp_path: Path) -> None:
    (finding,) = check_charon(f"unix://{tmp_path}/none", SELF)
    assert (finding.verdict, finding.check) == (Verdict.PROBLEM, "socket")
    assert "No such file or directory" in finding.found
    assert "--charon" in finding.remedy
    (finding,) = check_charon("tcp://localhost", SELF)
    assert finding.verdict is Verdict.PROBLEM


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_a_socket_that_is_closed_to_tunsecds_user(server: Server, url: str) -> None:
    for folder in server.path.parents:
        if folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o011)
    server.path.chmod(0o700)
    (finding,) = check_charon(url, NOBODY)
    assert finding.verdict is Verdict.PROBLEM
    assert finding.found.endswith("Permission denied, asked as nobody")
    assert finding.remedy.startswith("charon.group = tunsec")
    assert os.geteuid() == 0
    server.path.chmod(0o777)
    assert len(list(check_charon(url, NOBODY))) > 1


def test_an_old_charon_is_told_and_not_asked_more(server: Server, url: str) -> None:
    server.commands["version"] = lambda _: {**VERSION, "version": "5.9.8"}
    (finding,) = check_charon(url, SELF)
    assert (finding.verdict, finding.check) == (Verdict.PROBLEM, "version")
    assert "6.0 or newer" in finding.found


def test_an_answer_that_cannot_be_understood(server: Server, url: str) -> None:
    server.commands["stats"] = lambda _: {"workers": {}}
    *_, finding = check_charon(url, SELF)
    assert (finding.verdict, finding.check) == (Verdict.PROBLEM, "answers")


def test_too_few_threads(server: Server, url: str) -> None:
    server.commands["stats"] = lambda _: stats(*PLUGINS, workers=16)
    (finding,) = by_check(check_charon(url, SELF))["settings"][:1]
    assert finding.verdict is Verdict.WARNING
    assert finding.found.startswith("threads is 16")


def test_algorithms_that_leave_nothing_to_propose() -> None:
    aeads, prfs = frozenset({"AES_GCM_16"}), frozenset({"PRF_HMAC_SHA2_256"})
    exchanges = frozenset({"CURVE_25519"})
    quantum = exchanges | {"ML_KEM_768"}
    assert check_algorithms(Algorithms(aeads, prfs, quantum)).found == "x25519, then mlkem768"
    for lacking in (
        Algorithms(frozenset(), prfs, exchanges),
        Algorithms(aeads, frozenset(), exchanges),
        Algorithms(aeads, prfs, frozenset({"MODP_2048"})),
    ):
        finding = check_algorithms(lacking)
        assert finding.verdict is Verdict.PROBLEM
        assert "charon has no" in finding.found


@pytest.mark.parametrize("plugin", ["kernel-libipsec", "bypass-lan", "farp"])
def test_a_plugin_that_does_harm(plugin: str) -> None:
    (finding,) = check_plugins(loaded(*PLUGINS, plugin))
    assert finding.verdict is Verdict.PROBLEM
    assert finding.found.startswith(f"{plugin} is loaded: it ")


@pytest.mark.parametrize("plugin", [*NEEDED_PLUGINS, "socket-default"])
def test_a_plugin_that_is_missing(plugin: str) -> None:
    (finding,) = check_plugins(loaded(*(name for name in PLUGINS if name != plugin)))
    assert finding.verdict is Verdict.PROBLEM
    assert plugin in finding.found
    (finding,) = check_plugins(loaded(*PLUGINS, "socket-dynamic"))
    assert finding.verdict is Verdict.OK


@pytest.mark.parametrize(
    ("text", "verdict"),
    [("10", "ok"), ("4", "ok"), ("3", "warning"), ("30", "warning"), ("165", "warning")],
)
def test_how_long_an_acquire_lives(text: str, verdict: str, tmp_path: Path) -> None:
    setting = tmp_path / "xfrm_acq_expires"
    setting.write_text(f"{text}\n")
    finding = check_acquire(setting)
    assert finding.verdict == verdict
    assert text in finding.found
    if verdict == "warning":
        assert "systemd/charon-tunsec.conf" in finding.remedy


def test_a_kernel_without_the_setting(tmp_path: Path) -> None:
    assert check_acquire(tmp_path / "none").verdict is Verdict.WARNING


def test_a_charon_of_another_namespace() -> None:
    assert check_network(CharonProcess(None)).verdict is Verdict.OK
    assert check_network(CharonProcess(None, same_network=False)).verdict is Verdict.PROBLEM


def test_files(tmp_path: Path) -> None:
    drop_in = (Path(__file__).parents[4] / "systemd/charon-tunsec.conf").read_text()
    conf = tmp_path / "strongswan.conf"
    conf.write_text(drop_in)
    written = conf.stat().st_mtime
    process = CharonProcess(Path("/strongswan.conf"), root=tmp_path)

    def verdicts(process: CharonProcess) -> list[tuple[str, str]]:
        return [(one.check, one.verdict) for one in check_files(process, "charon")]

    assert verdicts(process) == [("files", "ok"), ("settings", "ok")]
    later = CharonProcess(process.conf, root=tmp_path, started_at=WallTime(written - 0.5))
    assert verdicts(later) == [("files", "ok"), ("settings", "ok")]
    earlier = CharonProcess(process.conf, root=tmp_path, started_at=WallTime(written - 2))
    assert verdicts(earlier) == [("files", "warning"), ("settings", "ok")]
    conf.write_text("charon {")
    assert verdicts(process) == [("files", "problem")]
    conf.unlink()
    assert verdicts(process) == [("files", "warning")]
