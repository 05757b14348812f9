"""`make demo`: two hosts whose VXLAN packets are clear, then ESP, and stay ESP whatever happens.

    +--- db1 ----------+                        +--- db2 ----------+
    | 10.41.0.1 (red)  |    one wire, watched   | 10.41.0.2 (red)  |   red over IPv4
    | 10.42.0.1 (blue) +------------------------+ 10.42.0.2 (blue) |   blue over IPv6
    | tunsecd          |                        | tunsecd          |
    +------------------+                        +------------------+

Every figure is counted on the wire or by the receiver of numbered packets; what tunsec says of
itself is only shown. Ends non-zero if a claim does not hold.
"""

import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Final

from scenarios.screen import Screen
from tunsec.cli.client import Client, Failed
from tunsec.cli.exits import Exit
from tunsec_lab.capture import LeakFound, LeakWatch, Report
from tunsec_lab.errors import LabError
from tunsec_lab.host import Host, Lab
from tunsec_lab.packets import EspFlow, protect
from tunsec_lab.probe import Probe
from tunsec_lab.process import Completed, Process
from tunsec_lab.topology import Address

CHECKOUT: Final = Path(__file__).resolve().parents[2]
POLICY: Final = CHECKOUT / "policies" / "vxlan-directory.yaml"
QUICK_REKEY: Final = "\ndefaults:\n  rekey: {after: 2s}\n"
REKEYS: Final = 3
PROBE_RATE: Final = 1000.0
IPERF_RATE: Final = "40M"
IPERF_SECONDS: Final = 6
PINGS: Final = 20
LOOK_EVERY: Final = 0.5
STATE_TIMEOUT: Final = 15.0
READY: Final = re.compile(r" ready host=")


@dataclass(frozen=True)
class Seen:
    """What was on the wire in one part of the story, and what became of the numbered packets."""

    name: str
    clear: int
    esp: dict[EspFlow, int]
    control: int
    other: int
    sent: int = 0
    lost: int = 0

    def row(self) -> tuple[str, ...]:
        """As the closing table shows it."""
        counts = (self.clear, sum(self.esp.values()), len(self.esp), self.control + self.other)
        probe = (f"{self.sent:,}", f"{self.lost:,}") if self.sent else ("-", "-")
        return (self.name, *(f"{count:,}" for count in counts), *probe)


def between(name: str, before: Report, after: Report) -> Seen:
    """What came onto the wire between two looks."""
    new = {flow: count - before.esp_flows.get(flow, 0) for flow, count in after.esp_flows.items()}
    return Seen(
        name,
        clear=after.clear - before.clear,
        esp={flow: count for flow, count in new.items() if count},
        control=after.control - before.control,
        other=after.other - before.other + after.quoted - before.quoted,
    )


class Load:
    """Numbered packets both ways, red over IPv4 and blue over IPv6. Figures when it has ended."""

    def __init__(self, one: Host, two: Host) -> None:
        self.probes = (
            Probe(one, two, to=overlay(two, "red"), rate=PROBE_RATE),
            Probe(two, one, to=overlay(one, "blue"), rate=PROBE_RATE),
        )
        self.stack = ExitStack()

    def __enter__(self) -> "Load":
        with self.stack as stack:
            for probe in self.probes:
                stack.enter_context(probe)
            self.stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stack.__exit__(kind, error, trace)

    @property
    def sent(self) -> int:
        """Packets of both ways."""
        return sum(probe.report.sent for probe in self.probes)

    @property
    def lost(self) -> int:
        """Packets that did not arrive."""
        return sum(probe.report.lost for probe in self.probes)


@dataclass
class Demo:
    """The two hosts, what runs on them, and what has been seen so far."""

    lab: Lab
    watch: LeakWatch
    screen: Screen
    daemons: dict[str, Process] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)

    @property
    def hosts(self) -> tuple[Host, Host]:
        """db1 and db2."""
        return self.lab.hosts["db1"], self.lab.hosts["db2"]

    # -- commands ---------------------------------------------------------------------------

    def run(self, host: Host, *argv: str | Path, check: bool = True) -> Completed:
        """Shows and runs a command on a host."""
        self.show(host, *argv)
        return host.run(argv, check=check)

    def show(self, host: Host, *argv: str | Path) -> None:
        """Shows a command on a host as one would type it."""
        self.screen.command(host.name, self.short(" ".join(map(str, argv))))

    def quote(self, said: str) -> None:
        """Shows what a command said."""
        self.screen.lines(self.short(said))

    def short(self, text: str) -> str:
        """With the folders of this run shortened."""
        return text.replace(f"{CHECKOUT}/", "").replace(str(self.lab.folder), "$LAB")

    def start_daemon(self, host: Host) -> None:
        """tunsecd as a unit would start it."""
        argv = (
            "tunsecd",
            *("--host", host.name),
            *("--policy", POLICY),
            *("--identity", host.folder / "identity"),
            *("--directory", f"file://{self.lab.folder}/directory"),
            *("--run", host.run_dir),
            *("--state", host.state_dir),
        )
        self.show(host, *argv)
        self.daemons[host.name] = host.spawn(argv)

    def is_ready(self, host: Host) -> bool:
        """Whether its daemon has closed the flow and serves."""
        daemon = self.daemons[host.name]
        if not daemon.alive():
            raise LabError(f"{daemon.name} has ended{daemon.tail()}")
        return READY.search(daemon.output()) is not None

    def client(self, host: Host) -> Client:
        """Asks its daemon without a process for each question."""
        return Client(host.run_dir / "control.sock")

    def rekeys(self, host: Host) -> int:
        """Of the relation that has had the fewest, since the host's daemon was started."""
        return min(flow.rekeys for flow in self.client(host).status().flows)

    def spis(self) -> set[str | None]:
        """Under which both hosts send now; None for a relation without keys."""
        return {flow.spi_out for host in self.hosts for flow in self.client(host).status().flows}

    # -- the wire ---------------------------------------------------------------------------

    @contextmanager
    def part(self, name: str) -> Iterator[Callable[[], Seen]]:
        """A part of the story; yields a look at what has been on the wire in it so far."""
        before = self.watch.report()

        def look() -> Seen:
            return between(name, before, self.watch.report())

        yield look
        self.seen.append(look())

    @contextmanager
    def loaded_part(self, name: str) -> Iterator[Callable[[], Seen]]:
        """A part under a load of its own, of which it is told what was lost."""
        with self.part(name) as look, Load(*self.hosts) as load:
            yield look
        self.seen[-1] = replace(self.seen[-1], sent=load.sent, lost=load.lost)

    def show_wire(self, look: Callable[[], Seen], *, until: Callable[[], bool]) -> None:
        """A line for each half second, until something has come true; at least one."""
        last, begun_at = look(), time.monotonic()
        reached = False
        while not reached:
            if time.monotonic() - begun_at > STATE_TIMEOUT:
                raise LabError(f"not reached in {STATE_TIMEOUT:g} s")
            time.sleep(LOOK_EVERY)
            reached = until()
            now = look()
            clear, esp = now.clear - last.clear, sum(now.esp.values()) - sum(last.esp.values())
            new = sorted(f"{flow.spi:08x}" for flow in now.esp.keys() - last.esp.keys())
            fresh = f"   new SPIs {' '.join(new)}" if new else ""
            self.screen.say(f"on the wire: clear {clear:5}   ESP {esp:5}{fresh}")
            last = now

    def claim_nothing_lost(self) -> None:
        """Of the part that has just ended."""
        part = self.seen[-1]
        self.claim_closed()
        self.screen.claim(
            f"{part.lost:,} of {part.sent:,} numbered packets lost",
            holds=part.sent > part.lost == 0,
        )

    def claim_closed(self) -> None:
        """Of the part that has just ended."""
        part = self.seen[-1]
        esp = sum(part.esp.values())
        self.screen.claim(
            f"{part.clear:,} clear packets on the wire, {esp:,} ESP",
            holds=part.clear == 0 and esp > 0,
        )

    def claim_ping(self, *, answered: bool = True) -> None:
        """Ping over both overlays."""
        one, two = self.hosts
        for name, underlay in (("red", "IPv4"), ("blue", "IPv6")):
            result = one.ping(overlay(two, name), count=PINGS, interval=0.02, wait=0.5)
            self.screen.claim(
                f"ping over {name} ({underlay}): {result.received} of {result.sent} answered",
                holds=result.received == (PINGS if answered else 0),
            )


def overlay(host: Host, name: str) -> Address:
    """A host's address in an overlay."""
    return host.overlay_addresses(name)[0]


def in_seconds(span: float) -> Callable[[], bool]:
    """Whether that time has passed since now."""
    until = time.monotonic() + span
    return lambda: time.monotonic() >= until


# -- the story ------------------------------------------------------------------------------------


def prepare(demo: Demo) -> None:
    """A CA, an identity for each host, a folder as directory."""
    screen, (one, two) = demo.screen, demo.hosts
    screen.headline("The cluster: a CA, a certificate for each host, one policy for both")
    ca = demo.lab.folder / "ca"
    demo.run(one, "tunsec", "ca", "init", ca, "--name", "demo")
    for host in (one, two):
        demo.run(one, "tunsec", "ca", "issue", ca, host.name, "--out", host.folder / "identity")
    (demo.lab.folder / "directory").mkdir()
    demo.quote(demo.run(one, "tunsec", "check", "--host", one.name, POLICY).stdout)


def send_in_clear(demo: Demo) -> None:
    """Nothing protects yet."""
    screen, (one, two) = demo.screen, demo.hosts
    screen.headline("1. Without tunsec: VXLAN as the kernel sends it")
    with demo.part("1 without tunsec") as look:
        demo.show_wire(look, until=in_seconds(1.0))
        demo.claim_ping()
    part = demo.seen[-1]
    for host in (one, two):
        packet = next(one for one in demo.watch.report().clear_examples if host.name in one.port)
        screen.say(f"readable on the wire: {packet.summary}")
    screen.claim(
        f"the watch sees what is clear: {part.clear:,} packets, {sum(part.esp.values()):,} ESP",
        holds=part.clear > PROBE_RATE and not part.esp,
    )


def start_daemons(demo: Demo) -> None:
    """A host sends in clear until its daemon is ready, which means: until it has closed."""
    screen, (one, two) = demo.screen, demo.hosts
    screen.headline("2. tunsecd starts on both hosts, the packets go on")
    with demo.part("2 tunsecd starts") as look:
        for host in (one, two):
            demo.start_daemon(host)
        demo.show_wire(look, until=lambda: demo.is_ready(one) and demo.is_ready(two))


def see_protected(demo: Demo) -> None:
    """From here to the end no clear packet is forgiven."""
    screen, (one, two) = demo.screen, demo.hosts
    screen.headline("3. Both are ready: closed, and then ESP alone")
    with demo.part("3 protected") as look:
        for host in (one, two):
            demo.run(host, "tunsec", "wait", "--timeout", "15", "--run", host.run_dir)
        demo.show_wire(look, until=in_seconds(1.0))
        demo.claim_ping()
    demo.claim_closed()
    demo.quote(demo.run(one, "tunsec", "status", "--run", one.run_dir).stdout)


def rekey_under_load(demo: Demo) -> None:
    """New keys for every SA, three times, while packets are counted."""
    screen, (one, two) = demo.screen, demo.hosts
    screen.headline(f"4. {REKEYS} rekeys of every SA, under load")
    quick = demo.lab.folder / "quick.yaml"
    quick.write_text(POLICY.read_text() + QUICK_REKEY)
    screen.say(
        f"$LAB/quick.yaml is the same policy with {QUICK_REKEY.split(maxsplit=1)[1].strip()}"
    )
    listen = ("--server", "--one-off", "--bind", str(overlay(two, "red")))
    server = two.spawn(["iperf3", *listen, "--forceflush"])
    server.wait_for_line("listening")
    with demo.loaded_part("4 rekeys") as look:
        target = ("--client", str(overlay(two, "red")), "--time", f"{IPERF_SECONDS}")
        load = one.spawn(["iperf3", *target, "--bitrate", IPERF_RATE, "--json"])
        for host in (one, two):
            demo.run(host, "tunsec", "apply", quick, "--run", host.run_dir)
        goals = {host.name: demo.rekeys(host) + REKEYS for host in (one, two)}
        demo.show_wire(
            look,
            until=lambda: (
                not load.alive()
                and all(demo.rekeys(host) >= goals[host.name] for host in (one, two))
            ),
        )
        figures = json.loads(load.output())["end"]["sum_received"]
    demo.claim_nothing_lost()
    for name, src, dst in (("red", one.ipv4, two.ipv4), ("blue", two.ipv6, one.ipv6)):
        used = sum((flow.src, flow.dst) == (src, dst) for flow in demo.seen[-1].esp)
        screen.claim(f"{name}, {src} to {dst}: {used} SAs one after the other", holds=used > REKEYS)
    screen.claim(
        f"iperf3 beside it: {figures['bytes'] / 1e6:.0f} MB of TCP over red at "
        f"{figures['bits_per_second'] / 1e6:.0f} Mbit/s",
        holds=figures["bytes"] > 0,
    )


def kill_daemon(demo: Demo) -> None:
    """The kernel goes on without the daemon; a new one takes over what it finds."""
    screen, (one, _) = demo.screen, demo.hosts
    screen.headline("5. kill -9 of tunsecd on db1, and its return, under load")
    with demo.loaded_part("5 kill -9") as look:
        screen.command(one.name, f"kill -9 {demo.daemons[one.name].pid}")
        old = demo.spis()
        demo.daemons[one.name].kill9()
        away = demo.run(one, "tunsec", "status", "--run", one.run_dir, check=False)
        demo.quote(away.stderr)
        demo.show_wire(look, until=in_seconds(1.0))
        demo.start_daemon(one)
        demo.show_wire(look, until=lambda: demo.is_ready(one) and not demo.spis() & {None, *old})
        with demo.part("fresh keys"):
            demo.show_wire(look, until=in_seconds(0.5))
        fresh = {f"{flow.spi:08x}" for flow in demo.seen.pop().esp}
    screen.claim("tunsec status says that nobody is there", holds=away.status == Exit.AWAY)
    demo.claim_nothing_lost()
    screen.claim(
        f"in the end packets go under fresh keys alone: SPIs {' '.join(sorted(fresh))}",
        holds=bool(fresh) and not fresh & old,
    )


def lose_keys(demo: Demo) -> None:
    """The worst case: no daemon, and somebody deletes the SAs. Closed is what stays."""
    screen, (one, _) = demo.screen, demo.hosts
    screen.headline("6. No daemon and no keys: db1's SAs deleted by hand")
    with demo.part("6 no keys"):
        demo.daemons[one.name].kill9()
        demo.run(one, "ip", "xfrm", "state", "flush", "proto", "esp")
        demo.claim_ping(answered=False)
    part = demo.seen[-1]
    sources = {str(address) for address in one.addresses}
    own = sum(count for flow, count in part.esp.items() if str(flow.src) in sources)
    screen.claim(
        f"blocked, not clear: {part.clear} clear packets, {own} ESP from db1",
        holds=part.clear == 0 and own == 0,
    )
    with demo.part("7 back"):
        demo.start_daemon(one)
        demo.run(one, "tunsec", "wait", "--timeout", "15", "--run", one.run_dir)
        demo.claim_ping()
    demo.claim_closed()


def conclude(demo: Demo) -> None:
    """What was seen, and what tunsec says of itself."""
    screen, (one, _) = demo.screen, demo.hosts
    screen.headline("What was on the wire")
    screen.table(
        ("part", "clear", "ESP", "SAs", "control", "numbered", "lost"),
        [part.row() for part in demo.seen],
    )
    screen.headline("ESP packets per SA")
    flows = list(dict.fromkeys(flow for part in demo.seen for flow in part.esp))
    parts = [part for part in demo.seen if part.esp]
    screen.table(
        ("from", "to", "SPI", *(part.name for part in parts)),
        [
            (
                *(str(flow.src), str(flow.dst), f"{flow.spi:08x}"),
                *(f"{part.esp[flow]:,}" if flow in part.esp else "-" for part in parts),
            )
            for flow in flows
        ],
    )
    screen.headline("tunsec status")
    demo.quote(demo.run(one, "tunsec", "status", "--run", one.run_dir).stdout)
    report = demo.watch.report()
    for packet in report.clear_examples:
        screen.say(f"clear: {packet}")
    screen.claim(
        f"since both daemons are ready: {report.clear} clear packets, "
        f"{report.esp:,} ESP, {report.dropped} missed by the watch",
        holds=not report.clear and not report.dropped and report.esp > 0,
    )


def tell(demo: Demo) -> None:
    """The whole story."""
    load = Load(*demo.hosts)
    with ExitStack() as stack:

        def before_protection() -> None:
            prepare(demo)
            for host in demo.hosts:
                host.raise_overlays()
            stack.enter_context(load)
            send_in_clear(demo)
            start_daemons(demo)

        # What was clear until both daemons were ready is what the watch proves itself with.
        demo.watch.prove_sees(before_protection)
        see_protected(demo)
    demo.screen.say(
        f"{load.lost:,} of the {load.sent:,} numbered packets of parts 1 to 3 came while there "
        "were no keys yet, and were dropped"
    )
    rekey_under_load(demo)
    kill_daemon(demo)
    lose_keys(demo)
    conclude(demo)


def main() -> int:
    """0 if every claim holds."""
    screen = Screen.of_process()
    try:
        # Overlay devices come up where the watch expects clear packets: they send by themselves.
        with Lab("demo", overlays_up=False) as lab:
            screen.say(f"LAB={lab.folder}")
            with LeakWatch(lab, protected=[protect("vxlan")]) as watch:
                demo = Demo(lab, watch, screen)
                try:
                    tell(demo)
                except (LabError, LeakFound, Failed):
                    for daemon in demo.daemons.values():
                        screen.lines(f"{daemon.name}:{daemon.tail()}")
                    raise
    except (LabError, LeakFound, Failed) as error:
        screen.claim(str(error), holds=False)
    return screen.verdict()


if __name__ == "__main__":
    sys.exit(main())
