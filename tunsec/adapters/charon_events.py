"""The event lane to charon: a thread that listens, notices a charon that is gone or frozen, and
connects again."""

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tenacity import (
    RetryCallState,
    RetryError,
    Retrying,
    retry_if_exception_type,
    sleep_using_event,
    stop_when_event_set,
    wait_exponential,
    wait_random,
)

from tunsec.adapters.vici_socket import Received, ViciSocket
from tunsec.model.errors import Refused, TunsecError, Unavailable
from tunsec.model.ike import OLDEST_CHARON
from tunsec.model.ike_sa import (
    CharonLinked,
    CharonLost,
    CharonUnfit,
    CharonVersion,
    EventUnread,
    IkeEvent,
)
from tunsec.wire.vici.events import EVENTS, OPTIONAL, decode_event
from tunsec.wire.vici.values import Malformed

FIRST_WAIT_SECONDS: Final = 0.05
LONGEST_WAIT_SECONDS: Final = 0.25
"""Between attempts to connect. The socket is local, so trying costs next to nothing, and a flow
whose charon was stopped is blocked until it is found again."""
LONGEST_SILENCE_SECONDS: Final = 60.0
"""Between two questions whether charon still answers: each answer doubles the wait, as a host on
which nothing happens has nothing to ask of charon."""


def check_fit(version: CharonVersion) -> None:
    """Raises Refused for a charon that is too old."""
    if version.release < OLDEST_CHARON:
        oldest = ".".join(map(str, OLDEST_CHARON))
        reason = (
            f"{version.daemon} {version.version} loses track of rekey collisions; "
            f"install strongSwan {oldest} or newer"
        )
        raise Refused("this charon", reason=reason)


class EventLane:
    """Tells what charon tells, on the loop. What is wrong with charon is told as an event, what is
    wrong with us is raised on the loop."""

    def __init__(
        self,
        path: Path,
        *,
        tell: Callable[[IkeEvent], None],
        loop: asyncio.AbstractEventLoop,
        answer_seconds: float,
        silent_seconds: float,
    ) -> None:
        self._path = path
        self._tell = tell
        self._loop = loop
        self._answer_seconds = answer_seconds
        self._silent_seconds = silent_seconds
        self._ended = threading.Event()
        self._away: CharonLost | CharonUnfit | None = None
        self._vici: ViciSocket | None = None
        self._thread = threading.Thread(target=self._work, name="charon events", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop telling; does not wait for the thread."""
        self._ended.set()
        vici = self._vici
        if vici is not None:
            vici.shutdown()

    def _work(self) -> None:
        while not self._ended.is_set():
            try:
                with self._connect_at_last() as vici:
                    self._listen(vici)
            except (Unavailable, Refused) as error:
                self._lost(error)
            except RetryError:
                return  # closed while it tried
            except BaseException as error:  # noqa: BLE001 - a thread must not end unheard
                self._loop.call_soon_threadsafe(_raise, error)
                return

    def _connect_at_last(self) -> ViciSocket:
        """A connection with all events registered, as soon as there can be one."""
        retrying = Retrying(
            retry=retry_if_exception_type((Unavailable, Refused)),
            wait=wait_exponential(multiplier=FIRST_WAIT_SECONDS, max=LONGEST_WAIT_SECONDS)
            + wait_random(0, FIRST_WAIT_SECONDS),
            stop=stop_when_event_set(self._ended),
            sleep=sleep_using_event(self._ended),
            before_sleep=self._failed,
        )
        vici: ViciSocket = retrying(self._connect)
        return vici

    def _connect(self) -> ViciSocket:
        vici = ViciSocket(self._path, seconds=self._answer_seconds)
        try:
            version = vici.version(seconds=self._answer_seconds)
            check_fit(version)
            meanwhile: list[Received] = []
            for event in EVENTS:
                there, came = vici.register(event, seconds=self._answer_seconds)
                meanwhile += came
                if not there and event not in OPTIONAL:
                    raise Refused("this charon", reason=f"it has no event {event}")
        except BaseException:
            vici.close()
            raise
        self._vici = vici
        self._away = None
        events: list[IkeEvent] = [CharonLinked(version)]
        for received in meanwhile:
            events += _decode(received)
        self._deliver(events)
        return vici

    def _listen(self, vici: ViciSocket) -> None:
        """Tell events until the connection breaks; ask for a sign of life when it is quiet."""
        asked, silence = False, self._silent_seconds
        while not self._ended.is_set():
            received = vici.receive(seconds=self._answer_seconds if asked else silence)
            if received is None and asked:
                waited = self._answer_seconds + silence
                raise Unavailable(f"charon has been silent for {waited:g} s")
            if received is None:
                vici.send("version")
                asked = True
            elif received.event is None:
                asked, silence = False, min(2 * silence, LONGEST_SILENCE_SECONDS)
            else:
                silence = self._silent_seconds
                self._deliver(_decode(received))

    def _failed(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, TunsecError):
            self._lost(error)

    def _lost(self, error: TunsecError) -> None:
        """Tell once that charon cannot be used, and again when the reason is of another kind."""
        kind = CharonUnfit if isinstance(error, Refused) else CharonLost
        if self._ended.is_set() or isinstance(self._away, kind):
            return
        self._away = kind(str(error))
        self._deliver([self._away])

    def _deliver(self, events: list[IkeEvent]) -> None:
        if events:
            try:
                self._loop.call_soon_threadsafe(self._tell_all, events)
            except RuntimeError:
                self._ended.set()  # the loop has closed: nobody listens any more

    def _tell_all(self, events: list[IkeEvent]) -> None:
        if not self._ended.is_set():
            for event in events:
                self._tell(event)


def _raise(error: BaseException) -> None:
    raise error


def _decode(received: Received) -> list[IkeEvent]:
    try:
        return list(decode_event(received.event or "", received.body))
    except Malformed as error:
        return [EventUnread(str(error))]
