"""Where built things live, how they are named, and who may build.

A built thing is a folder named after its kind and the digest of what it is made from. It is made
under another name and renamed when complete, so a folder that exists under its own name is whole.
"""

import fcntl
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TextIO

KEY_LENGTH: Final = 16


def digest(*parts: str) -> str:
    """Name of a built thing: changes with every part, and parts cannot run into each other."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:KEY_LENGTH]


def cache_root() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "tunsec-lab"


@dataclass(frozen=True)
class Progress:
    """Lines with the elapsed time on the error stream; the command's own output stays clean."""

    started_at: float = field(default_factory=time.monotonic)
    quiet: bool = False

    def say(self, line: str) -> None:
        if not self.quiet:
            elapsed = time.monotonic() - self.started_at
            print(f"lab [{elapsed:6.1f}s] {line}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Cache:
    root: Path
    progress: Progress

    def place(self, kind: str, key: str) -> Path:
        return self.root / kind / key

    @property
    def downloads(self) -> Path:
        return self.root / "downloads"

    @contextmanager
    def building(self, kind: str, key: str) -> Iterator[Path]:
        """Holds the lock of one thing and yields the folder to make it in, which an interrupted
        run may have left partly filled. Publish with `publish`, or resume in a later run."""
        work = self.root / "work" / f"{kind}-{key}"
        with self.locked(f"{kind}-{key}"):
            work.mkdir(parents=True, exist_ok=True)
            yield work

    def publish(self, made: Path, kind: str, key: str) -> Path:
        place = self.place(kind, key)
        place.parent.mkdir(parents=True, exist_ok=True)
        made.rename(place)
        return place

    @contextmanager
    def locked(self, name: str) -> Iterator[None]:
        folder = self.root / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"{name}.lock").open("a+") as file:
            self._wait_for_lock(file, name)
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
            yield

    def _wait_for_lock(self, file: TextIO, name: str) -> None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "unknown"
            self.progress.say(f"{name}: another run (pid {owner}) is building it; waiting")
            fcntl.flock(file, fcntl.LOCK_EX)
            self.progress.say(f"{name}: the other run is done")


@dataclass(frozen=True)
class Stages:
    """Marks in a work folder which steps are complete, so that a later run starts after them."""

    work: Path

    def done(self, stage: str) -> bool:
        return (self.work / f".done-{stage}").exists()

    def mark(self, stage: str) -> None:
        (self.work / f".done-{stage}").touch()


def remove_tree(path: Path) -> None:
    """Removes a folder that may hold read-only folders of a root file system."""
    if not path.exists():
        return
    for folder, _, _ in os.walk(path):
        if not os.access(folder, os.W_OK | os.X_OK):
            Path(folder).chmod(0o700)
    shutil.rmtree(path)


def size_bytes(path: Path) -> int:
    if path.is_file():
        return path.stat().st_blocks * 512
    return sum(
        (Path(folder) / name).lstat().st_blocks * 512
        for folder, _, names in os.walk(path)
        for name in names
    )
