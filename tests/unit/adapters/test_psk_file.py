"""The file with the pre-shared key: what is taken, and what is refused with a remedy."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tunsec.adapters.psk_file import MAX_PSK, read_psk
from tunsec.model.errors import PolicyError

GOOD = b"2f8a6c1de90b4735" * 4


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A good file."""
    file = tmp_path / "psk"
    file.write_bytes(GOOD + b"\n")
    file.chmod(0o600)
    return file


def told(path: Path) -> str:
    with pytest.raises(PolicyError) as refused:
        read_psk(path)
    (problem,) = refused.value.problems
    assert problem.where == str(path)
    assert problem.remedy
    return f"{problem.what} ({problem.remedy})"


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_the_newline_at_the_end_is_no_part_of_the_secret(path: Path, end: bytes, mode: int) -> None:
    path.chmod(0o600)
    path.write_bytes(GOOD + end)
    path.chmod(mode)
    assert read_psk(path).reveal() == GOOD


def test_what_stands_within_is_taken_as_it_is(path: Path) -> None:
    body = b" \x00\xff0x2f8a6c1de90b\n4735 " + GOOD
    path.write_bytes(body + b"\n")
    assert read_psk(path).reveal() == body


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir(mode=0o700)


def replace_by_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda path: path.unlink(), "No such file or directory (openssl rand -hex 32 > "),
        (lambda path: path.chmod(0o640), "others may use this private file (mode 0640)"),
        (lambda path: path.chmod(0o604), "others may use this private file (mode 0604)"),
        (lambda path: path.chmod(0o620), "others may write it (mode 0620)"),
        (replace_by_folder, "Is a directory"),
        (replace_by_fifo, "is no regular file"),
        (lambda path: path.write_bytes(b""), "has 0 bytes and 0 different ones: too weak"),
        (lambda path: path.write_bytes(b"\n"), "has 0 bytes and 0 different ones: too weak"),
        (lambda path: path.write_bytes(GOOD[:31]), "has 31 bytes"),
        (lambda path: path.write_bytes(b"password" * 8), "7 different ones: too weak"),
        (lambda path: path.write_bytes(GOOD * MAX_PSK), f"has more than {MAX_PSK} bytes"),
    ],
)
def test_what_is_wrong_is_named(path: Path, spoil: Callable[[Path], object], why: str) -> None:
    spoil(path)
    assert why in told(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a file away")
def test_a_file_of_another_user(path: Path) -> None:
    os.chown(path, 12345, 12345)
    assert "belongs to user 12345" in told(path)
