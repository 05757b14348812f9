"""`tunsec ca` and its folders: nothing overwritten, nothing readable, nothing half done."""

import argparse
import ipaddress
import json
import os
import shutil
import stat
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.unit.keying.cluster import signing_key
from tests.unit.keying.lists import crl, pem
from tests.unit.keying.test_chain import named
from tunsec.adapters import ca_files
from tunsec.adapters.identity import load_identity
from tunsec.adapters.key_files import load_certificates, load_key, load_lists
from tunsec.cli import ca as command
from tunsec.keying.ca import KeyType, alternative_names, same_key
from tunsec.keying.chain import Trust, certificate_der
from tunsec.keying.crl import believed
from tunsec.keying.revocation import RevocationList
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


@pytest.mark.parametrize("spoil", [lambda key: key.chmod(0o644), Path.unlink])
def test_a_renewed_key_is_private_whatever_became_of_the_old_one(
    tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    ca = authority(tmp_path)
    host = issue(tmp_path, ca=ca)
    spoil(host / "key.pem")
    ca_files.renew(host, authority=ca_files.load(ca, wall_now=NOW), days=60, wall_now=NOW)
    assert mode(host / "key.pem") == 0o600
    load_identity(host, host=DB1, name="db1", wall_now=NOW)


def test_a_folder_in_place_of_a_key_is_not_renewed_away(tmp_path: Path) -> None:
    ca = authority(tmp_path)
    host = issue(tmp_path, ca=ca)
    (host / "key.pem").unlink()
    (host / "key.pem").mkdir()
    (host / "key.pem/kept").write_text("kept")
    with pytest.raises(PolicyError, match="is a folder among keys"):
        ca_files.renew(host, authority=ca_files.load(ca, wall_now=NOW), days=60, wall_now=NOW)
    assert (host / "key.pem/kept").read_text() == "kept"


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


# Revocation


def revoke(ca: Path, *words: object, at: float = NOW, days: float = 30) -> ca_files.Shown:
    return ca_files.revoke_all(
        [str(word) for word in words],
        authority=ca_files.load(ca, wall_now=WallTime(at)),
        days=days,
        wall_now=WallTime(at),
    )


def refresh(ca: Path, *, at: float = NOW, days: float = 30) -> RevocationList:
    authority = ca_files.load(ca, wall_now=WallTime(at))
    [crl] = ca_files.refresh(authority=authority, days=days, wall_now=WallTime(at)).crls
    return crl


def serials(*folders: Path) -> set[int]:
    return {load_certificates(folder / "cert.pem")[0].serial_number for folder in folders}


def on_the_list(ca: Path) -> set[int]:
    """What the file says, signed by the CA."""
    [crl] = load_lists(ca / "crl.pem")
    return set(believed(crl, load_certificates(ca / "ca.pem")).revoked)


def test_a_ca_without_revocations_has_no_list(tmp_path: Path) -> None:
    ca = authority(tmp_path)
    host = issue(tmp_path, ca=ca)
    assert not (ca / "crl.pem").exists()
    assert not (host / "crl.pem").exists()
    assert refresh(ca).revoked == {}
    assert on_the_list(ca) == set()


@pytest.mark.parametrize("kind", list(KeyType))
def test_a_host_is_revoked_with_all_that_it_was_issued(tmp_path: Path, kind: KeyType) -> None:
    ca = authority(tmp_path, kind=kind)
    host, other = issue(tmp_path, ca=ca), issue(tmp_path, "db2", ca=ca)
    before = serials(host)
    ca_files.renew(host, authority=ca_files.load(ca, wall_now=NOW), days=9, wall_now=NOW)
    shown = revoke(ca, "db1", at=NOW + 5.5)
    assert on_the_list(ca) == before | serials(host)
    assert not on_the_list(ca) & serials(other)
    assert {one.serial for one in shown.certificates} == before | serials(host)
    assert {one.revoked_at for one in shown.certificates} == {NOW + 5}
    assert mode(ca / "crl.pem") == 0o644
    assert sorted(path.name for path in ca.iterdir()) == [
        "ca-key.pem",
        "ca.pem",
        "crl.pem",
        "issued",
    ]


def test_names_that_look_like_each_other(tmp_path: Path) -> None:
    ca = authority(tmp_path)
    hosts = {name: issue(tmp_path, name, ca=ca) for name in ("db", "db-1", "db-1-1", "1")}
    revoke(ca, "db-1")
    assert on_the_list(ca) == serials(hosts["db-1"])


@pytest.mark.parametrize("shape", ["{:x}", "0x{:x}", "{:X}", "00{:x}"])
def test_by_serial_number(tmp_path: Path, shape: str) -> None:
    ca = authority(tmp_path)
    host, _ = issue(tmp_path, ca=ca), issue(tmp_path, "db2", ca=ca)
    [serial] = serials(host)
    revoke(ca, shape.format(serial))
    assert on_the_list(ca) == {serial}


def test_by_a_serial_number_as_openssl_writes_it(tmp_path: Path) -> None:
    ca = authority(tmp_path)
    [serial] = serials(issue(tmp_path, ca=ca))
    revoke(ca, ":".join(f"{byte:02X}" for byte in serial.to_bytes(20, "big")))
    assert on_the_list(ca) == {serial}


def test_by_file_and_folder_also_when_the_ca_kept_no_copy(tmp_path: Path) -> None:
    ca = authority(tmp_path)
    hosts = [issue(tmp_path, name, ca=ca) for name in ("db1", "db2", "db3")]
    shutil.rmtree(ca / "issued")
    revoke(ca, hosts[0] / "cert.pem", hosts[1])
    assert on_the_list(ca) == serials(*hosts[:2])
    with pytest.raises(PolicyError) as error:
        revoke(ca, "db3")
    assert "neither name nor serial number" in problems(error)
    assert "name the certificate's file" in problems(error)


def test_what_cannot_be_revoked_is_told_at_once_and_nothing_is(tmp_path: Path) -> None:
    ca = authority(tmp_path)
    host = issue(tmp_path, ca=ca)
    (tmp_path / "other").mkdir()
    foreign = issue(tmp_path / "other", "db7", ca=authority(tmp_path / "other"))
    issue(tmp_path, "db2", ca=ca)
    revoke(ca, "db2")
    before = snapshot(ca)
    with pytest.raises(PolicyError) as error:
        revoke(
            ca, "db1", "db9", "db2", foreign, ca / "ca.pem", tmp_path / "no.pem", host / "key.pem"
        )
    assert len(error.value.problems) == 6
    text = problems(error)
    for why in (
        "db9: neither name nor serial number",
        "db2: is revoked already, since 2027-01-15",
        "was issued by CN=lab",
        "is the CA itself",
        "No such file",
        "is no PEM certificate",
    ):
        assert why in text
    assert snapshot(ca) == before


def test_a_forged_copy_in_issued_is_not_revoked_by_mistake(tmp_path: Path) -> None:
    """A CA of the same name, another key: nothing to do with this one."""
    ca = authority(tmp_path)
    (tmp_path / "other").mkdir()
    other = authority(tmp_path / "other")
    issue(tmp_path / "other", ca=other)
    issue(tmp_path, "db2", ca=ca)
    [copy] = (other / "issued").iterdir()
    shutil.copy(copy, ca / "issued")
    with pytest.raises(PolicyError, match="was issued by"):
        revoke(ca, "db1")


def test_a_name_that_is_a_serial_number_too(tmp_path: Path) -> None:
    ca = authority(tmp_path)
    [serial] = serials(issue(tmp_path, ca=ca))
    host = issue(tmp_path, f"{serial:x}", ca=ca)
    with pytest.raises(PolicyError) as error:
        revoke(ca, f"{serial:x}")
    assert "name the file instead" in problems(error)
    revoke(ca, host)
    assert on_the_list(ca) == serials(host)


def test_who_is_on_the_list_in_part_is_revoked_wholly(tmp_path: Path) -> None:
    ca = authority(tmp_path)
    host = issue(tmp_path, ca=ca)
    first = serials(host)
    revoke(ca, "db1")
    ca_files.renew(host, authority=ca_files.load(ca, wall_now=NOW), days=9, wall_now=NOW)
    shown = revoke(ca, "db1", at=NOW + DAY)
    assert {one.serial for one in shown.certificates} == serials(host)
    [crl] = shown.crls
    assert crl.revoked == {**dict.fromkeys(first, NOW), **dict.fromkeys(serials(host), NOW + DAY)}


def test_the_list_made_anew_says_the_same_for_longer(tmp_path: Path) -> None:
    ca = authority(tmp_path)
    issue(tmp_path, ca=ca)
    [first] = revoke(ca, "db1", days=1).crls
    second = refresh(ca, at=NOW + 2 * DAY, days=30)
    assert second.revoked == first.revoked
    assert second.number > first.number
    assert (second.this_update, second.next_update) == (NOW + 2 * DAY - 300, NOW + 32 * DAY)
    assert refresh(ca, at=NOW + 2 * DAY, days=9_999).next_update == NOW + 100 * DAY, "as the CA"


def test_numbers_rise_whatever_the_clock_does_and_after_a_loss(tmp_path: Path) -> None:
    ca = authority(tmp_path)
    numbers = [refresh(ca, at=at).number for at in (NOW, NOW, NOW + 9, NOW + 3)]
    (ca / "crl.pem").unlink()
    numbers.append(refresh(ca, at=NOW + 100).number)
    assert numbers == sorted(set(numbers))


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-40]), "no whole CRL"),
        (lambda path: path.write_bytes(path.read_bytes() * 2), "several lists"),
        (
            lambda path: path.write_bytes(pem(crl(issuer=named("x"), key=signing_key("x")))),
            "who is no CA here",
        ),
    ],
)
def test_a_spoilt_list_is_not_taken_for_none(
    tmp_path: Path, spoil: Callable[[Path], object], why: str
) -> None:
    """Beginning anew would forget who is revoked."""
    ca = authority(tmp_path)
    host = issue(tmp_path, ca=ca)
    revoke(ca, "db1")
    spoil(ca / "crl.pem")
    before = snapshot(tmp_path)
    for act in (
        lambda: refresh(ca),
        lambda: revoke(ca, host),
        lambda: issue(tmp_path, "db2", ca=ca),
        lambda: ca_files.renew(
            host, authority=ca_files.load(ca, wall_now=NOW), days=9, wall_now=NOW
        ),
    ):
        with pytest.raises(PolicyError, match=why) as error:
            act()
        problems(error)
    after = snapshot(tmp_path)
    assert {path: after[path] for path in before} == before


def test_a_new_host_gets_the_list_and_a_renewed_one_the_newest(tmp_path: Path) -> None:
    ca = authority(tmp_path)
    old = issue(tmp_path, ca=ca)
    issue(tmp_path, "db2", ca=ca)
    revoke(ca, "db2")
    new = issue(tmp_path, "db3", ca=ca)
    assert (new / "crl.pem").read_bytes() == (ca / "crl.pem").read_bytes()
    loaded = load_identity(new, host=HostName("db3"), name="db3", wall_now=NOW)
    assert [set(one.revoked) for one in loaded.crls] == [on_the_list(ca)]
    ca_files.renew(old, authority=ca_files.load(ca, wall_now=NOW), days=9, wall_now=NOW)
    assert (old / "crl.pem").read_bytes() == (ca / "crl.pem").read_bytes()
    assert mode(old / "crl.pem") == 0o644
    refresh(ca, at=NOW + 5)
    ca_files.renew(old, authority=ca_files.load(ca, wall_now=NOW), days=9, wall_now=NOW)
    assert (old / "crl.pem").read_bytes() == (ca / "crl.pem").read_bytes()


def test_renewing_keeps_the_lists_of_other_cas(tmp_path: Path) -> None:
    ca = authority(tmp_path)
    host = issue(tmp_path, ca=ca)
    other = pem(crl(5, issuer=named("other"), key=signing_key("other")))
    (host / "crl.pem").write_bytes(other)
    ca_files.renew(host, authority=ca_files.load(ca, wall_now=NOW), days=9, wall_now=NOW)
    assert (host / "crl.pem").read_bytes() == other, "the CA has none to add"
    refresh(ca)
    ca_files.renew(host, authority=ca_files.load(ca, wall_now=NOW), days=9, wall_now=NOW)
    own = (ca / "crl.pem").read_bytes()
    assert (host / "crl.pem").read_bytes() == other + own
    ca_files.renew(host, authority=ca_files.load(ca, wall_now=NOW), days=9, wall_now=NOW)
    assert (host / "crl.pem").read_bytes() == other + own


def test_two_admins_at_once_forget_nothing(tmp_path: Path) -> None:
    ca = authority(tmp_path)
    hosts = [issue(tmp_path, f"db{number}", ca=ca) for number in range(8)]
    with ThreadPoolExecutor(8) as admins:
        list(admins.map(lambda host: revoke(ca, host.name), hosts))
    assert on_the_list(ca) == serials(*hosts)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command")
@pytest.mark.parametrize("kind", list(KeyType))
def test_openssl_agrees_on_who_is_revoked(tmp_path: Path, kind: KeyType) -> None:
    now = 1_780_000_000.0
    ca = tmp_path / "ca"
    ca_files.init(ca, name="lab", days=100, kind=kind, wall_now=WallTime(now))
    for host in ("db1", "db2"):
        ca_files.issue_to(
            tmp_path / host,
            HostName(host),
            authority=ca_files.load(ca, wall_now=WallTime(now)),
            addresses=(),
            days=30,
            kind=kind,
            wall_now=WallTime(now),
        )
    revoke(ca, "db2", at=now)
    said = {}
    for host in ("db1", "db2"):
        verified = subprocess.run(
            (
                f"openssl verify -x509_strict -crl_check -attime {int(now)} "
                f"-CRLfile ca/crl.pem -CAfile ca/ca.pem {host}/cert.pem"
            ).split(),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        said[host] = verified.stdout + verified.stderr
    assert said["db1"] == "db1/cert.pem: OK\n"
    assert "certificate revoked" in said["db2"]


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


def test_the_command_revokes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ca, host = tmp_path / "ca", tmp_path / "db1"
    tunsec_ca("init", ca, "--name", "lab")
    tunsec_ca("issue", ca, "db1", "--out", host)
    [serial] = serials(host)
    capsys.readouterr()
    assert tunsec_ca("crl", ca, "--json", "--days", "3") == 0
    [empty] = json.loads(capsys.readouterr().out)
    assert empty["revoked"] == {}
    assert tunsec_ca("revoke", ca, "db1") == 0
    out = capsys.readouterr().out
    assert f"  revoked  {serial:x} since 20" in out
    assert "  REVOKED  since 20" in out
    assert "365 days left" in out
    assert f"copy {ca}/crl.pem to every host's identity folder, then tunsec reload" in out
    assert tunsec_ca("revoke", ca, "db1", "--json") == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["problems"][0]["where"] == "db1"
    assert captured.err.startswith("tunsec ca revoke: db1: is revoked already, since 20")
    assert tunsec_ca("show", ca, "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert [bool(one.get("revoked_at")) for one in shown] == [False, True, False]
    assert shown[2]["crl"] > empty["crl"]
    assert list(shown[2]["revoked"]) == [f"{serial:x}"]
    assert tunsec_ca("show", ca / "crl.pem") == 0
    assert capsys.readouterr().out.startswith("revocation list\n  issuer   CN=lab,O=tunsec\n")
    tunsec_ca("issue", ca, "db2", "--out", tmp_path / "db2")
    capsys.readouterr()
    assert tunsec_ca("show", tmp_path / "db2") == 0
    assert "revocation list" in capsys.readouterr().out
    assert tunsec_ca("renew", host, "--ca", ca) == 0
    assert "REVOKED" not in capsys.readouterr().out
    load_identity(host, host=DB1, name="db1", wall_now=WallTime(time.time()))


def test_errors_are_one_line_each_and_json_where_wished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tunsec_ca("issue", tmp_path / "no", "db1", "--out", tmp_path / "x", "--json") == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["problems"][0]["where"] == str(tmp_path / "no")
    assert captured.err.startswith(f"tunsec ca issue: {tmp_path}/no: ")
    assert captured.err.count("\n") == 1
    assert "ca-key.pem" in captured.err, "it is a CA's folder that is wanted"
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
        ("revoke", "x"),
        ("revoke", "x", "db1", "--days", "0"),
        ("crl",),
        (),
    ],
)
def test_usage_errors(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        tunsec_ca(*words)
    assert error.value.code == 2
    assert "usage:" in capsys.readouterr().err
