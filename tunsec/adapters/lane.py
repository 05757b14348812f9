"""A thread for calls that may hang, such as those to a network file system.

The thread is a daemon thread: a hung call delays neither the event loop nor the end of the process.
"""

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import TypeVar

T = TypeVar("T")
U = TypeVar("U")
Job = Callable[[], None]


class Lane:
    """Carries out one call after the other, away from the event loop."""

    def __init__(self, name: str) -> None:
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def ask(self, call: Callable[[], T]) -> "asyncio.Future[T]":
        """The result of a call, later, on the running loop."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()

        def job() -> None:
            try:
                result = call()
            except BaseException as error:  # noqa: BLE001 - it belongs to whoever asked
                _tell(loop, _fail, answer, error)
            else:
                _tell(loop, _succeed, answer, result)

        self._jobs.put(job)
        return answer

    def close(self) -> None:
        """End the thread after the calls that were asked for; does not wait for it."""
        self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()


def _tell(
    loop: asyncio.AbstractEventLoop,
    settle: Callable[["asyncio.Future[T]", U], None],
    answer: "asyncio.Future[T]",
    outcome: U,
) -> None:
    try:
        loop.call_soon_threadsafe(settle, answer, outcome)
    except RuntimeError:
        return  # the loop has closed: nobody waits for the answer any more


def _succeed(answer: "asyncio.Future[T]", result: T) -> None:
    if not answer.done():
        answer.set_result(result)


def _fail(answer: "asyncio.Future[T]", error: BaseException) -> None:
    if not answer.done():
        answer.set_exception(error)
