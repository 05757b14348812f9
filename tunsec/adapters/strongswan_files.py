"""The configuration files of a running charon, read as that charon sees them.

Only `tunsec doctor` reads them: some settings cannot be seen over VICI. Nothing is ever written.
"""

import glob
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tunsec.model.clock import WallTime
from tunsec.model.errors import Unavailable
from tunsec.wire.strongswan_conf import Settings, parse_settings

VARIABLE: Final = "STRONGSWAN_CONF"
"""What charon takes its file from (library.c)."""
PLACES: Final = (Path("/etc/strongswan.conf"), Path("/etc/strongswan/strongswan.conf"))
"""What distributions compile in."""
MAX_BYTES: Final = 1 << 20
_START_TICKS: Final = 19
"""Place of starttime behind the name in /proc/PID/stat (proc(5): field 22)."""


@dataclass(frozen=True, slots=True)
class CharonProcess:
    """Where a charon reads its files, and where and since when it runs."""

    conf: Path | None
    """None when there is no file at any place that is known."""
    root: Path = Path("/")
    """Its root folder as seen from here."""
    started_at: WallTime | None = None
    """None: not known."""
    same_network: bool = True
    """Whether it lives in the network namespace of who asks."""


@dataclass(frozen=True, slots=True)
class FoundSettings:
    """What the files say, and when the newest of them was written."""

    settings: Settings
    changed_at: WallTime


def find_process(pid: int, *, proc: Path = Path("/proc")) -> CharonProcess:
    """The charon with this process id; raises Unavailable when it may not be looked at."""
    process = proc / str(pid)
    try:
        environment = (process / "environ").read_bytes()
        ticks = int((process / "stat").read_text().rpartition(")")[2].split()[_START_TICKS])
        folder = (process / "cwd").readlink()
        # Starts the look-up in charon's own mount namespace (proc(5)).
        root = process / "root"
        there = next((place for place in PLACES if _inside(root, place).exists()), None)
        same_network = (process / "ns/net").samefile(proc / "thread-self/ns/net")
    except (OSError, ValueError, IndexError) as error:
        raise Unavailable(f"process {pid} cannot be looked at: {error}") from error
    named = [
        folder / os.fsdecode(entry.partition(b"=")[2])
        for entry in environment.split(b"\0")
        if entry.startswith(f"{VARIABLE}=".encode())
    ]
    running = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return CharonProcess(
        named[0] if named else there,
        root=root,
        started_at=WallTime(time.time() - running),
        same_network=same_network,
    )


def read_settings(process: CharonProcess) -> FoundSettings:
    """Raises Unavailable when a file cannot be read, Malformed when charon would refuse it."""
    if process.conf is None:
        return FoundSettings(Settings({}, {}), WallTime(0.0))
    reader = _Reader(process.root)
    settings = parse_settings(reader.text(process.conf), str(process.conf), reader.include)
    return FoundSettings(settings, WallTime(reader.changed_at))


@dataclass(slots=True)
class _Reader:
    root: Path
    changed_at: float = 0.0

    def text(self, path: Path) -> str:
        inside = _inside(self.root, path)
        try:
            with inside.open("rb") as file:
                raw = file.read(MAX_BYTES + 1)
                self.changed_at = max(self.changed_at, os.fstat(file.fileno()).st_mtime)
        except OSError as error:
            raise Unavailable(f"{path} cannot be read: {error.strerror}") from error
        if len(raw) > MAX_BYTES:
            raise Unavailable(f"{path} has more than {MAX_BYTES} bytes")
        return raw.decode(errors="surrogateescape")

    def include(self, pattern: str, name: str) -> Iterator[tuple[str, str]]:
        """Files that match, in the order of their names; a relative pattern starts where it
        stands."""
        wanted = str((Path(name).parent / pattern).relative_to("/"))
        for match in sorted(glob.glob(wanted, root_dir=self.root)):  # noqa: PTH207 - as glob(3)
            if (self.root / match).is_file():
                yield f"/{match}", self.text(Path("/") / match)


def _inside(root: Path, path: Path) -> Path:
    return root / path.relative_to("/")
