"""A probe whose packets are RDS messages: what came, and for how long nothing did."""

from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final

from tunsec_lab import rds
from tunsec_lab.errors import LabError
from tunsec_lab.probe import Probe, ProbeReport

if TYPE_CHECKING:
    from tunsec_lab.host import Host
    from tunsec_lab.process import Process

LOOK_SECONDS: Final = 0.5
"""Until a stream sees what TCP counts, on a machine with other work, too."""
LATE_SECONDS: Final = 60.0
"""RDS may still be about to connect when the last message is sent."""


class RdsProbe(Probe):
    """`with RdsProbe(a, b, rate=100) as probe: ...`, then `probe.report`.

    Its lost packets are messages that did not come, came twice, out of order or altered; its gaps
    are the spans in which messages waited, and TCP had to send again or to connect: in others it is
    the machine that was slow. `to` is an address that the target has besides its own,
    and that may move to one of the `others`: what comes to any of them has come. In one kernel an
    RDS address and port have one socket, whatever their namespace (net/rds/bind.c), so that each
    host listens at a port of its own, and each message goes to all of these.
    """

    def __init__(
        self,
        source: "Host",
        target: "Host",
        *,
        version: int = 4,
        to: str = "",
        others: Sequence["Host"] = (),
        rate: float = 100.0,
        port: int = rds.PORT,
    ) -> None:
        own = target.ipv4 if version == 4 else target.ipv6
        super().__init__(source, target, to=to or own, rate=rate, port=port)
        self.near = str(source.ipv4 if version == 4 else source.ipv6)
        self.rate = rate
        self.others = tuple(others)

    def __enter__(self) -> "Probe":
        """An RDS socket is bound to a local address: it is one on the others, too, meanwhile."""
        route = f"local {self.to} dev lo"
        for host in self.others:
            host.ip(f"route add {route}")
        try:
            return super().__enter__()
        finally:
            for host in self.others:
                host.ip(f"route del {route}")

    def _start(self, host: "Host", role: str, *options: str) -> "Process":
        hosts = (self.target, *self.others)
        port = f"--port={self.port}"
        if role == "receive":
            netns = [f"/run/netns/{each.netns}" for each in hosts]
            return rds.program(host, "sink", f"--near={self.to}", port, "--netns", *netns)
        ends = [f"--near={self.near}", f"--far={self.to}", port, f"--copies={len(hosts)}"]
        return rds.program(host, "stream", *ends, f"--rate={self.rate}")

    def stop(self) -> ProbeReport:
        """Ends both ends; a message that is late is waited for."""
        said = self._end(self.sender)
        with suppress(LabError):
            self.receiver.wait(timeout=LATE_SECONDS)
        report = super().stop()
        troubled = [at / 1e9 for at in said["troubled_at"]]
        gaps = tuple(gap for gap in report.gaps if any(map(partial(within, gap), troubled)))
        self.report = report._replace(gaps=gaps)
        return self.report


def within(gap: tuple[float, float], instant: float) -> bool:
    """Whether what a stream found out then may have been in a gap: it looks now and then."""
    begin, end = gap
    return begin <= instant <= end + LOOK_SECONDS
