"""The folder of the file directory: blocking calls on it, each safe against what others put there.

::

    DIR/offers/HOST
    DIR/confirmations/READER/AUTHOR
    DIR/claims/SERVICE.TOKEN

Several hosts see DIR. Files are replaced in one act and made durable; names and kinds of files are
checked, symbolic links are not followed below DIR, reading is bounded. DIR itself is never made:
where it is missing it is probably not mounted. Errors of the folder as a whole are Unavailable,
a file that cannot be a record is a RecordRefused among the changes.
"""

import errno
import hashlib
import os
import stat
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tunsec.keying.paths import ClaimPath, parse_path
from tunsec.keying.refusals import RecordRefused, RefusalReason
from tunsec.model.errors import Unavailable
from tunsec.model.names import HostName
from tunsec.ports import Record

OFFERS: Final = "offers"
CONFIRMATIONS: Final = "confirmations"
CLAIMS: Final = "claims"
RECORD_MODE: Final = 0o644
MAX_ENTRIES: Final = 65_536
FILE_ERRORS: Final = frozenset({errno.EACCES, errno.EPERM, errno.ENXIO, errno.EIO})
"""Errors of one file; all others are the folder's."""

FileId = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Places:
    """Which folders these are; when any of it changes, watches must be set again."""

    root: FileId
    offers: FileId
    confirmations: FileId
    claims: FileId


@dataclass(frozen=True, slots=True)
class Stamp:
    """What tells that a file was not changed since."""

    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


@dataclass(slots=True)
class Changes:
    """What is new since the last look."""

    places: Places
    records: list[Record] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    refused: list[RecordRefused] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Seen:
    stamp: Stamp
    digest: bytes
    """SHA-256 of the content that was told last; empty when none ever was."""


@dataclass(slots=True)
class _Look:
    """One look at the folders: what it found, and what will have been seen once it is told."""

    changes: Changes
    seen: dict[str, _Seen]

    def at_folder(self, folder: int, prefix: str, names: frozenset[str] | None) -> None:
        """Look at these names, or at all."""
        present = _present(folder) if names is None else names
        for name in sorted(present):
            if not name.startswith("."):
                self._at_file(folder, name, f"{prefix}/{name}")
        if names is None:
            for path in tuple(self.seen):
                where, _, name = path.rpartition("/")
                if where == prefix and name not in present:
                    self._gone(path)

    def _at_file(self, folder: int, name: str, path: str) -> None:
        seen = self.seen.get(path)
        try:
            stamp = _stamp(os.stat(name, dir_fd=folder, follow_symlinks=False))
            if seen is not None and seen.stamp == stamp:
                return
            body, stamp = _read(folder, name, path)
        except FileNotFoundError:
            self._gone(path)
            return
        except RecordRefused as refused:
            self.changes.refused.append(refused)
            self.seen[path] = _Seen(stamp, seen.digest if seen else b"")
            return
        digest = hashlib.sha256(body).digest()
        self.seen[path] = _Seen(stamp, digest)
        if seen is None or seen.digest != digest:
            self.changes.records.append(Record(path, body))

    def _gone(self, path: str) -> None:
        seen = self.seen.pop(path, None)
        if seen is not None and seen.digest:
            self.changes.removed.append(path)


class RecordFolder:
    """The directory's folder as one host uses it."""

    def __init__(self, root: Path, host: HostName) -> None:
        self.root = root
        self.host = host
        self._inbox = f"{CONFIRMATIONS}/{host}"
        # Leftovers of a daemon that was killed are known by this; no record begins with a dot.
        self._temporary = f".new-{hashlib.sha256(host.encode()).hexdigest()[:16]}-"
        self._writes = 0
        self._cleaned: set[FileId] = set()
        self._places: Places | None = None
        self._places_lock = threading.Lock()
        self._seen: dict[str, _Seen] = {}

    @property
    def watched(self) -> tuple[tuple[Path, str], ...]:
        """Folders whose changes concern this host, with the prefix of the records in them."""
        return (
            (self.root / OFFERS, f"{OFFERS}/"),
            (self.root / CONFIRMATIONS / self.host, f"{self._inbox}/"),
            (self.root / CLAIMS, f"{CLAIMS}/"),
        )

    @property
    def above(self) -> tuple[tuple[Path, frozenset[str]], ...]:
        """Folders above those, with the names in each that lead there."""
        return (
            (self.root, frozenset({OFFERS, CONFIRMATIONS, CLAIMS})),
            (self.root / CONFIRMATIONS, frozenset({self.host})),
        )

    # Reading (one thread)

    def changes(self, paths: Iterable[str] | None = None) -> Changes:
        """What is new at these paths, or everywhere; raises Unavailable and forgets nothing."""
        with self._opened() as (root, places):
            look = _Look(Changes(places), dict(self._seen))
            try:
                for prefix in (OFFERS, self._inbox, CLAIMS):
                    names = None if paths is None else _names_below(prefix, paths)
                    if names is None or names:
                        with _entered(root, prefix) as folder:
                            look.at_folder(folder, prefix, names)
            except OSError as error:
                raise _unavailable(self.root, error) from None
            self._seen = look.seen  # only now: what was not told must not count as seen
            return look.changes

    def missing(self, paths: Iterable[str]) -> tuple[str, ...]:
        """Those of these records that are not there; raises Unavailable."""
        with self._opened() as (root, _):
            try:
                return tuple(path for path in paths if not _exists(root, path))
            except OSError as error:
                raise _unavailable(self.root, error) from None

    # Writing (one thread)

    def write(self, bodies: Mapping[str, bytes | None]) -> dict[str, Exception | None]:
        """Write records, or remove them where the body is None; one answer per path.

        Each record is replaced in one act and durable when the answer is None.
        """
        answers: dict[str, Exception | None] = dict.fromkeys(bodies)
        try:
            with self._opened() as (root, _):
                for path, body in bodies.items():
                    try:
                        self._write_one(root, path, body)
                    except OSError as error:
                        answers[path] = _unavailable(self.root / path, error)
                    except (Unavailable, RecordRefused) as error:
                        answers[path] = error
        except Unavailable as error:
            return dict.fromkeys(bodies, error)
        return answers

    def _write_one(self, root: int, path: str, body: bytes | None) -> None:
        parse_path(path)
        prefix, _, name = path.rpartition("/")
        if body is None:
            with suppress(FileNotFoundError), _entered(root, prefix) as folder:
                os.unlink(name, dir_fd=folder)
                os.fsync(folder)
            return
        with _entered(root, prefix, make=True) as folder:
            self._clean(folder)
            self._writes += 1
            temporary = f"{self._temporary}{os.getpid()}-{self._writes}"
            try:
                _write_file(folder, temporary, body)
                os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
            except BaseException:
                with suppress(OSError):
                    os.unlink(temporary, dir_fd=folder)
                raise
            os.fsync(folder)

    def claim(self, service: str, token: int, body: bytes) -> int:
        """Make the file of a token if neither it nor one of a higher token is there: 0, or the
        highest that is. Raises Unavailable; then it may have been made.

        A hard link is made by one host alone. The look before it says what is above; the one after
        it finds a claim whose author has removed, as lower than its own, the one that barred ours.
        """
        path = ClaimPath(service, token)
        try:
            with self._opened() as (root, _), _entered(root, CLAIMS) as folder:
                self._clean(folder)
                highest = max(_tokens(folder, service), default=0)
                if highest >= token:
                    return highest
                self._writes += 1
                temporary = f"{self._temporary}{os.getpid()}-{self._writes}"
                name = str(path).rpartition("/")[2]
                try:
                    _write_file(folder, temporary, body)
                    os.link(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
                except FileExistsError:
                    return max(_tokens(folder, service), default=token)
                finally:
                    with suppress(FileNotFoundError):
                        os.unlink(temporary, dir_fd=folder)
                tokens = _tokens(folder, service)
                highest = max(tokens, default=token)
                outdone = highest > token
                for lower in [token] if outdone else tokens - {token}:
                    with suppress(FileNotFoundError):
                        os.unlink(str(ClaimPath(service, lower)).rpartition("/")[2], dir_fd=folder)
                os.fsync(folder)
                return highest if outdone else 0
        except OSError as error:
            raise _unavailable(self.root / str(path), error) from None

    def probe(self) -> bool:
        """Make and remove a file that is no record, in the folder of offers.

        Whoever watches the folder sees it; False when the folder cannot be written.
        """
        with self._opened() as (root, _):
            try:
                with _entered(root, OFFERS) as folder:
                    self._clean(folder)
                    _write_file(folder, self.probe_name, b"")
                    os.unlink(self.probe_name, dir_fd=folder)
            except OSError:
                return False
        return True

    @property
    def probe_name(self) -> str:
        """The name of that file."""
        return f"{self._temporary}probe"

    def _clean(self, folder: int) -> None:
        """Remove what an earlier life of this host's daemon left behind, once per folder."""
        here = _file_id(os.fstat(folder))
        if here in self._cleaned:
            return
        for name in _present(folder):
            if name.startswith(self._temporary):
                os.unlink(name, dir_fd=folder)
        self._cleaned.add(here)

    # The folder itself (both threads)

    @contextmanager
    def _opened(self) -> Iterator[tuple[int, Places]]:
        """DIR, with its folders in place; raises Unavailable."""
        try:
            root = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise _unavailable(self.root, error) from None
        try:
            with self._places_lock:
                places = self._settle(root)
            yield root, places
        finally:
            os.close(root)

    def _settle(self, root: int) -> Places:
        try:
            here = _file_id(os.fstat(root))
            if self._places is not None and here[0] != self._places.root[0]:
                self._check_mounted(root)
            with _entered(root, OFFERS, make=True) as folder:
                offers = _file_id(os.fstat(folder))
            with _entered(root, self._inbox, make=True) as folder:
                confirmations = _file_id(os.fstat(folder))
            with _entered(root, CLAIMS, make=True) as folder:
                claims = _file_id(os.fstat(folder))
        except OSError as error:
            raise _unavailable(self.root, error) from None
        self._places = Places(here, offers, confirmations, claims)
        return self._places

    def _check_mounted(self, root: int) -> None:
        """Another file system without records: the bare mount point, unless freshly mounted.

        Records written there would be seen by nobody.
        """
        if not _exists(root, OFFERS) and not self.root.is_mount():
            raise Unavailable(f"{self.root}: the file system of the directory is not mounted")


def _names_below(prefix: str, paths: Iterable[str]) -> frozenset[str]:
    return frozenset(
        name for folder, _, name in (path.rpartition("/") for path in paths) if folder == prefix
    )


def _tokens(folder: int, service: str) -> set[int]:
    """Tokens by which a service is claimed."""
    found: set[int] = set()
    for name in _present(folder):
        with suppress(RecordRefused):
            path = parse_path(f"{CLAIMS}/{name}")
            if isinstance(path, ClaimPath) and path.service == service:
                found.add(path.token)
    return found


def _present(folder: int) -> frozenset[str]:
    with os.scandir(folder) as entries:
        names = frozenset(entry.name for _, entry in zip(range(MAX_ENTRIES), entries, strict=False))
    if len(names) == MAX_ENTRIES:
        raise OSError(errno.EOVERFLOW, f"{MAX_ENTRIES} entries or more in one folder")
    return names


def _exists(root: int, path: str) -> bool:
    try:
        os.stat(path, dir_fd=root, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


@contextmanager
def _entered(root: int, path: str, *, make: bool = False) -> Iterator[int]:
    """A folder below DIR, reached without symbolic links, made if wished with DIR's own mode."""
    folder = os.dup(root)
    try:
        for name in path.split("/"):
            below = _enter(folder, name, make=make, mode=os.fstat(root).st_mode & 0o1777)
            os.close(folder)
            folder = below
        yield folder
    finally:
        os.close(folder)


def _enter(folder: int, name: str, *, make: bool, mode: int) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(name, flags, dir_fd=folder)
    except FileNotFoundError:
        if not make:
            raise
    try:
        os.mkdir(name, 0o700, dir_fd=folder)
    except FileExistsError:
        return os.open(name, flags, dir_fd=folder)  # another host was faster
    below = os.open(name, flags, dir_fd=folder)
    os.fchmod(below, mode)  # the umask must not shut other hosts out
    os.fsync(folder)
    return below


def _read(folder: int, name: str, path: str) -> tuple[bytes, Stamp]:
    """The bytes of a record, one more than allowed at most: who decodes it sees it is too long."""
    limit = parse_path(path).limit
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(name, flags, dir_fd=folder)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _no_file(path, "a symbolic link is not followed") from None
        if error.errno in FILE_ERRORS:
            raise RecordRefused(RefusalReason.UNREADABLE, path, _reason(error)) from None
        raise
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise _no_file(path, "it is no regular file")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(limit + 1), _stamp(status)
    finally:
        os.close(descriptor)


def _no_file(path: str, detail: str) -> RecordRefused:
    return RecordRefused(RefusalReason.NOT_A_FILE, path, detail)


def _write_file(folder: int, name: str, body: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(name, flags, RECORD_MODE, dir_fd=folder)
    with os.fdopen(descriptor, "wb", buffering=0) as file:
        os.fchmod(descriptor, RECORD_MODE)
        left = memoryview(body)
        while left:
            left = left[file.write(left) :]
        os.fsync(descriptor)


def _stamp(status: os.stat_result) -> Stamp:
    return Stamp(status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _file_id(status: os.stat_result) -> FileId:
    return status.st_dev, status.st_ino


def _unavailable(path: Path, error: OSError) -> Unavailable:
    return Unavailable(f"{path}: {_reason(error)}")


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
