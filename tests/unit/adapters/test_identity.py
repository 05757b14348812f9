"""Loading an identity: all that is wrong is told at once, and nothing weak is used."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tunsec.adapters import ca_files
from tunsec.adapters.identity import load_identity
from tunsec.keying.ca import KeyType
from tunsec.keying.schedule import ppk_id
from tunsec.model.clock import WallTime
from tunsec.model.errors import PolicyError
from tunsec.model.names import HostName

NOW = WallTime(1_800_000_000.0)
DAY = 86_400.0
DB1 = HostName("db1")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for host in ("db1", "db2"):
        if not (tmp_path / "ca").exists():
            ca_files.init(tmp_path / "ca", name="lab", days=100, kind=KeyType.ED25519, wall_now=NOW)
        ca_files.issue_to(
            tmp_path / host,
            HostName(host),
            authority=ca_files.load(tmp_path / "ca", wall_now=NOW),
            addresses=(),
            days=30,
            kind=KeyType.P256,
            wall_now=NOW,
        )
    return tmp_path / "db1"


def told(folder: Path, *, name: str = "db1", at: float = NOW) -> str:
    with pytest.raises(PolicyError) as caught:
        load_identity(folder, host=DB1, name=name, wall_now=WallTime(at))
    for problem in caught.value.problems:
        assert str(folder) in problem.where
        assert problem.remedy
    return str(caught.value)


def test_a_good_folder(folder: Path) -> None:
    loaded = load_identity(folder, host=DB1, name="db1", wall_now=NOW)
    assert loaded.identity.host == DB1
    assert loaded.ppk is None
    assert loaded.warnings == ()
    message = b"hello"
    speaker = loaded.trust().judge(loaded.identity.der_chain, path="offers/db1", wall_now=NOW)
    assert speaker.verify(loaded.identity.sign(message), message)
    assert "PRIVATE" not in repr(loaded)


def test_modes_that_systemd_credentials_have_are_fine(folder: Path) -> None:
    for name in ("cert.pem", "key.pem", "ca.pem"):
        (folder / name).chmod(0o400)
    folder.chmod(0o500)
    load_identity(folder, host=DB1, name="db1", wall_now=NOW)


def test_links_are_followed_and_what_they_lead_to_is_judged(folder: Path) -> None:
    kept = folder.parent / "kept.pem"
    (folder / "key.pem").rename(kept)
    (folder / "key.pem").symlink_to(kept)
    load_identity(folder, host=DB1, name="db1", wall_now=NOW)
    kept.chmod(0o604)
    assert "0604" in told(folder)


def truncate(folder: Path) -> None:
    path = folder / "cert.pem"
    path.write_bytes(path.read_bytes()[:200])


def exchange_key(folder: Path) -> None:
    (folder / "key.pem").write_bytes((folder.parent / "db2" / "key.pem").read_bytes())


def fifo(folder: Path) -> None:
    (folder / "key.pem").unlink()
    os.mkfifo(folder / "key.pem", 0o600)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda folder: (folder / "key.pem").chmod(0o644), "others may use this private file"),
        (lambda folder: (folder / "key.pem").chmod(0o640), "others may use this private file"),
        (lambda folder: (folder / "ca.pem").chmod(0o666), "others may write it"),
        (lambda folder: (folder / "cert.pem").chmod(0o664), "others may write it"),
        (lambda folder: folder.chmod(0o777), "others may write it"),
        (lambda folder: (folder / "ca.pem").unlink(), "No such file"),
        (lambda folder: (folder / "key.pem").write_text("junk"), "is no PEM private key"),
        (lambda folder: (folder / "ca.pem").write_text(""), "is no PEM certificate"),
        (truncate, "is no PEM certificate"),
        (exchange_key, "is not the key of cert.pem"),
        (fifo, "is no regular file"),
    ],
)
def test_what_is_wrong_is_named(folder: Path, spoil: Callable[[Path], object], why: str) -> None:
    spoil(folder)
    assert why in told(folder)


def test_everything_wrong_is_told_at_once(folder: Path) -> None:
    (folder / "key.pem").chmod(0o644)
    (folder / "ca.pem").write_text("junk")
    (folder / "ppk.key").write_bytes(b"short")
    (folder / "ppk.key").chmod(0o600)
    text = told(folder)
    for why in ("others may use this private file", "no PEM certificate", "too weak"):
        assert why in text


def test_a_missing_folder(tmp_path: Path) -> None:
    assert "No such file" in told(tmp_path / "nowhere")


def test_the_name_the_policy_wants(folder: Path) -> None:
    assert "names db1, not db1.example.org" in told(folder, name="db1.example.org")


def test_time(folder: Path) -> None:
    assert "expired-certificate" in told(folder, at=NOW + 31 * DAY)
    assert "not-yet-valid" in told(folder, at=NOW - DAY)
    soon = load_identity(folder, host=DB1, name="db1", wall_now=WallTime(NOW + 20 * DAY))
    (warning,) = soon.warnings
    assert "ends in 10.0 days" in warning.what
    assert "tunsec ca renew" in warning.remedy


def test_another_ca_in_ca_pem(folder: Path) -> None:
    ca_files.init(folder.parent / "ca2", name="lab", days=100, kind=KeyType.ED25519, wall_now=NOW)
    (folder / "ca.pem").write_bytes((folder.parent / "ca2" / "ca.pem").read_bytes())
    assert "unknown-ca" in told(folder)


def test_an_attached_root_is_left_out_of_what_peers_get(folder: Path) -> None:
    with (folder / "cert.pem").open("ab") as file:
        file.write((folder / "ca.pem").read_bytes())
    loaded = load_identity(folder, host=DB1, name="db1", wall_now=NOW)
    assert len(loaded.identity.chain) == 1


def test_a_ppk(folder: Path) -> None:
    path = folder / "ppk.key"
    path.write_bytes(b"00112233445566778899aabbccddeeff" * 2 + b"\n")
    path.chmod(0o600)
    loaded = load_identity(folder, host=DB1, name="db1", wall_now=NOW)
    assert loaded.ppk is not None
    assert len(loaded.ppk) == 64
    assert len(ppk_id(loaded.ppk)) == 32
    path.chmod(0o644)
    assert "others may use this private file" in told(folder)
    path.chmod(0o600)
    for weak in (b"", b"x" * 31, b"password" * 8):
        path.write_bytes(weak)
        assert "too weak" in told(folder)
    path.unlink()
    path.symlink_to(folder / "gone")
    assert "No such file" in told(folder), "a PPK that cannot be read is no missing PPK"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a file away")
def test_a_file_of_another_user(folder: Path) -> None:
    os.chown(folder / "key.pem", 12345, 12345)
    assert "belongs to user 12345" in told(folder)
