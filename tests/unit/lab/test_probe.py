"""What the probe's receiver makes of the numbers it hears."""

import json
import os
import random
import socket
import subprocess
import sys
import time

import pytest

from tunsec_lab import probe
from tunsec_lab.carrier import link_states
from tunsec_lab.faults import Impairment
from tunsec_lab.probe import PACKET, Tally

MILLISECOND = 1_000_000


def heard(*numbers: int) -> Tally:
    tally = Tally()
    for at, number in enumerate(numbers, start=1):
        tally.take(PACKET.pack(number, at * MILLISECOND), at * MILLISECOND)
    return tally


def test_in_order() -> None:
    assert heard(0, 1, 2).summary() == {
        "highest": 2,
        "holes": [],
        "received": 3,
        "duplicated": 0,
        "reordered": 0,
        "gaps": [],
        "first_at": MILLISECOND,
        "last_at": 3 * MILLISECOND,
        "longest_gap_ms": 1.0,
        "longest_delay_ms": 0.0,
    }


def test_lost_duplicated_and_reordered() -> None:
    summary = heard(0, 3, 1, 1, 0, 7).summary()
    assert (summary["received"], summary["duplicated"], summary["reordered"]) == (4, 2, 1)
    assert (summary["highest"], summary["holes"]) == (7, [(2, 1), (4, 3)])


def test_any_order_counts_each_number_once_and_forgets_what_is_complete() -> None:
    numbers = list(range(1000))
    random.Random(1).shuffle(numbers)
    tally = heard(*numbers, *numbers)
    assert (tally.received, tally.duplicated) == (1000, 1000)
    assert tally.seen == set()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root for a large buffer")
def test_a_receiver_that_is_told_to_stop_counts_all_that_came() -> None:
    """It is told while packets pile up, as on a busy machine."""
    count = 3_000
    for _ in range(4):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
            free.bind(("127.0.0.1", 0))
            end = free.getsockname()
        argv = [sys.executable, "-I", "-S", probe.__file__, "receive", "--address=127.0.0.1"]
        with (
            subprocess.Popen([*argv, f"--port={end[1]}"], stdout=subprocess.PIPE) as receiver,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
        ):
            assert receiver.stdout is not None
            assert receiver.stdout.readline() == b"ready\n"
            for number in range(count):
                sender.sendto(PACKET.pack(number, time.monotonic_ns()), end)
            receiver.terminate()
            said = json.loads(receiver.stdout.readline())
        assert (said["received"], said["holes"]) == (count, [])


def test_netem_words() -> None:
    assert Impairment(loss_percent=1.5).netem() == "loss 1.5%"
    assert (
        Impairment(delay_ms=10, jitter_ms=2, reorder_percent=25).netem()
        == "limit 1000000 delay 10ms 2ms reorder 25%"
    )


def test_a_truncated_link_message_is_not_read_past_its_end() -> None:
    assert list(link_states(b"")) == []
    assert list(link_states(b"\x10\x00\x00\x00")) == []
