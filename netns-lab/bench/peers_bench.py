"""How long from `tunsec apply` until every flow of a host is protected, for both keyings.

One host, the hub, has one flow with each of its peers; every host runs its own tunsecd and charon,
all in one lab kernel. The peers have the policy and wait; the clock runs from `tunsec apply` on the
hub until its `tunsec wait` says that all is protected. Both keyings take turns, round by round.
Times of one machine mean little on another, so nothing is asserted but that all gets protected.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from tunsec.wire.control import PolicyBody
from tunsec_lab.cluster import Cluster
from tunsec_lab.errors import LabError
from tunsec_lab.host import Host, Lab
from tunsec_lab.process import Process
from tunsec_lab.topology import Topology, parse_topology

KEYINGS: Final = ("directory", "ike")
HUB: Final = "hub"
MOST_PEERS: Final = 250
AT_ONCE: Final = 4
"""Hosts that are started or given a policy side by side."""
POLL: Final = 20.0
"""Seconds that one long poll may take."""
PROTECTED_WITHIN: Final = 600.0
GONE_WITHIN: Final = 120.0
SETTLE: Final = 5.0
"""Seconds for what the peers do of themselves once they have their policy."""
IKE: Final = "{dead_after: 1h}"
"""By default every charon asks every peer once a second whether it lives: two hundred exchanges a
second, and 101 daemons that hear of them, are more than a machine of two cores can do."""
TICKS: Final = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Round:
    """One measurement: seconds of the clock, and of computing meanwhile."""

    peers: int
    keying: str
    seconds: float
    applied: float
    """Of that, until `tunsec apply` returned."""
    hub_tunsecd: float
    hub_charon: float
    others: float
    """All daemons of all peers together."""


def star(peers: int) -> Topology:
    """The hub and its peers on one wire, IPv4 alone."""
    names = (HUB, *peer_names(peers))
    links = "\n".join(
        f"  {name}: {{links: {{eth0: {{network: wire, addresses: [10.0.0.{number}/24]}}}}}}"
        for number, name in enumerate(names, start=1)
    )
    return parse_topology(f"networks:\n  wire: {{mtu: 1500}}\nhosts:\n{links}\n", name="star")


def peer_names(count: int) -> list[str]:
    """After the hub's in the alphabet: the hub makes the first IKE_SA."""
    return [f"peer{number}" for number in range(1, count + 1)]


def policy(hosts: Iterable[Host], keying: str) -> PolicyBody:
    """One flow between the hub and each other host."""
    known = list(hosts)
    addresses = "".join(f"  {host.name}: {{address: {host.ipv4}}}\n" for host in known)
    flows = "".join(
        f"  to-{host.name}: {{kind: vxlan, between: [{HUB}, {host.name}]}}\n"
        for host in known
        if host.name != HUB
    )
    head = f"version: 1\nhosts:\n{addresses}defaults: {{keying: {keying}}}\nike: {IKE}\n"
    text = f"{head}flows:\n{flows}"
    return PolicyBody(text=text, source="bench")


def idle(hosts: Iterable[Host]) -> PolicyBody:
    """A policy must declare a flow: one of two hosts that are not there."""
    addresses = "".join(f"  {host.name}: {{address: {host.ipv4}}}\n" for host in hosts)
    absent = "  x: {address: 192.0.2.1}\n  y: {address: 192.0.2.2}\n"
    flows = "flows: {of-others: {kind: vxlan, between: [x, y]}}\n"
    return PolicyBody(text=f"version: 1\nhosts:\n{addresses}{absent}{flows}", source="bench")


class Bench:
    """A hub with peers, all of their daemons running and no flow declared."""

    def __init__(self, lab: Lab) -> None:
        self.cluster = Cluster(lab)
        self.hub, *self.peers = lab.hosts.values()
        self.rounds: list[Round] = []
        nothing = idle(lab.hosts.values())
        self.cluster.policy_file.write_text(nothing.text)
        self._everywhere(lab.hosts.values(), self._start)

    def _start(self, host: Host) -> None:
        self.cluster.start_charon(host)
        self.cluster.start(host)

    def _everywhere(self, hosts: Iterable[Host], act: Callable[[Host], object]) -> None:
        with ThreadPoolExecutor(AT_ONCE) as threads:
            for done in [threads.submit(act, host) for host in hosts]:
                done.result()

    def measure(self, count: int, keying: str) -> Round:
        """From no flow to `count` protected ones, and back."""
        peers = self.peers[:count]
        hosts = [self.hub, *peers]
        wanted = policy(hosts, keying)
        self._everywhere(peers, lambda host: self._apply(host, wanted))
        time.sleep(SETTLE)
        before = self._computed(peers)
        began = time.monotonic()
        self._apply(self.hub, wanted)
        applied = time.monotonic()
        self._wait()
        ended = time.monotonic()
        used = [now - then for now, then in zip(self._computed(peers), before, strict=True)]
        done = Round(count, keying, ended - began, applied - began, *used)
        self.rounds.append(done)
        self._everywhere(hosts, lambda host: self._release(host, idle(hosts)))
        self._until_gone()
        return done

    def _apply(self, host: Host, wanted: PolicyBody) -> None:
        self.cluster.client(host).apply(wanted)

    def _release(self, host: Host, nothing: PolicyBody) -> None:
        client = self.cluster.client(host)
        client.apply(nothing)
        client.release(None)

    def _wait(self) -> None:
        until = time.monotonic() + PROTECTED_WITHIN
        client = self.cluster.client(self.hub)
        while not (report := client.wait(None, POLL)).protected:
            if time.monotonic() > until:
                shown = "\n".join(report.waiting_for[:5])
                raise LabError(f"not protected after {PROTECTED_WITHIN:g} s:\n{shown}")

    def _until_gone(self) -> None:
        """Returns when the kernel of the hub holds no SA any more."""
        until = time.monotonic() + GONE_WITHIN
        while left := self.hub.run(["ip", "-o", "xfrm", "state"]).stdout.splitlines():
            if time.monotonic() > until:
                raise LabError(f"{len(left)} SAs are left, the first: {left[0]}")
            time.sleep(0.5)

    def _computed(self, peers: Sequence[Host]) -> tuple[float, float, float]:
        """Seconds of processor time so far: of the hub's tunsecd and charon, and of the peers."""
        others = sum(sum(map(processor_seconds, self._programs(host))) for host in peers)
        tunsecd, charon = map(processor_seconds, self._programs(self.hub))
        return tunsecd, charon, others

    def _programs(self, host: Host) -> tuple[Process, Process]:
        return self.cluster.daemons[host.name], self.cluster.charons[host.name].running

    def memory(self) -> dict[str, int]:
        """MiB that the daemons of all hosts take together, shared pages counted once."""
        hosts = [self.hub, *self.peers]
        both = [self._programs(host) for host in hosts]
        return {
            name: sum(proportional_kib(programs[number]) for programs in both) >> 10
            for number, name in enumerate(("tunsecd", "charon"))
        }


def processor_seconds(process: Process) -> float:
    """User and system time of a process, all of its threads."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def proportional_kib(process: Process) -> int:
    """Its share of the memory that it uses (PSS)."""
    rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
    return int(next(line for line in rollup.splitlines() if line.startswith("Pss:")).split()[1])


def table(rounds: Sequence[Round]) -> str:
    """Median and spread of both keyings side by side, then where the time went."""
    counts = sorted({one.peers for one in rounds})
    lines = [f"{'peers':>5}  {'directory, s':^22}{'ike, s':^22}{'ike / directory':>16}"]
    for count in counts:
        spans = {keying: seconds(rounds, count, keying) for keying in KEYINGS}
        shown = "".join(f"{spread(spans[keying]):^22}" for keying in KEYINGS)
        ratio = statistics.median(spans["ike"]) / statistics.median(spans["directory"])
        lines.append(f"{count:>5}  {shown}{ratio:>16.2f}")
    lines += ["", "median (least to most); processor seconds meanwhile, median:", ""]
    lines.append(
        f"{'peers':>5}  {'keying':<10}{'apply':>8}{'hub tunsecd':>13}{'hub charon':>12}{'peers':>9}"
    )
    for count in counts:
        for keying in KEYINGS:
            some = [one for one in rounds if (one.peers, one.keying) == (count, keying)]
            lines.append(
                f"{count:>5}  {keying:<10}"
                f"{statistics.median(one.applied for one in some):>8.2f}"
                f"{statistics.median(one.hub_tunsecd for one in some):>13.2f}"
                f"{statistics.median(one.hub_charon for one in some):>12.2f}"
                f"{statistics.median(one.others for one in some):>9.2f}"
            )
    return "\n".join(lines)


def seconds(rounds: Iterable[Round], peers: int, keying: str) -> list[float]:
    """Of all rounds of a kind."""
    return [one.seconds for one in rounds if (one.peers, one.keying) == (peers, keying)]


def spread(values: Sequence[float]) -> str:
    """Median, least and greatest."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def main() -> int:
    """Run; exit status 1 when something did not get protected."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--peers", type=int, nargs="+", default=[1, 100])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    arguments = parser.parse_args()
    if max(arguments.peers) > MOST_PEERS:
        parser.error(f"at most {MOST_PEERS} peers")
    began = time.monotonic()
    with Lab(star(max(arguments.peers))) as lab:
        bench = Bench(lab)
        memory = bench.memory()
        took = time.monotonic() - began
        print(f"{len(lab.hosts)} hosts up after {took:.0f} s, MiB in all: {memory}", flush=True)
        for number in range(arguments.rounds):
            turns = KEYINGS[::-1] if number % 2 else KEYINGS
            for count in arguments.peers:
                for keying in turns:
                    done = bench.measure(count, keying)
                    print(
                        f"round {number + 1}: {count} by {keying} {done.seconds:.2f} s", flush=True
                    )
        print(table(bench.rounds))
    if arguments.json is not None:
        figures = {
            "cpus": os.cpu_count(),
            "memory_mib": memory,
            "rounds": [asdict(one) for one in bench.rounds],
        }
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
