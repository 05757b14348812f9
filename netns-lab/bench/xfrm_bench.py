"""How fast tunsec programs, removes, dumps and compares SAs and SPs.

Beside it in the same run, round by round: the same bytes ready-made and sent in the same batches
(the blast: what the kernel alone costs), and `ip -batch` doing the same job; `pack` is tunsec's
coding alone, so that one sees where the time goes. Ends non-zero when a target is missed. Runs in
an empty network namespace only, for it fills the SAD and the SPD:

    netns-lab/lab exec --timeout 900s -- python3 netns-lab/bench/xfrm_bench.py --json FILE
"""

import argparse
import gc
import ipaddress
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tunsec.adapters.xfrm import BATCH, XfrmKernel
from tunsec.model.aead import Aead
from tunsec.model.names import Reqid, Spi
from tunsec.model.ownership import PRIORITY_PROTECT, REQID_FIRST
from tunsec.model.sa import Lifetimes, Replay, Sa, SaDirection, SaId
from tunsec.model.secret import Secret
from tunsec.model.selector import UDP, PortMatch, Selector
from tunsec.model.sp import Sp, SpAction, SpDirection, SpId, Template
from tunsec.model.step import AddSa, AddSp, RemoveSa, RemoveSp, Step
from tunsec.plan.compare import sa_matches, sp_matches
from tunsec.wire.netlink import Control, Flag, encode_message
from tunsec.wire.xfrm.bulk import Packer
from tunsec.wire.xfrm.consts import NETLINK_XFRM, Msg

LOCAL: Final = ipaddress.IPv4Address("10.255.255.1")
FIRST_PEER: Final = int(ipaddress.IPv4Address("10.0.0.0"))
VXLAN: Final = PortMatch(4789)
LIFETIMES: Final = Lifetimes(
    soft_bytes=1 << 38, hard_bytes=1 << 39, soft_seconds=4501, hard_seconds=7200
)
REPLAY: Final = Replay(window=1024, esn=True)
AEAD: Final = Aead.AES_256_GCM

BLAST_RATIO: Final = 1.5
"""At most this many times the blast."""
IP_RATIO: Final = 3.0
"""At least this many times as fast as `ip -batch`."""


@dataclass(frozen=True, slots=True)
class Job:
    """One half of the work: `count` objects to add and remove, in three forms."""

    name: str
    add: Sequence[Step]
    remove: Sequence[Step]
    ip_add: str
    ip_remove: str

    @property
    def count(self) -> int:
        """Objects."""
        return len(self.add)


def peer(number: int) -> ipaddress.IPv4Address:
    """Address of a peer."""
    return ipaddress.IPv4Address(FIRST_PEER + number)


def make_sas(count: int) -> list[Sa]:
    """Inbound and outbound SAs in turn, two per peer."""
    sas = []
    for number in range(count):
        there = peer(number // 2)
        src, dst = (there, LOCAL) if number % 2 else (LOCAL, there)
        sas.append(
            Sa(
                SaId(dst, Spi(0x1000_0000 + number)),
                src,
                Reqid(REQID_FIRST + number // 2),
                AEAD,
                Secret(os.urandom(AEAD.key_bytes + AEAD.salt_bytes)),
                lifetimes=LIFETIMES,
                replay=REPLAY,
            )
        )
    return sas


def make_sps(count: int) -> list[Sp]:
    """Inbound and outbound protect SPs in turn, two per peer; outbound ones pin an SPI."""
    local = ipaddress.IPv4Network(LOCAL)
    sps = []
    for number in range(count):
        there, reqid = peer(number // 2), Reqid(REQID_FIRST + number // 2)
        remote = ipaddress.IPv4Network(there)
        inbound = bool(number % 2)
        template = (
            Template(there, LOCAL, reqid)
            if inbound
            else Template(LOCAL, there, reqid, Spi(0x1000_0000 + number))
        )
        selector = (
            Selector(remote, local, UDP, dport=VXLAN)
            if inbound
            else Selector(local, remote, UDP, dport=VXLAN)
        )
        direction = SpDirection.IN if inbound else SpDirection.OUT
        sp_id = SpId(selector, direction)
        sps.append(Sp(sp_id, PRIORITY_PROTECT, SpAction.ALLOW, (template,)))
    return sps


def ip_state(sa: Sa) -> tuple[str, str]:
    """The `ip -batch` lines that add and remove an SA."""
    assert sa.key is not None
    limits = sa.lifetimes
    who = f"src {sa.src} dst {sa.id.dst} proto esp spi {sa.id.spi:#x}"
    add = (
        f"xfrm state add {who} reqid {sa.reqid} mode transport flag esn "
        f"replay-window {sa.replay.window} "
        f"aead {AEAD.kernel_name} 0x{sa.key.reveal().hex()} {AEAD.icv_bits} "
        f"limit byte-soft {limits.soft_bytes} limit byte-hard {limits.hard_bytes} "
        f"limit time-soft {limits.soft_seconds} limit time-hard {limits.hard_seconds}"
    )
    return add, f"xfrm state delete {who}"


def ip_policy(sp: Sp) -> tuple[str, str]:
    """The `ip -batch` lines that add and remove an SP."""
    selector, (template,) = sp.id.selector, sp.templates
    who = (
        f"src {selector.src} dst {selector.dst} proto udp dport {selector.dport.port} "
        f"dir {sp.id.direction}"
    )
    spi = f"spi {template.spi:#x} " if template.spi else ""
    add = (
        f"xfrm policy add {who} priority {sp.priority} "
        f"tmpl src {template.src} dst {template.dst} proto esp {spi}"
        f"reqid {template.reqid} mode transport"
    )
    return add, f"xfrm policy delete {who}"


def sa_job(sas: Sequence[Sa]) -> Job:
    """The SA half."""
    lines = [ip_state(sa) for sa in sas]
    return Job(
        "SA",
        [AddSa(sa, SaDirection.OUTBOUND) for sa in sas],
        [RemoveSa(sa.id) for sa in sas],
        "\n".join(add for add, _ in lines) + "\n",
        "\n".join(remove for _, remove in lines) + "\n",
    )


def sp_job(sps: Sequence[Sp]) -> Job:
    """The SP half."""
    lines = [ip_policy(sp) for sp in sps]
    return Job(
        "SP",
        [AddSp(sp) for sp in sps],
        [RemoveSp(sp) for sp in sps],
        "\n".join(add for add, _ in lines) + "\n",
        "\n".join(remove for _, remove in lines) + "\n",
    )


def datagrams(steps: Sequence[Step]) -> list[bytes]:
    """What `XfrmKernel.apply` sends for these steps, ready-made."""
    packer = Packer(portid=1)
    made = []
    for first in range(0, len(steps), BATCH):
        chunk = steps[first : first + BATCH]
        requests = list(map(packer.pack, chunk, range(first + 1, first + 1 + len(chunk))))
        whole = bytearray().join(requests)
        whole[len(whole) - len(requests[-1]) + 6] |= Flag.ACK  # low byte of nlmsg_flags
        made.append(bytes(whole))
    return made


class Blast:
    """A bare socket that sends ready-made datagrams and reads one ACK for each."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_XFRM)
        self._socket.setsockopt(270, 10, 1)  # SOL_NETLINK, NETLINK_CAP_ACK
        self._socket.bind((0, 0))
        self._buffer = bytearray(1 << 16)

    def send(self, ready: Sequence[bytes]) -> None:
        """Send all; an ACK that is an error ends the benchmark."""
        for datagram in ready:
            self._socket.sendto(datagram, (0, 0))
            size = self._socket.recv_into(self._buffer)
            if size != 36 or any(self._buffer[16:20]):
                raise AssertionError(f"the kernel refused a blast: {self._buffer[:size].hex()}")

    def dump(self, kind: Msg) -> int:
        """Read a dump and look at nothing; how many datagrams it had."""
        request = encode_message(kind, b"", flags=Flag.REQUEST | Flag.DUMP, seq=1)
        self._socket.sendto(request, (0, 0))
        count = 0
        while True:
            self._socket.recv_into(self._buffer)
            count += 1
            if self._buffer[4] == Control.DONE:
                return count


def ip_batch(lines: str) -> float:
    """Seconds that `ip -batch` takes over these lines."""
    with tempfile.NamedTemporaryFile("w", suffix=".batch") as file:
        file.write(lines)
        file.flush()
        return timed(lambda: _ip(["-batch", file.name]))


def _ip(arguments: list[str]) -> None:
    done = subprocess.run(
        ["ip", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False
    )
    if done.returncode:
        raise AssertionError(f"ip {arguments}: {done.stderr.decode()[-400:]}")


def timed(work: Callable[[], object]) -> float:
    """Seconds that `work` takes; garbage of what went before is not on its bill."""
    gc.collect()
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


Times = dict[str, list[float]]
"""Seconds of each round by `who.what.object`: `tunsec.add.SA`."""


class Bench:
    """Runs the rounds and keeps the times."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.times: Times = {}
        self._jobs = jobs
        self._kernel = XfrmKernel()
        self._blast = Blast()
        self._ready = {job.name: (datagrams(job.add), datagrams(job.remove)) for job in jobs}

    def round(self, *, with_ip: bool, swap: bool) -> None:
        """Each way once, over each job; `swap` lets the blast go first."""
        for job in self._jobs:
            ways = [self._tunsec, self._blasted]
            for way in reversed(ways) if swap else ways:
                way(job)
            if with_ip:
                self._by_ip(job)
            self._dumps(job, with_ip=with_ip)

    def _note(self, who: str, what: str, job: Job, seconds: float) -> None:
        self.times.setdefault(f"{who}.{what}.{job.name}", []).append(seconds)

    def _tunsec(self, job: Job) -> None:
        self._note("pack", "add", job, timed(lambda: datagrams(job.add)))
        self._note("pack", "remove", job, timed(lambda: datagrams(job.remove)))
        self._note("tunsec", "add", job, timed(lambda: self._apply(job.add)))
        self._note("tunsec", "remove", job, timed(lambda: self._apply(job.remove)))

    def _apply(self, steps: Sequence[Step]) -> None:
        refused = [answer for answer in self._kernel.apply(steps) if answer is not None]
        if refused:
            raise AssertionError(f"{len(refused)} refused, the first: {refused[0]}")

    def _dump(self, job: Job) -> None:
        found = self._kernel.sas() if job.name == "SA" else self._kernel.sps()
        assert len(found) == job.count, f"{len(found)} of {job.count} {job.name}s in the dump"

    def _diff(self, job: Job) -> None:
        wrong: list[Step] = []
        if job.name == "SA":
            sas = self._kernel.sas()
            wrong += [
                step
                for step in job.add
                if isinstance(step, AddSa)
                and ((sa := sas.get(step.sa.id)) is None or not sa_matches(step.sa, sa))
            ]
        else:
            sps = self._kernel.sps()
            wrong += [
                step
                for step in job.add
                if isinstance(step, AddSp)
                and ((sp := sps.get(step.sp.id)) is None or not sp_matches(step.sp, sp))
            ]
        assert not wrong, f"{len(wrong)} {job.name}s differ, the first: {wrong[0]}"

    def _blasted(self, job: Job) -> None:
        add, remove = self._ready[job.name]
        self._note("blast", "add", job, timed(lambda: self._blast.send(add)))
        self._note("blast", "remove", job, timed(lambda: self._blast.send(remove)))

    def _by_ip(self, job: Job) -> None:
        self._note("ip", "add", job, ip_batch(job.ip_add))
        self._note("ip", "remove", job, ip_batch(job.ip_remove))

    def _dumps(self, job: Job, *, with_ip: bool) -> None:
        add, remove = self._ready[job.name]
        kind = Msg.GETSA if job.name == "SA" else Msg.GETPOLICY
        self._blast.send(add)
        self._note("blast", "dump", job, timed(lambda: self._blast.dump(kind)))
        self._note("tunsec", "dump", job, timed(lambda: self._dump(job)))
        self._note("tunsec", "dump+diff", job, timed(lambda: self._diff(job)))
        if with_ip:
            what = "state" if job.name == "SA" else "policy"
            self._note("ip", "dump", job, timed(lambda: _ip(["xfrm", what, "list"])))
        self._blast.send(remove)


@dataclass(frozen=True, slots=True)
class Spread:
    """Least, middle and greatest of some rounds."""

    least: float
    median: float
    most: float


def spread(values: Sequence[float]) -> Spread:
    """Of at least one value."""
    return Spread(min(values), statistics.median(values), max(values))


@dataclass(frozen=True, slots=True)
class Target:
    """A promise and what was reached: `reached` must be at most or at least `bound`.

    `reached` compares the quickest rounds, since a busy machine only ever adds time; `median`
    compares the middle ones, for the reader to see how quiet it was.
    """

    name: str
    reached: float
    median: float
    bound: float
    at_most: bool

    @property
    def met(self) -> bool:
        """Whether it holds."""
        return self.reached <= self.bound if self.at_most else self.reached >= self.bound


def targets(times: Times, jobs: Sequence[Job]) -> list[Target]:
    """Every promise over these jobs."""
    spans = {name: spread(values) for name, values in times.items()}

    def target(name: str, over: str, under: str, bound: float, *, at_most: bool) -> Target:
        least = spans[over].least / spans[under].least
        return Target(name, least, spans[over].median / spans[under].median, bound, at_most)

    found = []
    for job in jobs:
        for what in ("add", "remove"):
            name, key = f"{what} {job.count} {job.name}s", f"{what}.{job.name}"
            ours, blast, by_ip = f"tunsec.{key}", f"blast.{key}", f"ip.{key}"
            found.append(target(f"{name}: times the blast", ours, blast, BLAST_RATIO, at_most=True))
            if by_ip in spans:
                faster = f"{name}: faster than ip -batch"
                found.append(target(faster, by_ip, ours, IP_RATIO, at_most=False))
    name = "dump+diff of SAs: times programming them"
    found.append(target(name, "tunsec.dump+diff.SA", "tunsec.add.SA", 1.0, at_most=True))
    return found


def table(times: Times, jobs: Sequence[Job]) -> str:
    """Microseconds per object, then the targets."""
    counts = {job.name: job.count for job in jobs}
    lines = [f"{'us per object':<24}{'min':>9}{'median':>9}{'max':>9}{'rounds':>8}"]
    for name, values in sorted(times.items(), key=lambda item: item[0].split(".")[::-1]):
        who, what, kind = name.split(".")
        scale = 1e6 / counts[kind]
        span = spread(values)
        lines.append(
            f"{kind} {what:<10} {who:<10}{span.least * scale:>9.1f}"
            f"{span.median * scale:>9.1f}{span.most * scale:>9.1f}{len(values):>8}"
        )
    lines += ["", f"{'ratio':<42}{'least':>7}{'median':>9}"]
    for target in targets(times, jobs):
        bound = f"{'at most' if target.at_most else 'at least'} {target.bound:g}"
        verdict = "met" if target.met else "MISSED"
        lines.append(
            f"{target.name:<42}{target.reached:>7.2f}{target.median:>9.2f}  {bound:<12}{verdict}"
        )
    return "\n".join(lines)


def report(times: Times, jobs: Sequence[Job]) -> dict[str, object]:
    """The same for a program: seconds of every round, spreads, targets."""
    return {
        "kernel": platform.release(),
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "batch": BATCH,
        "counts": {job.name: job.count for job in jobs},
        "seconds": {
            name: {
                "min": min(values),
                "median": statistics.median(values),
                "max": max(values),
                "rounds": values,
            }
            for name, values in sorted(times.items())
        },
        "targets": [
            {
                "name": target.name,
                "reached": round(target.reached, 3),
                "median": round(target.median, 3),
                "bound": target.bound,
                "at_most": target.at_most,
                "met": target.met,
            }
            for target in targets(times, jobs)
        ],
    }


def main() -> int:
    """Run; exit status 1 when a target is missed, 2 when the namespace is not empty."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--sas", type=int, default=10_000)
    parser.add_argument("--sps", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--ip-rounds", type=int, default=2, help="rounds in which ip takes part")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    arguments = parser.parse_args()
    kernel = XfrmKernel()
    if kernel.sas() or kernel.sps():
        print("this network namespace holds SAs or SPs: take an empty one", file=sys.stderr)
        return 2
    jobs = [sa_job(make_sas(arguments.sas)), sp_job(make_sps(arguments.sps))]
    bench = Bench(jobs)
    for number in range(arguments.rounds):
        bench.round(with_ip=number < arguments.ip_rounds, swap=bool(number % 2))
    print(table(bench.times, jobs))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(report(bench.times, jobs), indent=1) + "\n")
    return 0 if all(target.met for target in targets(bench.times, jobs)) else 1


if __name__ == "__main__":
    sys.exit(main())
