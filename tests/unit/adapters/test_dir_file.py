"""The file directory: two hosts on one folder, through everything that happens to folders."""

# ruff: noqa: ASYNC240 - these scenarios have the loop to themselves

import asyncio
import shutil
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from tunsec.adapters import dir_file
from tunsec.adapters.dir_file import FileDirectory, Watching, parse_directory_url
from tunsec.adapters.lane import Lane
from tunsec.keying.refusals import RecordRefused, RefusalReason
from tunsec.model.clock import Seconds
from tunsec.model.errors import PolicyError, Unavailable
from tunsec.model.names import HostName
from tunsec.ports import Directory, Record

PATIENCE = 10.0
POLL = Seconds(0.02)
NEVER = Seconds(3_600.0)


class Host:
    """One host's directory, and what it was told."""

    def __init__(
        self,
        root: Path,
        name: str,
        *,
        poll_after: Seconds = POLL,
        safety_after: Seconds = NEVER,
        hung_after: Seconds = NEVER,
    ) -> None:
        self.directory = FileDirectory(
            root,
            HostName(name),
            poll_after=poll_after,
            safety_after=safety_after,
            hung_after=hung_after,
        )
        self.records: dict[str, bytes] = {}
        self.history: list[bytes] = []
        self.states: list[str] = []
        self.refusals: list[RefusalReason] = []
        self.answers: list[Exception | None] = []
        self._news = asyncio.Event()
        self.directory.on_records(self._on_records)
        self.directory.on_available(self._on_available)
        self.directory.on_refused(self._on_refused)

    def _on_records(self, records: list[Record], removed: list[str]) -> None:
        for record in records:
            self.records[record.path] = record.body
            self.history.append(record.body)
        for path in removed:
            del self.records[path]
        self._news.set()

    def _on_available(self, error: Unavailable | None) -> None:
        self.states.append("well" if error is None else str(error))
        self._news.set()

    def _on_refused(self, refused: RecordRefused) -> None:
        self.refusals.append(refused.reason)
        self._news.set()

    def _on_done(self, error: Exception | None) -> None:
        self.answers.append(error)
        self._news.set()

    def publish(self, *records: tuple[str, bytes]) -> None:
        wrapped = [Record(path, body) for path, body in records]
        self.directory.publish(wrapped, done=self._on_done)

    def withdraw(self, *paths: str) -> None:
        self.directory.withdraw(paths, done=self._on_done)

    async def until(self, true: Callable[[], bool]) -> None:
        """Wait until news make it true."""
        async with asyncio.timeout(PATIENCE):
            while not true():
                self._news.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(0.05):
                        await self._news.wait()

    async def watching(self, how: Watching = Watching.INOTIFY) -> None:
        await self.until(lambda: self.directory.watching is how)


@asynccontextmanager
async def running(*hosts: Host) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(host.directory.run()) for host in hosts]
    try:
        yield
        for task in tasks:
            assert not task.done(), task
    finally:
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if not isinstance(result, asyncio.CancelledError):
                raise AssertionError(result)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "records").mkdir()
    return tmp_path / "records"


def test_it_is_the_directory_that_the_daemon_needs(root: Path) -> None:
    directory: Directory = FileDirectory(root, HostName("db1"))
    assert directory


def test_what_one_publishes_the_other_is_told_by_inotify(root: Path) -> None:
    async def scenario() -> None:
        one, two = Host(root, "db1", poll_after=NEVER), Host(root, "db2", poll_after=NEVER)
        async with running(one, two):
            await one.watching()
            await two.watching()
            one.publish(("offers/db1", b"offer"), ("confirmations/db2/db1", b"word"))
            await two.until(lambda: len(two.records) == 2)
            assert two.records == {"offers/db1": b"offer", "confirmations/db2/db1": b"word"}
            await one.until(lambda: bool(one.answers) and "offers/db1" in one.records)
            assert one.answers == [None]
            assert "confirmations/db2/db1" not in one.records, "nothing that is for others"
            one.withdraw("confirmations/db2/db1", "offers/gone")
            await two.until(lambda: "confirmations/db2/db1" not in two.records)
            await one.until(lambda: one.answers == [None, None])

    asyncio.run(scenario())


def test_what_was_there_before_is_told_first(root: Path) -> None:
    async def scenario() -> None:
        (root / "offers").mkdir()
        (root / "offers" / "db2").write_bytes(b"earlier")
        host = Host(root, "db1")
        async with running(host):
            await host.until(lambda: host.records == {"offers/db2": b"earlier"})
            assert host.states == ["well"]

    asyncio.run(scenario())


def test_the_latest_of_one_path_is_written_and_all_are_answered(root: Path) -> None:
    async def scenario() -> None:
        host, reader = Host(root, "db1"), Host(root, "db2")
        for number in range(50):
            host.publish(("offers/db1", b"%d" % number))
        async with running(host, reader):
            await host.until(lambda: len(host.answers) == 50)
            assert host.answers == [None] * 50
            await reader.until(lambda: reader.records.get("offers/db1") == b"49")
            assert reader.history == [b"49"]

    asyncio.run(scenario())


def test_polling_finds_what_inotify_does_not_tell(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a network file system, where another machine's writes raise no event here."""
    monkeypatch.setattr(dir_file, "is_local", lambda _path: False)

    async def scenario() -> None:
        host = Host(root, "db1")
        async with running(host):
            await host.watching(Watching.POLLING)
            (root / "offers" / "db2").write_bytes(b"x")
            await host.until(lambda: host.records == {"offers/db2": b"x"})

    asyncio.run(scenario())


def test_without_inotify_there_is_polling(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left() -> object:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(dir_file, "Inotify", none_left)

    async def scenario() -> None:
        host = Host(root, "db1")
        async with running(host):
            await host.watching(Watching.POLLING)
            (root / "offers" / "db2").write_bytes(b"x")
            await host.until(lambda: host.records == {"offers/db2": b"x"})

    asyncio.run(scenario())


def test_the_safety_look_finds_a_lost_event_and_puts_back_what_was_deleted(root: Path) -> None:
    async def scenario() -> None:
        host = Host(root, "db1", safety_after=Seconds(0.05))
        async with running(host):
            await host.watching()
            host.publish(("confirmations/db2/db1", b"word"))
            await host.until(lambda: host.answers == [None])
            written = root / "confirmations" / "db2" / "db1"
            written.unlink()  # not a folder that this host watches
            await host.until(written.exists)
            assert written.read_bytes() == b"word"
            host.withdraw("confirmations/db2/db1")
            await host.until(lambda: not written.exists())
            looks = len(host.history)
            (root / "offers" / "db9").symlink_to("/etc/passwd")  # raises no event we watch for
            await host.until(lambda: host.refusals == [RefusalReason.NOT_A_FILE])
            assert len(host.history) == looks
            assert not written.exists()

    asyncio.run(scenario())


def test_a_folder_that_goes_and_comes_back(root: Path) -> None:
    async def scenario() -> None:
        host = Host(root, "db1")
        async with running(host):
            await host.watching()
            host.publish(("offers/db1", b"mine"))
            (root / "offers" / "db2").write_bytes(b"x")
            await host.until(lambda: len(host.records) == 2)
            for life in range(3):
                root.rename(root.with_name("away"))
                await host.until(lambda: host.states[-1] != "well")
                assert len(host.records) == 2, "an outage takes nothing away"
                root.with_name("away").rename(root)
                await host.until(lambda: host.states[-1] == "well")
                await host.watching()
                (root / "offers" / "db2").write_bytes(b"life %d" % life)
                await host.until(lambda: host.history[-1].startswith(b"life"))
                assert host.history.pop() == b"life %d" % life
            assert host.states == ["well", *[f"{root}: No such file or directory", "well"] * 3]

    asyncio.run(scenario())


def test_a_folder_made_anew_gets_back_what_was_published(root: Path) -> None:
    async def scenario() -> None:
        host, other = Host(root, "db1"), Host(root, "db2")
        async with running(host, other):
            await host.watching()
            await other.watching()
            host.publish(("offers/db1", b"mine"), ("confirmations/db2/db1", b"word"))
            await other.until(lambda: len(other.records) == 2)
            root.rename(root.with_name("away"))
            await host.until(lambda: host.states[-1] != "well")
            root.mkdir()
            mine = root / "offers" / "db1", root / "confirmations" / "db2" / "db1"
            await host.until(lambda: all(path.exists() for path in mine))
            await other.until(lambda: other.states[-1] == "well" and len(other.records) == 2)
            await host.watching()
            await other.watching()
            host.publish(("offers/db1", b"next"))
            await other.until(lambda: other.records["offers/db1"] == b"next")

    asyncio.run(scenario())


@pytest.mark.parametrize("deleted", [False, True])
@pytest.mark.parametrize("part", ["offers", "confirmations", "confirmations/db1"])
def test_only_a_part_made_anew(root: Path, part: str, deleted: bool) -> None:
    async def scenario() -> None:
        host = Host(root, "db1")
        async with running(host):
            await host.watching()
            host.publish(("offers/db1", b"mine"))
            await host.until(lambda: host.answers == [None])
            if deleted:  # the next folder may get the same inode number
                shutil.rmtree(root / part, ignore_errors=True)  # the host is quick
            else:
                (root / part).rename(root / "aside")
            await host.until(lambda: (root / part).exists())
            await host.until(lambda: (root / "offers" / "db1").exists())
            await host.watching()
            (root / "offers" / "db2").write_bytes(b"x")
            (root / "confirmations" / "db1" / "db2").write_bytes(b"y")
            await host.until(lambda: host.records.get("offers/db2") == b"x")
            await host.until(lambda: host.records.get("confirmations/db1/db2") == b"y")

    asyncio.run(scenario())


def test_publishing_into_nothing_is_answered_with_an_error(root: Path) -> None:
    async def scenario() -> None:
        root.rmdir()
        host = Host(root, "db1")
        async with running(host):
            host.publish(("offers/db1", b"x"))
            await host.until(lambda: len(host.answers) == 1)
            assert isinstance(host.answers[0], Unavailable)
            assert "No such file" in str(host.answers[0])
            await host.until(lambda: host.states == [f"{root}: No such file or directory"])
            root.mkdir()
            await host.until(lambda: host.states[-1] == "well")
            assert not (root / "offers" / "db1").exists(), "what failed is its author's to repeat"
            host.publish(("offers/db1", b"y"))
            await host.until(lambda: host.answers[1:] == [None])

    asyncio.run(scenario())


def test_a_hung_file_system_stalls_nothing_and_is_reported(root: Path) -> None:
    """A call that does not return, as on NFS without a server; the loop goes on meanwhile."""
    release = threading.Event()

    async def scenario() -> None:
        host = Host(root, "db1", hung_after=Seconds(0.05))
        async with running(host):
            await host.watching()
            whole = host.directory._folder.write

            def hung(bodies: dict[str, bytes | None]) -> dict[str, Exception | None]:
                release.wait(PATIENCE)
                return whole(bodies)

            host.directory._folder.write = hung  # type: ignore[method-assign,assignment]
            host.publish(("offers/db1", b"x"))
            await host.until(lambda: host.states[-1] != "well")
            assert "no answer for 0.05 s" in host.states[-1]
            (root / "offers" / "db2").write_bytes(b"y")
            await host.until(lambda: host.records == {"offers/db2": b"y"})
            assert host.answers == []
            release.set()
            await host.until(lambda: host.answers == [None])
            await host.until(lambda: host.states[-1] == "well")

    asyncio.run(scenario())


def test_a_hung_call_does_not_keep_the_process(root: Path) -> None:
    lane = Lane("test")
    never = threading.Event()

    async def scenario() -> None:
        answer = lane.ask(lambda: never.wait(PATIENCE * 10))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(answer, 0.05)
        lane.close()

    asyncio.run(scenario())
    never.set()


def test_errors_come_back_from_a_lane() -> None:
    def broken() -> int:
        raise ValueError("broken")

    async def scenario() -> None:
        lane = Lane("test")
        assert await lane.ask(lambda: 5) == 5
        with pytest.raises(ValueError, match="broken"):
            await lane.ask(broken)
        lane.close()

    asyncio.run(scenario())


def test_idle_costs_nothing(root: Path) -> None:
    """Where inotify tells, nobody looks between two safety looks."""

    async def scenario() -> None:
        host = Host(root, "db1", poll_after=NEVER)
        looks = 0
        whole = host.directory._folder.changes

        def counted(paths: set[str] | None = None) -> object:
            nonlocal looks
            looks += 1
            return whole(paths)

        host.directory._folder.changes = counted  # type: ignore[method-assign,assignment]
        async with running(host):
            await host.watching()
            await host.until(lambda: looks >= 2)
            (root / "offers" / ".new-of-another").write_bytes(b"x")  # no record, no look
            (root / "offers" / "db2").write_bytes(b"x")
            await host.until(lambda: len(host.records) == 1)
            assert looks <= 4

    asyncio.run(scenario())


def test_urls() -> None:
    assert parse_directory_url("file:///srv/records") == Path("/srv/records")
    assert parse_directory_url("file:///srv/a%20b") == Path("/srv/a b")
    for url, why in (
        ("etcd://db1:2379", "not in this release"),
        ("http://x/y", "no file: URL"),
        ("/srv/records", "no file: URL"),
        ("file://host/srv", "more than a path"),
        ("file:///srv?x=1", "more than a path"),
        ("file:relative", "names no folder"),
        ("file:///", "names no folder"),
        ("", "no file: URL"),
    ):
        with pytest.raises(PolicyError, match=why):
            parse_directory_url(url)
