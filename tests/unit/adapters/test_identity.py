"""Loading an identity: all that is wrong is told at once, and nothing weak is used."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import load_pem_x509_crl

from tests.unit.keying.cluster import serial, signing_key
from tests.unit.keying.lists import crl, pem
from tests.unit.keying.test_chain import authority, named
from tests.unit.keying.test_chain import leaf as leaf_of
from tunsec.adapters import ca_files
from tunsec.adapters.identity import load_identity
from tunsec.adapters.key_files import load_certificates, pem_certificates, pem_key
from tunsec.keying.ca import KeyType
from tunsec.keying.chain import certificate_der
from tunsec.keying.identity import SigningKey
from tunsec.keying.refusals import RecordRefused, RefusalReason
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
    loaded = load_identity(folder, host=DB1, name="db1", wall_now=NOW)
    assert loaded.warnings == ()
    assert loaded.warnings_at(WallTime(NOW + 20 * DAY)) == soon.warnings


def test_another_ca_in_ca_pem(folder: Path) -> None:
    ca_files.init(folder.parent / "ca2", name="lab", days=100, kind=KeyType.ED25519, wall_now=NOW)
    (folder / "ca.pem").write_bytes((folder.parent / "ca2" / "ca.pem").read_bytes())
    assert "unknown-ca" in told(folder)


def test_an_attached_root_is_left_out_of_what_peers_get(folder: Path) -> None:
    with (folder / "cert.pem").open("ab") as file:
        file.write((folder / "ca.pem").read_bytes())
    loaded = load_identity(folder, host=DB1, name="db1", wall_now=NOW)
    assert len(loaded.identity.chain) == 1


# Revocation lists


def lists(folder: Path, *words: str, at: float = NOW, days: float = 30) -> Path:
    """The CA revokes what the words name, and its list is copied into the host's folder."""
    ca = folder.parent / "ca"
    authority = ca_files.load(ca, wall_now=WallTime(at))
    if words:
        ca_files.revoke_all(words, authority=authority, days=days, wall_now=WallTime(at))
    else:
        ca_files.refresh(authority=authority, days=days, wall_now=WallTime(at))
    shutil.copy(ca / "crl.pem", folder / "crl.pem")
    return folder / "crl.pem"


def db2(folder: Path) -> tuple[bytes, ...]:
    """The chain of the other host."""
    return (certificate_der(load_certificates(folder.parent / "db2" / "cert.pem")[0]),)


def test_a_list_is_read_and_honoured(folder: Path) -> None:
    assert load_identity(folder, host=DB1, name="db1", wall_now=NOW).crls == ()
    lists(folder)
    loaded = load_identity(folder, host=DB1, name="db1", wall_now=NOW)
    assert [crl.revoked for crl in loaded.crls] == [{}]
    loaded.trust().judge(db2(folder), path="offers/db2", wall_now=NOW)
    path = lists(folder, "db2")
    loaded = load_identity(folder, host=DB1, name="db1", wall_now=NOW)
    assert loaded.warnings == ()
    with pytest.raises(RecordRefused) as refused:
        loaded.trust().judge(db2(folder), path="offers/db2", wall_now=NOW)
    assert refused.value.reason is RefusalReason.REVOKED_CERTIFICATE
    [crl] = loaded.crls
    assert load_pem_x509_crl(path.read_bytes()).public_bytes(Encoding.DER) == crl.der
    path.write_bytes(crl.der)
    assert load_identity(folder, host=DB1, name="db1", wall_now=NOW).crls == (crl,)


def test_a_list_that_has_ended_warns_and_keeps_its_force(folder: Path) -> None:
    lists(folder, "db2", days=1)
    later = WallTime(NOW + 3 * DAY)
    loaded = load_identity(folder, host=DB1, name="db1", wall_now=later)
    (warning,) = loaded.warnings
    assert warning.where == str(folder / "crl.pem")
    assert "2.0 days ago" in warning.what
    assert "tunsec ca crl" in warning.remedy
    with pytest.raises(RecordRefused):
        loaded.trust().judge(db2(folder), path="offers/db2", wall_now=later)


def test_of_several_lists_the_newest_of_each_ca_counts(folder: Path) -> None:
    first = lists(folder, days=1).read_bytes()
    second = lists(folder, "db2").read_bytes()
    for body in (first + second, second + first):
        (folder / "crl.pem").write_bytes(body)
        loaded = load_identity(folder, host=DB1, name="db1", wall_now=WallTime(NOW + 3 * DAY))
        [crl] = loaded.crls
        assert len(crl.revoked) == 1
        assert loaded.warnings == (), "the older one is of no interest"


def test_an_intermediate_speaks_for_whom_it_issued(tmp_path: Path) -> None:
    folder, key = below_an_intermediate(tmp_path)
    load_identity(folder, host=DB1, name="db1", wall_now=NOW)
    (folder / "crl.pem").write_bytes(pem(crl(77, issuer=named("middle"), key=key)))
    [read] = load_identity(folder, host=DB1, name="db1", wall_now=NOW).crls
    assert read.revoked.keys() == {77}
    own = serial("db1", "middle")
    (folder / "crl.pem").write_bytes(pem(crl(own, issuer=named("middle"), key=key)))
    assert "revoked-certificate" in told(folder)


def below_an_intermediate(folder: Path) -> tuple[Path, SigningKey]:
    """A host's folder with two certificates in cert.pem, and the key of the second."""
    leaf = leaf_of(issuer="middle")
    parts = {
        "cert.pem": pem_certificates(leaf, authority("middle", issuer="root", last=NOW + 90 * DAY)),
        "ca.pem": pem_certificates(authority("root", last=NOW + 90 * DAY)),
        "key.pem": pem_key(signing_key("db1")),
    }
    (folder / "db1").mkdir(mode=0o700)
    for name, body in parts.items():
        (folder / "db1" / name).write_bytes(body)
        (folder / "db1" / name).chmod(0o600)
    return folder / "db1", signing_key("middle")


def of_another_ca(path: Path) -> None:
    path.write_bytes(pem(crl(5, issuer=named("other"), key=signing_key("other"))))


def forged(path: Path) -> None:
    issuer = load_certificates(path.with_name("ca.pem"))[0].subject
    path.write_bytes(pem(crl(5, issuer=issuer, key=signing_key("thief"))))


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-40]), "no whole CRL"),
        (lambda path: path.write_bytes(b""), "holds no CRL"),
        (lambda path: path.write_bytes(path.read_bytes() * 8_000), "more than 1048576 bytes"),
        (lambda path: path.chmod(0o666), "others may write it"),
        (lambda path: (path.unlink(), path.symlink_to(path.with_name("gone"))), "No such file"),
        (of_another_ca, "who is no CA here"),
        (forged, "has not signed"),
    ],
)
def test_a_list_that_is_not_believed_is_an_error(
    folder: Path, spoil: Callable[[Path], object], why: str
) -> None:
    path = lists(folder, "db2")
    spoil(path)
    text = told(folder)
    assert why in text
    assert f"{path}: " in text


def test_one_bad_list_among_good_ones_is_an_error(folder: Path) -> None:
    path = lists(folder, "db2")
    path.write_bytes(path.read_bytes() + pem(crl(issuer=named("other"), key=signing_key("other"))))
    assert "who is no CA here" in told(folder)


def test_ones_own_certificate_on_the_list(folder: Path) -> None:
    lists(folder, "db1")
    text = told(folder)
    assert "peers would refuse it as revoked-certificate" in text
    assert "tunsec ca renew" in text


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
