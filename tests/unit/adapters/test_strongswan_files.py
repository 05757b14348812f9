"""charon's configuration files, as a process sees them."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tunsec.adapters.strongswan_files import (
    MAX_BYTES,
    CharonProcess,
    find_process,
    read_settings,
)
from tunsec.model.clock import WallTime
from tunsec.model.errors import Unavailable

CONF = Path("/etc/strongswan.conf")


@pytest.fixture
def process(tmp_path: Path) -> CharonProcess:
    """A charon with a root folder of its own."""
    (tmp_path / "etc/strongswan.d/charon").mkdir(parents=True)
    (tmp_path / "etc/strongswan.conf").write_text(
        "charon {\n plugins {\n include strongswan.d/charon/*.conf\n }\n}\n"
        "include /etc/strongswan.d/*.conf\n"
    )
    (tmp_path / "etc/strongswan.d/charon/vici.conf").write_text("vici { load = yes }")
    (tmp_path / "etc/strongswan.d/20.conf").write_text("charon { threads = 20 }")
    (tmp_path / "etc/strongswan.d/10.conf").write_text("charon { threads = 10\n tries = 1 }")
    return CharonProcess(CONF, root=tmp_path)


def test_files_are_those_of_the_process(process: CharonProcess) -> None:
    assert read_settings(process).settings.values == {
        "charon.plugins.vici.load": "yes",
        "charon.threads": "20",
        "charon.tries": "1",
    }


def test_the_newest_file_counts(process: CharonProcess) -> None:
    for file in process.root.rglob("*.conf"):
        os.utime(file, (1000, 1000))
    os.utime(process.root / "etc/strongswan.d/10.conf", (2000, 2000))
    assert read_settings(process).changed_at == WallTime(2000.0)


def test_no_file_is_charons_defaults() -> None:
    assert read_settings(CharonProcess(None)).settings.values == {}


def test_what_cannot_be_read_is_told(process: CharonProcess) -> None:
    with pytest.raises(Unavailable, match=r"^/etc/none\.conf cannot be read: No such file"):
        read_settings(CharonProcess(Path("/etc/none.conf"), root=process.root))
    (process.root / "etc/strongswan.conf").write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(Unavailable, match="more than"):
        read_settings(process)


def test_a_process_is_found_with_its_own_variable(tmp_path: Path) -> None:
    code = "import sys; print(flush=True); sys.stdin.read()"
    environment = {**os.environ, "STRONGSWAN_CONF": "here/strongswan.conf"}
    began = time.time()
    with subprocess.Popen(
        (sys.executable, "-c", code),
        env=environment,
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as running:
        assert running.stdout is not None
        running.stdout.readline()
        found = find_process(running.pid)
        running.communicate()
    assert found.conf == tmp_path / "here/strongswan.conf"
    assert found.started_at is not None
    assert began - 1 < found.started_at < time.time() + 1
    assert found.same_network


def test_a_process_that_is_gone() -> None:
    with pytest.raises(Unavailable, match="process 0 cannot be looked at"):
        find_process(0)
