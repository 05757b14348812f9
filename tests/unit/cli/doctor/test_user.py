"""Acting as the user of tunsecd."""

import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from tunsec.cli.doctor.user import User, acting_as, daemon_user

NOBODY = User("nobody", 65534, 65534, (65534,))


def test_who_listens_is_who_is_meant(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        assert daemon_user(path, "nobody").uid == os.geteuid()


def test_else_it_is_the_units_user(tmp_path: Path) -> None:
    found = daemon_user(tmp_path / "none", "nobody")
    assert (found.name, found.uid) == ("nobody", 65534)
    assert found.gid in found.groups


def test_else_it_is_who_asks(tmp_path: Path) -> None:
    assert daemon_user(tmp_path / "none", "no-such-user").uid == os.geteuid()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_files_are_opened_as_that_user_and_no_longer(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x")
    secret.chmod(0o600)
    before = os.geteuid(), os.getegid(), os.getgroups()
    with pytest.raises(PermissionError), acting_as(NOBODY):
        secret.read_text()
    assert (os.geteuid(), os.getegid(), os.getgroups()) == before
    assert os.getegid() == os.getgid()
    assert secret.read_text() == "x"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_groups_are_that_users_too(tmp_path: Path) -> None:
    for folder in (tmp_path, *tmp_path.parents):
        if folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o011)
    ours, roots = tmp_path / "ours", tmp_path / "roots"
    for path, group in ((ours, 4242), (roots, 0)):
        path.write_text("x")
        os.chown(path, 0, group)
        path.chmod(0o640)
    with acting_as(replace(NOBODY, groups=(4242,))):
        assert ours.read_text() == "x"
        with pytest.raises(PermissionError):
            roots.read_text()


def test_who_is_not_root_stays(tmp_path: Path) -> None:
    me = User("me", os.geteuid(), os.getegid(), ())
    with acting_as(me):
        assert os.geteuid() == me.uid
