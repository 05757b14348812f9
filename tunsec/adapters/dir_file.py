"""The file directory: hosts publish records in a folder that all of them see.

Every call on the folder runs in a thread of its own, so a hung network file system delays nothing
here. Changes are told by inotify where it tells of all of them, else found by looking every
`POLL_AFTER`; after an outage the folder is found again by itself, and what this host had published
is put back if it is gone.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import unquote, urlsplit

from asyncinotify import Inotify, Mask

from tunsec.adapters.file_system import is_local
from tunsec.adapters.lane import Lane
from tunsec.adapters.record_folder import Changes, Places, RecordFolder
from tunsec.keying.paths import parse_path
from tunsec.keying.refusals import RecordRefused
from tunsec.model.clock import Seconds
from tunsec.model.errors import PolicyError, Problem, Unavailable
from tunsec.model.names import HostName
from tunsec.ports import Record

POLL_AFTER: Final = Seconds(2.0)
"""Where inotify does not tell, and while the folder is away."""
SAFETY_AFTER: Final = Seconds(60.0)
"""Where inotify tells: a look at stamps alone, in case an event was lost."""
HUNG_AFTER: Final = Seconds(10.0)
"""A folder that has not answered for so long is reported as away."""
PROBE_AFTER: Final = Seconds(1.0)
"""inotify on a local file system tells within milliseconds."""

PLACE_EVENTS: Final = (
    Mask.MOVED_FROM | Mask.DELETE | Mask.DELETE_SELF | Mask.MOVE_SELF | Mask.ONLYDIR
)
"""What tells that a folder goes away; UNMOUNT and IGNORED come unasked."""
GONE_EVENTS: Final = Mask.DELETE_SELF | Mask.MOVE_SELF | Mask.UNMOUNT | Mask.IGNORED
RECORD_EVENTS: Final = (
    PLACE_EVENTS | Mask.CLOSE_WRITE | Mask.MOVED_TO | Mask.CREATE | Mask.ATTRIB
)  # a claim is a new link

T = TypeVar("T")
Done = Callable[[Exception | None], None]


class Watching(StrEnum):
    """How changes are found."""

    NOTHING = "nothing"
    POLLING = "polling"
    INOTIFY = "inotify"


def parse_directory_url(url: str) -> Path:
    """The folder of a `file:///path`; raises PolicyError for everything else."""
    parts = urlsplit(url)
    remedy = "file:///path/of/a/folder that all hosts see"
    if parts.scheme in ("etcd", "etcds"):
        raise PolicyError([Problem("--directory", "etcd is not in this release", remedy)])
    if parts.scheme != "file":
        raise PolicyError([Problem("--directory", f"{url!r} is no file: URL", remedy)])
    if parts.netloc not in ("", "localhost") or parts.query or parts.fragment:
        raise PolicyError([Problem("--directory", f"{url!r} is more than a path", remedy)])
    path = Path(unquote(parts.path))
    if not path.is_absolute() or path == Path("/"):
        raise PolicyError([Problem("--directory", f"{url!r} names no folder", remedy)])
    return path


@dataclass(slots=True)
class _Batch:
    """One call of publish or withdraw, answered when all of its records are."""

    left: int
    done: Done
    error: Exception | None = None

    def settle(self, error: Exception | None) -> None:
        self.left -= 1
        self.error = self.error or error
        if self.left == 0:
            self.done(self.error)


@dataclass(frozen=True, slots=True)
class _Claim:
    """One call of claim."""

    service: str
    token: int
    body: bytes
    done: Callable[[int | Exception], None]


@dataclass(slots=True)
class _Pending:
    """The latest that was asked for one path, and everybody who waits for it or for less."""

    body: bytes | None
    batches: list[_Batch] = field(default_factory=list)


class FileDirectory:
    """`ports.Directory` on a folder, plus watching: `run()` must be running for anything to happen.

    `on_records(records, removed paths)` tells what is new, this host's own offer included, first
    everything there is. `on_available(error)` tells of each change: Unavailable, or None for well.
    `on_refused` tells of files that cannot be records at all. All are called on the event loop.
    """

    def __init__(
        self,
        root: Path,
        host: HostName,
        *,
        poll_after: Seconds = POLL_AFTER,
        safety_after: Seconds = SAFETY_AFTER,
        hung_after: Seconds = HUNG_AFTER,
    ) -> None:
        self._folder = RecordFolder(root, host)
        self._poll_after = poll_after
        self._safety_after = safety_after
        self._hung_after = hung_after
        self._tell_records: Callable[[list[Record], list[str]], None] = lambda _records, _gone: None
        self._tell_available: Callable[[Unavailable | None], None] = lambda _error: None
        self._tell_refused: Callable[[RecordRefused], None] = lambda _refused: None
        self._told: str | None = "not looked yet"
        self._pending: dict[str, _Pending] = {}
        self._published: dict[str, bytes] = {}
        self._claims: list[_Claim] = []
        self._claimed: dict[str, _Claim] = {}
        """The last of each service that landed."""
        self._write_wanted = asyncio.Event()
        self._changed = asyncio.Event()
        self._changed_paths: set[str] = set()
        self._look_everywhere = False
        self._disarmed = False
        self._checked_at = -float("inf")
        self._probe_seen = asyncio.Event()
        self._watching = Watching.NOTHING

    # What the daemon calls

    def on_records(self, tell: Callable[[list[Record], list[str]], None]) -> None:
        """Whom to tell of new and of removed records."""
        self._tell_records = tell

    def on_available(self, tell: Callable[[Unavailable | None], None]) -> None:
        """Whom to tell that the folder is away, or back."""
        self._tell_available = tell

    def on_refused(self, tell: Callable[[RecordRefused], None]) -> None:
        """Whom to tell of files that cannot be records."""
        self._tell_refused = tell

    @property
    def watching(self) -> Watching:
        """How changes are found now."""
        return self._watching

    def publish(self, records: Sequence[Record], *, done: Done) -> None:
        """Write records, each atomically; of several for one path only the latest is written.

        `done` gets None when all are durable, else the first error; what was there before then
        still is. A record that a later one overtook is answered with that one.
        """
        self._ask_for({record.path: record.body for record in records}, done)

    def withdraw(self, paths: Sequence[str], *, done: Done) -> None:
        """Delete records; that one is not there is no error."""
        self._ask_for(dict.fromkeys(paths), done)

    def claim(
        self, service: str, token: int, body: bytes, *, done: Callable[[int | Exception], None]
    ) -> None:
        """Make the claim if neither its token nor a higher one is there: 0, or what is there."""
        self._claims.append(_Claim(service, token, body, done))
        self._write_wanted.set()

    async def run(self) -> None:
        """Watch and write until cancelled."""
        reader, writer = Lane("directory-read"), Lane("directory-write")
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._write(writer))
                tasks.create_task(self._watch(reader, writer))
        finally:
            reader.close()
            writer.close()

    # Writing

    def _ask_for(self, bodies: dict[str, bytes | None], done: Done) -> None:
        batch = _Batch(len(bodies), done)
        for path, body in bodies.items():
            parse_path(path)
            earlier = self._pending.get(path)
            batches = [*(earlier.batches if earlier else ()), batch]
            self._pending[path] = _Pending(body, batches)
        if not bodies:
            asyncio.get_running_loop().call_soon(done, None)
        self._write_wanted.set()

    async def _write(self, lane: Lane) -> None:
        while True:
            await self._write_wanted.wait()
            self._write_wanted.clear()
            claims, self._claims = self._claims, []
            for claim in claims:
                claim.done(await self._make_claim(lane, claim))
            pending, self._pending = self._pending, {}
            bodies = {path: wanted.body for path, wanted in pending.items()}
            answers = await self._answer(lane, partial(self._folder.write, bodies))
            for path, wanted in pending.items():
                error = answers[path]
                if error is None and wanted.body is not None:
                    self._published[path] = wanted.body
                elif error is None:
                    self._published.pop(path, None)
                for batch in wanted.batches:
                    batch.settle(error)

    async def _make_claim(self, lane: Lane, claim: _Claim) -> int | Exception:
        ask = partial(self._folder.claim, claim.service, claim.token, claim.body)
        try:
            standing = await self._answer(lane, ask)
        except Unavailable as error:
            return error
        if standing == 0:
            self._claimed[claim.service] = claim
        return standing

    async def _put_back(self, lane: Lane) -> None:
        """Write again what this host had published and is no longer there, now and then."""
        now = asyncio.get_running_loop().time()
        if now < self._checked_at + self._safety_after or not (self._published or self._claimed):
            return
        self._checked_at = now
        for claim in tuple(self._claimed.values()):
            standing = await self._make_claim(lane, claim)
            above = isinstance(standing, int) and standing > claim.token
            if above and self._claimed[claim.service] is claim:
                del self._claimed[claim.service]
        paths = tuple(self._published)
        for path in await self._answer(lane, partial(self._folder.missing, paths)):
            if path in self._published and path not in self._pending:
                self._pending[path] = _Pending(self._published[path])
                self._write_wanted.set()

    # Watching

    async def _watch(self, reader: Lane, writer: Lane) -> None:
        while True:
            error = await self._watch_places(reader, writer)
            self._watching = Watching.NOTHING
            if error is not None:
                self._report(error)
                await asyncio.sleep(self._poll_after)

    async def _watch_places(self, reader: Lane, writer: Lane) -> Unavailable | None:
        """Watch these folders until they are away (Unavailable), or others stand there (None)."""
        outcome: Unavailable | None = None
        try:
            places = self._deliver(await self._answer(reader, self._folder.changes))
            self._report(None)
        except Unavailable as error:
            return error
        self._checked_at = -float("inf")
        self._disarmed = False
        with suppress(_Inotifyless), _new_inotify() as inotify:
            armed = await self._answer(reader, partial(self._arm, inotify))
            async with asyncio.TaskGroup() as tasks:
                listener = tasks.create_task(self._listen(inotify, armed))
                outcome = await self._follow(places, reader, writer, complete=armed.complete)
                listener.cancel()
            return outcome
        return await self._follow(places, reader, writer, complete=False)

    async def _follow(
        self, places: Places, reader: Lane, writer: Lane, *, complete: bool
    ) -> Unavailable | None:
        """Tell of changes, beginning with those since the first look."""
        everywhere = True
        try:
            told = complete and await self._probe(writer)
            self._watching = Watching.INOTIFY if told else Watching.POLLING
            while True:
                paths = None if everywhere else self._changed_paths
                self._changed_paths, self._look_everywhere = set(), False
                self._changed.clear()
                changes = await self._answer(reader, partial(self._folder.changes, paths))
                self._report(None)
                if self._deliver(changes) != places:
                    return None
                if everywhere:
                    await self._put_back(writer)
                everywhere = await self._wait()
                if self._disarmed:
                    return None
        except Unavailable as error:
            return error

    async def _wait(self) -> bool:
        """Wait for a change; True when it is time to look everywhere."""
        inotify = self._watching is Watching.INOTIFY
        try:
            async with asyncio.timeout(self._safety_after if inotify else self._poll_after):
                await self._changed.wait()
        except TimeoutError:
            return True
        return self._look_everywhere

    def _arm(self, inotify: Inotify) -> "_Armed":
        """Set the watches (blocking); what is not complete must be polled."""
        prefixes: dict[int, str] = {}
        above: dict[int, frozenset[str]] = {}
        try:
            for place, names in self._folder.above:
                above[inotify.add_watch(place, PLACE_EVENTS).wd] = names
            for place, prefix in self._folder.watched:
                prefixes[inotify.add_watch(place, RECORD_EVENTS).wd] = prefix
            return _Armed(prefixes, above, complete=is_local(self._folder.root))
        except OSError:  # no watches left, or the folder went: polling finds what is true
            return _Armed(prefixes, above, complete=False)

    async def _listen(self, inotify: Inotify, armed: "_Armed") -> None:
        while True:
            event = await inotify.get()
            name = None if event.name is None else str(event.name)
            watch = event.watch
            if watch is None or Mask.Q_OVERFLOW & event.mask:
                self._look_everywhere = True
            elif name is None:
                # The watched folder itself. One made anew may even get the old inode number.
                self._disarmed = self._disarmed or bool(event.mask & GONE_EVENTS)
                self._look_everywhere = True
            elif name in armed.above.get(watch.wd, ()):
                self._disarmed = self._look_everywhere = True
            elif name == self._folder.probe_name:
                self._probe_seen.set()
                continue
            elif watch.wd in armed.prefixes and not name.startswith("."):
                self._changed_paths.add(armed.prefixes[watch.wd] + name)
            else:
                continue
            self._changed.set()

    async def _probe(self, lane: Lane) -> bool:
        """Whether a change is really told."""
        self._probe_seen.clear()
        if not await self._answer(lane, self._folder.probe):
            return False
        try:
            async with asyncio.timeout(PROBE_AFTER):
                await self._probe_seen.wait()
        except TimeoutError:
            return False
        return True

    def _deliver(self, changes: Changes) -> Places:
        for refused in changes.refused:
            self._tell_refused(refused)
        if changes.records or changes.removed:
            self._tell_records(changes.records, changes.removed)
        return changes.places

    async def _answer(self, lane: Lane, call: Callable[[], T]) -> T:
        """The result of a call in a lane; reports a folder that does not answer."""
        answer = lane.ask(call)
        try:
            done, _ = await asyncio.wait({answer}, timeout=self._hung_after)
            if not done:
                late = f"{self._folder.root}: no answer for {self._hung_after:g} s"
                self._report(Unavailable(late))
                await asyncio.wait({answer})
                self._look_everywhere = True  # and so find out how the folder is now
                self._changed.set()
            return await answer
        finally:
            answer.cancel()  # of no effect once it is there

    def _report(self, error: Unavailable | None) -> None:
        said = None if error is None else str(error)
        if said != self._told:
            self._told = said
            self._tell_available(error)


@dataclass(frozen=True, slots=True)
class _Armed:
    """What watches are for, by descriptor: records under a prefix, or folders in another.

    `complete` when they tell of every change.
    """

    prefixes: dict[int, str]
    above: dict[int, frozenset[str]]
    complete: bool


class _Inotifyless(Exception):
    """This user has no inotify instance left (max_user_instances), or the kernel has none."""


def _new_inotify() -> Inotify:
    try:
        return Inotify()
    except OSError:
        raise _Inotifyless from None
