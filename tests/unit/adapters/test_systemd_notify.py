"""sd_notify against a real datagram socket, by path and abstract."""

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tunsec.adapters.systemd import Notifier, credentials_directory, watchdog_interval
from tunsec.model.errors import Unavailable


@pytest.fixture(params=["path", "abstract"])
def service_manager(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[tuple[str, socket.socket]]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.settimeout(5)
        if request.param == "path":
            name = str(tmp_path / "notify")
            listening.bind(name)
        else:
            listening.bind("")  # the kernel picks an abstract name
            name = "@" + bytes(listening.getsockname()).decode()[1:]
        yield name, listening


def test_every_message_is_one_datagram(service_manager: tuple[str, socket.socket]) -> None:
    address, listening = service_manager
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    with Notifier.from_environment({"NOTIFY_SOCKET": address}) as notifier:
        assert notifier.connected
        notifier.ready("2 flows\nguarded")
        notifier.status("2 of 2 protected")
        notifier.alive()
        notifier.reloading()
        notifier.stopping()
    said = [listening.recv(4096).decode() for _ in range(5)]
    assert said[:3] == ["READY=1\nSTATUS=2 flows guarded", "STATUS=2 of 2 protected", "WATCHDOG=1"]
    reloading, stamp = said[3].split("\n")
    assert reloading == "RELOADING=1"
    assert int(stamp.removeprefix("MONOTONIC_USEC=")) >= before
    assert said[4] == "STOPPING=1"


def test_without_a_service_manager_nothing_happens() -> None:
    with Notifier.from_environment({}) as notifier:
        assert not notifier.connected
        notifier.ready()
        notifier.alive()


def test_a_service_manager_that_is_away_does_no_harm(tmp_path: Path) -> None:
    with Notifier(str(tmp_path / "nobody")) as notifier:
        notifier.ready("status")


def test_an_address_of_another_kind_is_named() -> None:
    with pytest.raises(Unavailable, match="vsock:2:1"):
        Notifier("vsock:2:1")


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"WATCHDOG_USEC": "20000000"}, 10.0),
        ({"WATCHDOG_USEC": "20000000", "WATCHDOG_PID": str(os.getpid())}, 10.0),
        ({"WATCHDOG_USEC": "20000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_the_watchdog_is_fed_twice_as_often_as_needed(
    environment: dict[str, str], expected: float | None
) -> None:
    assert watchdog_interval(environment, pid=os.getpid()) == expected


def test_credentials_stand_where_the_service_manager_says() -> None:
    assert credentials_directory({}) is None
    where = "/run/credentials/tunsecd.service"
    assert credentials_directory({"CREDENTIALS_DIRECTORY": where}) == Path(where)
