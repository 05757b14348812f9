"""Soft-RoCE on hosts of a lab, and transfers over it by perftest."""

import re
import time
from enum import StrEnum
from typing import Final

from tunsec_lab.errors import LabError
from tunsec_lab.host import RDMA_DEVICES, Host
from tunsec_lab.process import Process
from tunsec_lab.topology import Address

PORT: Final = 18515
"""TCP, over which the two ends tell each other their queue pairs: perftest's own default."""
GIDS_SECONDS: Final = 5.0
COMPLETE: Final = r"^ *\d+\s+\d+(?:\s+[\d.]+){3}\s*$|Can't produce a report"
"""What perftest says when every message is acknowledged: its report, or that it cannot work out how
fast that was. The lab's processors have no clock rate."""


class Verb(StrEnum):
    """What RDMA can do, by the program of perftest that does it."""

    SEND = "ib_send_bw"
    WRITE = "ib_write_bw"
    READ = "ib_read_bw"


def add_rxe(host: Host) -> None:
    """A Soft-RoCE device on eth0; returns when it has the host's addresses."""
    host.run(["rdma", "link", "add", host.rxe, "type", "rxe", "netdev", "eth0"])
    for address in host.addresses:
        gid_index(host, address)


def gid_index(host: Host, address: Address) -> int:
    """Where an address is in the device's GID table, which the kernel fills a little later."""
    mapped = int(address) if address.version == 6 else 0xFFFF << 32 | int(address)
    folder = RDMA_DEVICES / host.rxe / "ports/1/gids"
    until = time.monotonic() + GIDS_SECONDS
    while time.monotonic() < until:
        for index in range(16):
            if int((folder / str(index)).read_text().replace(":", ""), 16) == mapped:
                return index
        time.sleep(0.02)
    raise LabError(f"{host.rxe} has no GID of {address}")


class RdmaTransfer:
    """Messages by one queue pair from one host to another (READ: the other way).

    `with RdmaTransfer(a, b, verb=Verb.WRITE) as transfer: transfer.wait()`. With `seconds` it goes
    on for so long, else it ends after `count` messages.
    """

    def __init__(
        self,
        source: Host,
        target: Host,
        *,
        verb: Verb,
        version: int = 4,
        size: int = 16384,
        count: int = 40,
        seconds: int = 0,
        mtu: int = 1024,
        port: int = PORT,
    ) -> None:
        self.source, self.target, self.verb = source, target, verb
        self.version = version
        self.bytes = size * count
        span = f"--duration={seconds}" if seconds else f"--iters={count}"
        self.options = [f"--size={size}", f"--mtu={mtu}", f"--port={port}", span]

    def __enter__(self) -> "RdmaTransfer":
        self.server = self._start(self.target)
        self.server.wait_for_line("Waiting for client")
        self.client = self._start(self.source, str(self._address(self.target)))
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        for end in (self.client, self.server):
            end.kill9()

    def _address(self, host: Host) -> Address:
        return host.ipv4 if self.version == 4 else host.ipv6

    def _start(self, host: Host, *more: str) -> Process:
        gid = gid_index(host, self._address(host))
        argv = [self.verb, f"--ib-dev={host.rxe}", f"--gid-index={gid}", *self.options]
        argv += ["--ipv6-addr"] if self.version == 6 else []
        return host.spawn(["stdbuf", "-oL", *argv, *more], name=self.verb)

    def wait_until_connected(self) -> None:
        """Until both ends know each other's queue pair."""
        self.client.wait_for_line("remote address")

    def wait(self, *, timeout: float = 60.0) -> None:
        """Until all is acknowledged; raises LabError when it fails."""
        status = self.client.wait(timeout=timeout)
        if not re.search(COMPLETE, self.client.output(), re.MULTILINE):
            raise LabError(f"{self.verb} ended with status {status}{self.client.tail()}")
