"""The folder of records against what others may put into it, and against a full or lost disk."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tunsec.adapters.record_folder import RecordFolder
from tunsec.keying.paths import OFFER_LIMIT
from tunsec.keying.refusals import RefusalReason
from tunsec.model.errors import Unavailable
from tunsec.model.names import HostName

DB1 = HostName("db1")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "records").mkdir()
    return tmp_path / "records"


@pytest.fixture
def folder(root: Path) -> RecordFolder:
    return RecordFolder(root, DB1)


def told(folder: RecordFolder, paths: set[str] | None = None) -> dict[str, bytes]:
    return {record.path: record.body for record in folder.changes(paths).records}


def test_write_read_and_remove(folder: RecordFolder, root: Path) -> None:
    assert told(folder) == {}
    assert folder.write({"offers/db1": b"one", "confirmations/db1/db2": b"two"}) == {
        "offers/db1": None,
        "confirmations/db1/db2": None,
    }
    assert folder.write({"confirmations/db2/db1": b"for another"}) == {
        "confirmations/db2/db1": None
    }
    assert told(folder) == {"offers/db1": b"one", "confirmations/db1/db2": b"two"}
    assert told(folder) == {}, "only what changed is read"
    folder.write({"offers/db1": b"three"})
    assert told(folder, {"offers/db1"}) == {"offers/db1": b"three"}
    folder.write({"offers/db1": None, "offers/db9": None})
    changes = folder.changes()
    assert (changes.records, changes.removed) == ([], ["offers/db1"])
    assert sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()) == [
        "confirmations/db1/db2",
        "confirmations/db2/db1",
    ]


def test_the_same_content_is_told_once(folder: RecordFolder) -> None:
    folder.write({"offers/db2": b"one"})
    assert told(folder) == {"offers/db2": b"one"}
    folder.write({"offers/db2": b"one"})
    assert told(folder) == {}


def test_a_change_that_keeps_size_and_time_is_seen(folder: RecordFolder, root: Path) -> None:
    path = root / "offers" / "db2"
    folder.write({"offers/db2": b"one"})
    told(folder)
    status = path.stat()
    path.write_bytes(b"two")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert told(folder) == {"offers/db2": b"two"}


def test_what_can_be_no_record_is_refused_and_told_once(folder: RecordFolder, root: Path) -> None:
    folder.changes()
    offers = root / "offers"
    (offers / "link").symlink_to("/etc/passwd")
    (offers / "folder").mkdir()
    os.mkfifo(offers / "fifo")
    (offers / "a b\n").write_bytes(b"x")
    (offers / ".hidden").write_bytes(b"x")
    changes = folder.changes()
    assert changes.records == []
    assert {refused.path: refused.reason for refused in changes.refused} == {
        "offers/link": RefusalReason.NOT_A_FILE,
        "offers/folder": RefusalReason.NOT_A_FILE,
        "offers/fifo": RefusalReason.NOT_A_FILE,
        "offers/a b\\n": RefusalReason.BAD_NAME,
    }
    assert folder.changes().refused == []
    (offers / "link").unlink()
    assert folder.changes().removed == [], "what was never told is not told to be gone"


def test_a_record_replaced_by_a_link_and_back(folder: RecordFolder, root: Path) -> None:
    path = root / "offers" / "db2"
    folder.write({"offers/db2": b"one"})
    told(folder)
    path.unlink()
    path.symlink_to("/etc/passwd")
    changes = folder.changes()
    assert (changes.records, changes.removed, len(changes.refused)) == ([], [], 1)
    path.unlink()
    path.write_bytes(b"two")
    assert told(folder) == {"offers/db2": b"two"}


def test_reading_is_bounded(folder: RecordFolder, root: Path) -> None:
    folder.changes()
    with (root / "offers" / "db2").open("wb") as file:
        file.truncate(1 << 40)  # a sparse terabyte
    ((path, body),) = told(folder).items()
    assert (path, len(body)) == ("offers/db2", OFFER_LIMIT + 1)


def test_folders_that_are_links_are_not_entered(folder: RecordFolder, root: Path) -> None:
    (root.parent / "elsewhere").mkdir()
    (root / "offers").symlink_to(root.parent / "elsewhere")
    with pytest.raises(Unavailable):
        folder.changes()
    assert isinstance(folder.write({"offers/db1": b"x"})["offers/db1"], Unavailable)
    (root / "offers").unlink()
    folder.changes()
    (root / "confirmations" / "db2").symlink_to(root.parent / "elsewhere")
    assert isinstance(
        folder.write({"confirmations/db2/db1": b"x"})["confirmations/db2/db1"], Exception
    )
    assert list((root.parent / "elsewhere").iterdir()) == []


@pytest.mark.parametrize("path", ["offers/../x", "offers/.x", "x", "offers/a/b", "/etc/x"])
def test_no_path_leads_out(folder: RecordFolder, path: str, root: Path) -> None:
    assert isinstance(folder.write({path: b"x"})[path], Exception)
    assert [entry for entry in root.rglob("*") if entry.is_file()] == []


def test_modes_let_other_hosts_in_as_the_root_folder_does(root: Path) -> None:
    root.chmod(0o1777)
    umask = os.umask(0o077)
    try:
        RecordFolder(root, DB1).write({"confirmations/db2/db1": b"x"})
    finally:
        os.umask(umask)
    inbox = root / "confirmations" / "db2"
    assert inbox.stat().st_mode & 0o7777 == 0o1777
    assert (inbox / "db1").stat().st_mode & 0o7777 == 0o644


def test_leftovers_of_a_killed_daemon_are_cleaned_and_those_of_others_kept(
    folder: RecordFolder, root: Path
) -> None:
    script = """
import os, sys
from pathlib import Path
from tunsec.adapters import record_folder
folder = record_folder.RecordFolder(Path(sys.argv[1]), sys.argv[2])
os.rename = lambda *_, **__: os._exit(9)  # killed between writing and moving into place
folder.write({f"offers/{sys.argv[2]}": b"half"})
"""
    for host in ("db1", "db2"):
        done = subprocess.run([sys.executable, "-c", script, str(root), host], check=False)
        assert done.returncode == 9
    assert len(list((root / "offers").iterdir())) == 2
    assert told(folder) == {}
    folder.write({"offers/db1": b"whole"})
    (left,) = (path for path in (root / "offers").iterdir() if path.name != "db1")
    RecordFolder(root, HostName("db2")).write({"offers/db2": b"whole"})
    assert not left.exists()


def test_a_missing_folder_is_not_made(folder: RecordFolder, root: Path) -> None:
    root.rmdir()
    with pytest.raises(Unavailable, match="No such file"):
        folder.changes()
    assert isinstance(folder.write({"offers/db1": b"x"})["offers/db1"], Unavailable)
    assert not root.exists()
    root.mkdir()
    assert folder.write({"offers/db1": b"x"}) == {"offers/db1": None}


def test_a_file_in_the_place_of_the_folder(folder: RecordFolder, root: Path) -> None:
    root.rmdir()
    root.write_bytes(b"x")
    with pytest.raises(Unavailable, match="Not a directory"):
        folder.changes()


def test_an_outage_forgets_nothing(folder: RecordFolder, root: Path) -> None:
    folder.write({"offers/db2": b"one"})
    before = folder.changes()
    root.rename(root.with_name("away"))
    with pytest.raises(Unavailable):
        folder.changes()
    root.with_name("away").rename(root)
    after = folder.changes()
    assert (after.places, after.records, after.removed) == (before.places, [], [])


def test_another_folder_in_its_place_is_noticed(folder: RecordFolder, root: Path) -> None:
    folder.write({"offers/db1": b"one"})
    before = folder.changes()
    root.rename(root.with_name("away"))
    root.mkdir()
    after = folder.changes()
    assert after.places != before.places
    assert after.removed == ["offers/db1"]
    assert folder.missing(["offers/db1"]) == ("offers/db1",)


MOUNTED = """
import errno, subprocess, sys
from pathlib import Path
from tunsec.adapters.record_folder import RecordFolder
from tunsec.model.errors import Unavailable
from tunsec.model.names import HostName

root = Path(sys.argv[1])
mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(root)]
subprocess.run(mount, check=True)
folder = RecordFolder(root, HostName("db1"))

# a full disk: the error is told, what was there stays, nothing is left over
assert folder.write({"offers/db1": b"old"}) == {"offers/db1": None}
answer = folder.write({"offers/db1": b"x" * 300_000})["offers/db1"]
assert isinstance(answer, Unavailable) and "No space left" in str(answer), answer
assert (root / "offers/db1").read_bytes() == b"old"
assert [path.name for path in (root / "offers").iterdir()] == ["db1"]
assert folder.write({"offers/db1": b"new"}) == {"offers/db1": None}

# read-only: reading goes on
subprocess.run(["mount", "-o", "remount,ro", str(root)], check=True)
assert isinstance(folder.write({"offers/db1": b"ro"})["offers/db1"], Unavailable)
assert [record.body for record in folder.changes().records] == [b"new"]
subprocess.run(["mount", "-o", "remount,rw", str(root)], check=True)

# unmounted: nothing is written to the bare mount point, nothing is told to be gone
subprocess.run(["umount", str(root)], check=True)
try:
    folder.changes()
except Unavailable as error:
    assert "not mounted" in str(error), error
else:
    raise AssertionError("an unmounted folder was taken for the directory")
assert isinstance(folder.write({"offers/db1": b"lost"})["offers/db1"], Unavailable)
assert list(root.iterdir()) == []

# mounted again, afresh: found again
subprocess.run(mount, check=True)
assert folder.changes().removed == ["offers/db1"]
assert folder.write({"offers/db1": b"again"}) == {"offers/db1": None}
print("all held")
"""


def test_a_full_a_readonly_and_an_unmounted_disk(tmp_path: Path) -> None:
    unshare = ["unshare", "--mount", *(["--user", "--map-root-user"] if os.geteuid() else [])]
    if subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs a mount namespace of its own")
    done = subprocess.run(
        [*unshare, sys.executable, "-c", MOUNTED, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "all held\n", done.stderr
