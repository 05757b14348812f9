"""`tunsec ca` and its folders: nothing overwritten, nothing readable, nothing half done."""

import argparse
import ipaddress
import json
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from tunsec.adapters import ca_files
from tunsec.adapters.identity import load_identity
from tunsec.adapters.key_files import load_certificates, load_key
from tunsec.cli import ca as command
from tunsec.keying.ca import KeyType, alternative_names, same_key
from tunsec.keying.chain import Trust, certificate_der
from tunsec.model.clock import WallTime
from tunsec.model.errors import PolicyError
from tunsec.model.names import HostName

NOW = WallTime(1_800_000_000.0)
DAY = 86_400.0
DB1 = HostName("db1")
ADDRESSES = (ipaddress.ip_address("192.0.2.1"), ipaddress.ip_address("2001:db8::1"))


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def authority(folder: Path, *, kind: KeyType = KeyType.ED25519, days: float = 100) -> Path:
    ca_files.init(folder / "ca", name="lab", days=days, kind=kind, wall_now=NOW)
    return folder / "ca"


def issue(folder: Path, host: str = "db1", *, ca: Path, days: float = 30) -> Path:
    ca_files.issue_to(
        folder / host,
        HostName(host),
        authority=ca_files.load(ca, wall_now=NOW),
        addresses=ADDRESSES,
        days=days,
        kind=KeyType.ED25519,
        wall_now=NOW,
    )
    return folder / host


def snapshot(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def problems(error: pytest.ExceptionInfo[PolicyError]) -> str:
    for problem in error.value.problems:
        assert problem.where
        assert problem.remedy
    return str(error.value)


@pytest.mark.parametrize("kind", list(KeyType))
def test_modes_names_and_chain(tmp_path: Path, kind: KeyType) -> None:
    umask = os.umask(0o000)
    try:
        ca = authority(tmp_path, kind=kind)
        host = issue(tmp_path, ca=ca)
    finally:
        os.umask(umask)
    assert [mode(path) for path in (ca, host)] == [0o700, 0o700]
    assert [mode(ca / "ca-key.pem"), mode(host / "key.pem")] == [0o600, 0o600]
    (leaf,) = load_certificates(host / "cert.pem")
    assert alternative_names(leaf) == (("db1",), ADDRESSES)
    assert same_key(leaf, load_key(host / "key.pem"))
    speaker = Trust(load_certificates(host / "ca.pem")).judge(
        (certificate_der(leaf),), path="offers/db1", wall_now=NOW
    )
    assert speaker.names == {"db1"}
    assert speaker.valid_until == NOW + 30 * DAY
    (copy,) = (ca / "issued").iterdir()
    assert load_certificates(copy) == (leaf,)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command")
@pytest.mark.parametrize("kind", list(KeyType))
def test_openssl_agrees(tmp_path: Path, kind: KeyType) -> None:
    ca = tmp_path / "ca"
    now = WallTime(1_780_000_000.0)
    ca_files.init(ca, name="lab", days=100, kind=kind, wall_now=now)
    ca_files.issue_to(
        tmp_path / "db1",
        DB1,
        authority=ca_files.load(ca, wall_now=now),
        addresses=ADDRESSES,
        days=30,
        kind=kind,
        wall_now=now,
    )
    for purpose in ("sslserver", "sslclient"):
        verified = subprocess.run(
            (
                f"openssl verify -x509_strict -attime {int(now)} -purpose {purpose} "
                "-verify_hostname db1 -CAfile ca/ca.pem db1/cert.pem"
            ).split(),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert verified.returncode == 0, verified.stderr


def test_a_leaf_does_not_outlive_its_ca(tmp_path: Path) -> None:
    host = issue(tmp_path, ca=authority(tmp_path, days=10), days=365)
    loaded = load_identity(host, host=DB1, name="db1", wall_now=NOW)
    assert loaded.valid_until == NOW + 10 * DAY


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    ca = authority(tmp_path)
    issue(tmp_path, ca=ca)
    before = snapshot(tmp_path)
    with pytest.raises(PolicyError, match="is not empty"):
        authority(tmp_path)
    with pytest.raises(PolicyError, match="is not empty"):
        issue(tmp_path, ca=ca)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(PolicyError, match="is no folder"):
        issue(tmp_path, "file", ca=ca)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PolicyError, match="is no folder"):
        issue(tmp_path, "link", ca=ca)
    assert snapshot(tmp_path) == {**before, "file": b"mine"}


def test_an_empty_private_folder_may_be_there_and_an_open_one_not(tmp_path: Path) -> None:
    ca = authority(tmp_path)
    (tmp_path / "db1").mkdir(mode=0o700)
    assert load_key(issue(tmp_path, ca=ca) / "key.pem")
    (tmp_path / "db2").mkdir(mode=0o755)
    with pytest.raises(PolicyError, match="others may use this folder"):
        issue(tmp_path, "db2", ca=ca)
    with pytest.raises(PolicyError, match="is no folder"):
        issue(tmp_path / "nowhere", ca=ca)


def test_a_refused_issue_leaves_nothing(tmp_path: Path) -> None:
    ca = authority(tmp_path)
    before = snapshot(tmp_path)
    for name in ("../db1", "", "-x", "a" * 254, "a/b"):
        with pytest.raises(PolicyError, match="cannot be a host's name"):
            ca_files.issue_to(
                tmp_path / "out",
                HostName(name),
                authority=ca_files.load(ca, wall_now=NOW),
                addresses=(),
                days=1,
                kind=KeyType.P256,
                wall_now=NOW,
            )
    with pytest.raises(PolicyError, match="cannot be a CA's name"):
        ca_files.init(tmp_path / "b", name="", days=1, kind=KeyType.P256, wall_now=NOW)
    assert snapshot(tmp_path) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ca"]


def test_a_ca_whose_key_others_may_read_is_refused(tmp_path: Path) -> None:
    ca = authority(tmp_path)
    (ca / "ca-key.pem").chmod(0o640)
    with pytest.raises(PolicyError) as error:
        ca_files.load(ca, wall_now=NOW)
    assert "0640" in problems(error)
    (ca / "ca-key.pem").chmod(0o600)
    ca.chmod(0o777)
    with pytest.raises(PolicyError, match="others may write"):
        ca_files.load(ca, wall_now=NOW)


def test_an_expired_ca_or_a_foreign_key_is_refused(tmp_path: Path) -> None:
    ca = authority(tmp_path, days=10)
    with pytest.raises(PolicyError, match="expired"):
        ca_files.load(ca, wall_now=WallTime(NOW + 11 * DAY))
    (tmp_path / "other").mkdir()
    other = authority(tmp_path / "other")
    shutil.copy(other / "ca-key.pem", ca / "ca-key.pem")
    with pytest.raises(PolicyError, match=r"is not the key of ca\.pem"):
        ca_files.load(ca, wall_now=NOW)


def test_renewing_keeps_the_name_and_all_else_and_changes_key_and_serial(tmp_path: Path) -> None:
    ca = authority(tmp_path)
    host = issue(tmp_path, ca=ca)
    (host / "ppk.key").write_bytes(b"p" * 40)
    (host / "ppk.key").chmod(0o600)
    (host / "key.pem").chmod(0o400)
    old_leaf, old_key = load_certificates(host / "cert.pem")[0], load_key(host / "key.pem")
    summary = ca_files.renew(
        host,
        authority=ca_files.load(ca, wall_now=NOW),
        days=60,
        wall_now=WallTime(NOW + DAY),
    )
    leaf, key = load_certificates(host / "cert.pem")[0], load_key(host / "key.pem")
    assert alternative_names(leaf) == alternative_names(old_leaf)
    assert leaf.serial_number != old_leaf.serial_number
    assert summary.serial == leaf.serial_number
    assert same_key(leaf, key)
    assert not same_key(old_leaf, key)
    assert same_key(old_leaf, old_key)
    assert (host / "ppk.key").read_bytes() == b"p" * 40
    assert (mode(host), mode(host / "key.pem")) == (0o700, 0o400)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ca", "db1"]
    assert len(list((ca / "issued").iterdir())) == 2


def test_renewing_through_a_link_keeps_the_link(tmp_path: Path) -> None:
    ca = authority(tmp_path)
    host = issue(tmp_path, ca=ca)
    (tmp_path / "identity").symlink_to(host)
    ca_files.renew(
        tmp_path / "identity",
        authority=ca_files.load(ca, wall_now=NOW),
        days=60,
        wall_now=NOW,
    )
    assert (tmp_path / "identity").is_symlink()
    assert same_key(load_certificates(host / "cert.pem")[0], load_key(host / "key.pem"))


def test_renewing_what_another_ca_issued_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    host = issue(tmp_path, ca=authority(tmp_path))
    ca_files.init(tmp_path / "ca2", name="other", days=9, kind=KeyType.P256, wall_now=NOW)
    before = snapshot(tmp_path)
    with pytest.raises(PolicyError, match="was issued by"):
        ca_files.renew(
            host,
            authority=ca_files.load(tmp_path / "ca2", wall_now=NOW),
            days=60,
            wall_now=NOW,
        )
    assert snapshot(tmp_path) == before


def test_a_new_ca_of_the_same_name_is_added_beside_the_old_one(tmp_path: Path) -> None:
    host = issue(tmp_path, ca=authority(tmp_path))
    (tmp_path / "new").mkdir()
    new = authority(tmp_path / "new", days=500)
    ca_files.renew(host, authority=ca_files.load(new, wall_now=NOW), days=60, wall_now=NOW)
    assert len(load_certificates(host / "ca.pem")) == 2
    load_identity(host, host=DB1, name="db1", wall_now=NOW)


# The command


def tunsec_ca(*words: object) -> int:
    parser = argparse.ArgumentParser(prog="tunsec")
    command.add_parser(parser.add_subparsers())
    args = parser.parse_args(["ca", *map(str, words)])
    status: int = args.run(args)
    return status


def test_the_command_from_start_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ca, host = tmp_path / "ca", tmp_path / "db1"
    assert tunsec_ca("init", ca, "--name", "lab", "--key-type", "p256") == 0
    assert tunsec_ca("issue", ca, "db1", "--out", host, "--address", "192.0.2.1") == 0
    out = capsys.readouterr().out
    assert "host certificate" in out
    assert "db1, 192.0.2.1" in out
    assert "365 days left" in out
    assert tunsec_ca("renew", host, "--ca", ca, "--json") == 0
    (renewed,) = json.loads(capsys.readouterr().out)
    assert renewed["names"] == ["db1"]
    assert tunsec_ca("show", ca, "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert [entry["ca"] for entry in shown] == [True, False, False]
    assert renewed in shown
    assert tunsec_ca("show", host / "cert.pem") == 0
    for text in (out, capsys.readouterr().out):
        assert "PRIVATE" not in text


def test_errors_are_one_line_each_and_json_where_wished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tunsec_ca("issue", tmp_path / "no", "db1", "--out", tmp_path / "x", "--json") == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["problems"][0]["where"] == str(tmp_path / "no")
    assert captured.err.startswith(f"tunsec ca issue: {tmp_path}/no: ")
    assert captured.err.count("\n") == 1
    assert tunsec_ca("show", tmp_path / "no") == 1
    (tmp_path / "junk.pem").write_text("junk")
    assert tunsec_ca("show", tmp_path / "junk.pem") == 1
    assert tunsec_ca("show", tmp_path) == 1
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "words",
    [
        ("init", "x"),
        ("issue", "x", "db1"),
        ("issue", "x", "db1", "--out", "y", "--address", "300.1.1.1"),
        ("init", "x", "--name", "n", "--days", "0"),
        ("init", "x", "--name", "n", "--days", "nan"),
        ("init", "x", "--name", "n", "--key-type", "rsa"),
        (),
    ],
)
def test_usage_errors(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        tunsec_ca(*words)
    assert error.value.code == 2
    assert "usage:" in capsys.readouterr().err
