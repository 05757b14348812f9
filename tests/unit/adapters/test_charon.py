"""The adapter against a VICI server that misbehaves as a real charon rarely does."""

import asyncio
import struct
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
from vici.protocol import Packet

from tests.unit.adapters.vici_server import VERSION, Server
from tunsec.adapters.charon import Charon, parse_url
from tunsec.model.errors import Bug, PolicyError, Refused, Unavailable
from tunsec.model.ike import SharedKind, SharedSecret
from tunsec.model.ike_sa import (
    CharonLinked,
    CharonLost,
    CharonSaid,
    CharonUnfit,
    EventUnread,
    IkeEvent,
)
from tunsec.model.secret import Secret


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path / "charon.vici")
    yield made
    made.close()


class Listener:
    """A Charon and what it tells."""

    def __init__(self, path: Path) -> None:
        self.told: list[IkeEvent] = []
        self.heard = asyncio.Event()
        self.ike = Charon(path, tell=self._hear, answer_seconds=0.3, silent_seconds=0.2)

    def _hear(self, event: IkeEvent) -> None:
        self.told.append(event)
        self.heard.set()

    async def wait(self, kind: type[IkeEvent], *, count: int = 1) -> list[IkeEvent]:
        async with asyncio.timeout(10):
            while len(found := self.events(kind)) < count:
                self.heard.clear()
                await self.heard.wait()
        return found

    def events(self, kind: type[IkeEvent]) -> list[IkeEvent]:
        """Those of a kind so far."""
        return [event for event in self.told if isinstance(event, kind)]


def run(path: Path, scenario: Callable[[Listener], Any]) -> None:
    async def whole() -> None:
        listener = Listener(path)
        try:
            await scenario(listener)
        finally:
            listener.ike.close()

    asyncio.run(whole())


@pytest.mark.parametrize(
    "url", ["", "tcp://127.0.0.1:4502", "unix:charon", "/run/charon.vici", "unix://host/run/x"]
)
def test_urls(url: str) -> None:
    with pytest.raises(PolicyError, match="unix:///run/charon"):
        parse_url(url)
    assert parse_url("unix:///run/a%20b") == Path("/run/a b")


def test_an_older_charon_without_alerts_will_do(server: Server) -> None:
    async def scenario(listener: Listener) -> None:
        (linked,) = await listener.wait(CharonLinked)
        assert isinstance(linked, CharonLinked)
        assert linked.version.version == "6.0.1"
        assert (await listener.ike.version()).daemon == "charon"

    run(server.path, scenario)


def test_a_charon_that_is_too_old_is_refused_with_the_remedy(server: Server) -> None:
    server.commands["version"] = lambda _: {**VERSION, "version": "5.9.14"}

    async def scenario(listener: Listener) -> None:
        (unfit,) = await listener.wait(CharonUnfit)
        assert isinstance(unfit, CharonUnfit)
        assert "install strongSwan 6.0 or newer" in unfit.reason
        with pytest.raises(Refused, match=r"5\.9\.14 loses track of rekey collisions"):
            await listener.ike.sas()
        server.commands["version"] = lambda _: VERSION
        await listener.wait(CharonLinked)
        assert sum(isinstance(event, CharonUnfit) for event in listener.told) == 1

    run(server.path, scenario)


def test_away_is_told_once_and_back_each_time(tmp_path: Path) -> None:
    path = tmp_path / "charon.vici"

    async def scenario(listener: Listener) -> None:
        (lost,) = await listener.wait(CharonLost)
        assert isinstance(lost, CharonLost)
        assert "no charon on" in lost.reason
        with pytest.raises(Unavailable, match="no charon on"):
            await listener.ike.version()
        for life in (1, 2):
            server = Server(path)
            await listener.wait(CharonLinked, count=life)
            await listener.ike.version()
            server.close()
            await listener.wait(CharonLost, count=life + 1)
        assert [type(event) for event in listener.told] == [
            CharonLost,
            *(CharonLinked, CharonLost) * 2,
        ]

    run(path, scenario)


def test_a_new_charon_is_asked_without_an_error_between(server: Server) -> None:
    """The command lane notices that its connection died with the last charon."""

    async def scenario(listener: Listener) -> None:
        await listener.wait(CharonLinked)
        await listener.ike.version()
        server.close()
        await listener.wait(CharonLost)
        again = Server(server.path)
        await listener.wait(CharonLinked, count=2)
        assert (await listener.ike.version()).version == "6.0.1"
        again.close()

    run(server.path, scenario)


def test_silence_is_noticed_and_holds_nobody_up(server: Server) -> None:
    async def scenario(listener: Listener) -> None:
        await listener.wait(CharonLinked)
        server.commands["version"] = lambda _: None
        server.commands["stats"] = lambda _: None
        asked = listener.ike.stats()
        await asyncio.sleep(0)
        assert not asked.done()
        with pytest.raises(Unavailable, match=r"no answer within 0\.3 s"):
            await asked
        (lost,) = await listener.wait(CharonLost)
        assert isinstance(lost, CharonLost)
        assert "silent for 0.5 s" in lost.reason
        server.commands["version"] = lambda _: VERSION
        await listener.wait(CharonLinked, count=2)

    run(server.path, scenario)


def test_a_charon_with_nothing_to_tell_is_asked_more_and_more_rarely(server: Server) -> None:
    asked_at: SimpleQueue[float] = SimpleQueue()

    def version(_: dict[str, Any]) -> dict[str, Any]:
        asked_at.put(time.monotonic())
        return VERSION

    async def spans(count: int) -> list[float]:
        """Between so many questions in a row and the next one each."""
        asked = [await asyncio.to_thread(asked_at.get, timeout=10) for _ in range(count + 1)]
        return [later - earlier for earlier, later in pairwise(asked)]

    async def scenario(listener: Listener) -> None:
        await listener.wait(CharonLinked)
        server.commands["version"] = version
        first, second = await spans(2)
        assert first > 0.38
        assert second > 0.78
        server.tell("log", {"group": "IKE", "level": "1", "msg": "something happens"})
        (again,) = await spans(1)
        assert 0.38 < again < 1.5
        assert not listener.events(CharonLost)

    run(server.path, scenario)


@pytest.mark.parametrize(
    "answer",
    [
        struct.pack("!I", 1 << 31),
        struct.pack("!IB", 1, 77),
        struct.pack("!I", 0),
        struct.pack("!IBBB", 3, Packet.CMD_RESPONSE, 3, 200),
        struct.pack("!IBBB", 3, Packet.CMD_RESPONSE, 2, 2),
        struct.pack("!IBB", 500, Packet.CMD_RESPONSE, 3),
    ],
)
def test_garbage_costs_the_connection_only(server: Server, answer: bytes) -> None:
    server.commands["stats"] = lambda _: answer

    async def scenario(listener: Listener) -> None:
        with pytest.raises((Unavailable, Refused)):
            await listener.ike.stats()
        assert (await listener.ike.version()).version == "6.0.1"

    run(server.path, scenario)


def test_charons_own_words(server: Server) -> None:
    server.commands["unload-conn"] = lambda _: {"success": "no", "errmsg": "not\x1b here"}
    server.commands["get-keys"] = lambda _: {"keys": "no list"}

    async def scenario(listener: Listener) -> None:
        with pytest.raises(Refused) as caught:
            await listener.ike.unload_connection("tunsec-b")
        assert caught.value.reason == "not? here"
        with pytest.raises(Refused, match=r"get-keys\.keys: b'no list' is not a list"):
            await listener.ike.loaded_keys()
        with pytest.raises(Refused, match="does not know this command"):
            await listener.ike.loaded_secrets()

    run(server.path, scenario)


def test_only_our_names(server: Server) -> None:
    server.commands["get-conns"] = lambda _: {"conns": ["office", "tunsec-b"]}

    async def scenario(listener: Listener) -> None:
        assert await listener.ike.loaded_connections() == ("tunsec-b",)
        with pytest.raises(Bug, match="'office' is not tunsec's"):
            listener.ike.unload_connection("office")
        with pytest.raises(Bug):
            listener.ike.initiate("office", "c")

    run(server.path, scenario)
    assert "unload-conn" not in server.asked


def test_a_bad_request_is_never_sent_and_tells_no_secret(server: Server) -> None:
    async def scenario(listener: Listener) -> None:
        shared = SharedSecret("tunsec-psk", SharedKind.PSK, Secret(b"swordfish"), ("*",))
        with pytest.raises(Refused) as caught:
            await listener.ike.load_secret(shared)
        assert "cannot be an identity" in caught.value.reason
        assert "swordfish" not in str(caught.value)

    run(server.path, scenario)
    assert "load-shared" not in server.asked


def test_events_come_in_order_and_unreadable_ones_are_told(server: Server) -> None:
    async def scenario(listener: Listener) -> None:
        await listener.wait(CharonLinked)
        for number in range(100):
            server.tell("log", {"group": "IKE", "level": "1", "msg": str(number)})
        server.tell("child-updown", {"up": "yes", "n": {"uniqueid": "x"}})
        server.tell("of-tomorrow", {"a": "b"})
        said = await listener.wait(CharonSaid, count=100)
        assert [getattr(line, "words", "") for line in said] == [str(n) for n in range(100)]
        (unread,) = await listener.wait(EventUnread)
        assert isinstance(unread, EventUnread)
        assert "child-updown.n.uniqueid" in unread.reason

    run(server.path, scenario)
