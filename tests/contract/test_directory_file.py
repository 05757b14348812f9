"""The contract of ports.Directory on a folder."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.contract.directory_contract import DirectoryContract, Meeting, Member
from tunsec.adapters.dir_file import FileDirectory
from tunsec.model.clock import Seconds
from tunsec.model.names import HostName
from tunsec.ports import Record

PATIENCE = 20.0
"""Seconds."""
POLL = Seconds(0.02)

Done = Callable[[Exception | None], None]


@dataclass(frozen=True, slots=True)
class OnLoop:
    """A FileDirectory called from outside its loop; whoever waits wakes up at an answer."""

    loop: asyncio.AbstractEventLoop
    directory: FileDirectory
    news: asyncio.Event

    def publish(self, records: Sequence[Record], *, done: Done) -> None:
        """On the loop."""
        self._call(lambda: self.directory.publish(records, done=self._waking(done)))

    def withdraw(self, paths: Sequence[str], *, done: Done) -> None:
        """On the loop."""
        self._call(lambda: self.directory.withdraw(paths, done=self._waking(done)))

    def claim(
        self, service: str, token: int, body: bytes, *, done: Callable[[int | Exception], None]
    ) -> None:
        """On the loop."""

        def answered(found: int | Exception) -> None:
            done(found)
            self.news.set()

        self._call(lambda: self.directory.claim(service, token, body, done=answered))

    def _call(self, act: Callable[[], None]) -> None:
        async def call() -> None:
            act()

        self.loop.run_until_complete(call())

    def _waking(self, done: Done) -> Done:
        def answered(error: Exception | None) -> None:
            done(error)
            self.news.set()

        return answered


class FolderMeeting:
    """Hosts on one folder, each with its own FileDirectory on one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, root: Path) -> None:
        self._loop = loop
        self._root = root
        self._hidden = root.with_name("hidden")
        self._news = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def join(self, name: str) -> Member:
        """A host begins to watch."""
        directory = FileDirectory(self._root, HostName(name), poll_after=POLL, safety_after=POLL)
        member = Member(OnLoop(self._loop, directory, self._news))

        def told(records: list[Record], _removed: list[str]) -> None:
            member.hear(records)
            self._news.set()

        directory.on_records(told)
        self._tasks.append(self._loop.create_task(directory.run()))
        return member

    def until(self, true: Callable[[], bool]) -> None:
        """Run the loop."""

        async def wait() -> None:
            async with asyncio.timeout(PATIENCE):
                while not true():
                    self._news.clear()
                    await self._news.wait()

        self._loop.run_until_complete(wait())

    def settle(self) -> None:
        """Every directory has looked at least twice since."""
        self._loop.run_until_complete(asyncio.sleep(4 * POLL))

    def go_away(self) -> None:
        """As a file system that is not mounted any more."""
        self._root.rename(self._hidden)

    def come_back(self) -> None:
        """It is mounted again."""
        self._hidden.rename(self._root)

    def part(self) -> None:
        """All hosts leave."""
        for task in self._tasks:
            task.cancel()
        results = self._loop.run_until_complete(
            asyncio.gather(*self._tasks, return_exceptions=True)
        )
        assert all(isinstance(result, asyncio.CancelledError) for result in results), results


class TestFileDirectory(DirectoryContract):
    """The promises, kept by a folder."""

    @pytest.fixture
    def meeting(self, tmp_path: Path) -> Iterator[Meeting]:
        root = tmp_path / "records"
        root.mkdir()
        with asyncio.Runner() as runner:
            meeting = FolderMeeting(runner.get_loop(), root)
            yield meeting
            meeting.part()
