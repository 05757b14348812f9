"""A peer with charon and without tunsec, set up as docs/ike.md says: its blocks are run here."""

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tunsec.wire.control import FlowStatus
from tunsec_lab.capture import LeakWatch
from tunsec_lab.charon import LabCharon
from tunsec_lab.cluster import Cluster
from tunsec_lab.host import Host, Lab
from tunsec_lab.probe import Probe
from tunsec_lab.topology import FOLDER, Address, Topology, parse_topology

pytestmark = pytest.mark.needs(
    "esp-ipv4", "esp-ipv6", "esn", "vxlan", "bridge", "nft-inet", "nft-netdev-egress"
)

PAGE = Path(__file__).parents[3] / "docs" / "ike.md"
HEADING = "## A peer without tunsec"
TUNSEC, PLAIN = "db1", "db2"
PSK = "67a1c6cd4f7b9f04c1c8c17e6b24e8f0b6d9a1e53d2c4f7a8b9c0d1e2f3a4b5c"
IKE = "  {keying: ike}\n"
QUICK = "  {keying: ike, rekey: {after: 1s, hard: 60s, jitter: 0%}}\n"
OVERLAYS = ("red", "blue")
REKEYS = 20
OFTEN = """
connections { db1-ipv4 { children { to-db1 {
    rekey_time = 2s
    rand_time = 0s
    life_time = 60s
} } } }
"""


def blocks(language: str) -> list[str]:
    """What the page shows in one language."""
    section = PAGE.read_text().partition(HEADING)[2].partition("\n## ")[0]
    return re.findall(rf"^ *```{language}\n(.*?)^ *```", section, flags=re.DOTALL | re.MULTILINE)


def topology(names: dict[str, str]) -> Topology:
    """The lab's two hosts under other names."""
    text = (FOLDER / "two-hosts.yaml").read_text()
    for old, new in names.items():
        text = re.sub(rf"\b{old}:", f"{new}:", text)
    return parse_topology(text, name="plain-peer")


def configuration(tunsec: str) -> str:
    """The page's swanctl.conf, for a host with tunsec of any name: its labels tell the sender by
    the order of the names."""
    conf = blocks("conf")[0].replace(f"id = {TUNSEC}", f"id = {tunsec}")
    if tunsec < PLAIN:
        return conf
    other = {"a": "b", "b": "a"}
    return re.sub(r"(label = overlay\.)([ab])", lambda found: found[1] + other[found[2]], conf)


@pytest.fixture
def tunsec_name() -> str:
    """Of the host that runs tunsec."""
    return TUNSEC


@pytest.fixture
def lab(tunsec_name: str) -> Iterator[Lab]:
    with Lab(topology({"a": tunsec_name, "b": PLAIN}), overlays_up=False) as made:
        yield made


@dataclass
class Plain:
    """A host with charon and without tunsec; `conf` is its swanctl.conf. With a PSK it has no
    `identity`."""

    host: Host
    identity: Path | None
    conf: str

    def __post_init__(self) -> None:
        self.folder = self.host.folder / "swanctl"
        self.charon = LabCharon(self.host)

    def set_up(self) -> None:
        """All that the page tells, in its order."""
        self.close()
        self.folder.mkdir()
        if self.identity is not None:
            copy_identity(self.identity, self.folder)
        (self.folder / "swanctl.conf").write_text(self.conf)
        self.start()

    def close(self) -> None:
        """Block what charon does not protect."""
        self.host.run(["sh", "-e"], stdin=blocks("sh")[0])

    def start(self) -> None:
        """Start charon and load its configuration."""
        self.charon.start()
        self.swanctl("--load-all")

    def swanctl(self, command: str) -> str:
        """What it says; an error if anything was not loaded."""
        argv = ["swanctl", command, "--uri", self.charon.url]
        return self.host.run(argv, env={"SWANCTL_DIR": str(self.folder)}).stdout

    def has_taken(self, device: str) -> int:
        """Packets that came in on a tunnel device."""
        shown = self.host.run(["ip", "-json", "-stats", "link", "show", "dev", device]).stdout
        return int(json.loads(shown)[0]["stats64"]["rx"]["packets"])


def copy_identity(identity: Path, swanctl: Path) -> None:
    """Put the files of an identity folder where swanctl looks for them."""
    for source, target in (
        ("cert.pem", "x509/db2.pem"),
        ("key.pem", "private/db2.pem"),
        ("ca.pem", "x509ca/cluster.pem"),
    ):
        (swanctl / target).parent.mkdir()
        shutil.copy(identity / source, swanctl / target)


class Both:
    """The host with tunsec and the plain one; `extra` is added to the page's swanctl.conf."""

    def __init__(
        self, lab: Lab, *, defaults: str = IKE, ike: str = "  {}\n", extra: str = ""
    ) -> None:
        self.cluster = Cluster(lab, defaults=defaults, ike=ike)
        self.tunsec, host = lab.hosts.values()
        conf = configuration(self.tunsec.name) + extra
        self.plain = Plain(host, self.cluster.identity(host), conf)

    def start(self) -> None:
        """Everything, to where both overlays work both ways."""
        self.plain.set_up()
        self.cluster.start_charon(self.tunsec)
        self.cluster.start(self.tunsec)
        for host in (self.tunsec, self.plain.host):
            host.raise_overlays()
        self.wait_protected()

    def wait_protected(self, *, timeout: float = 40.0) -> None:
        """Returns when each side sends on a CHILD_SA of its own. The plain one needs a reason.

        Neighbours are known from then on: a question asked while it was blocked would still fail
        the first packet after it.
        """
        for host in (self.tunsec, self.plain.host):
            host.know_neighbours()
        until = time.monotonic() + timeout
        while not all(one.protected and senders(one) == {False, True} for one in self.flows()):
            shown = f"{self.flows()}\n{self.plain.swanctl('--list-sas')}"
            assert time.monotonic() < until, shown
            for name in OVERLAYS:
                self.plain.host.reaches(self.tunsec.overlay_addresses(name)[0], wait=0.1)

    def flows(self) -> tuple[FlowStatus, ...]:
        """What tunsec says of the two pairs of addresses."""
        return self.cluster.status(self.tunsec).flows

    def ways(self) -> list[tuple[Host, Host, Address]]:
        """Source, target and its address: from tunsec's host and from the plain one, over IPv4,
        then over IPv6."""
        ends = (self.tunsec, self.plain.host)
        return [
            (source, target, target.overlay_addresses(name)[0])
            for name in OVERLAYS
            for source, target in (ends, ends[::-1])
        ]

    def under_load(self, act: Callable[[], None]) -> list[int]:
        """What is lost meanwhile, each way."""
        with ExitStack() as stack:
            running = [
                stack.enter_context(Probe(source, target, to=address, port=port))
                for port, (source, target, address) in enumerate(self.ways(), start=9000)
            ]
            act()
        assert all(probe.report.sent > 1000 for probe in running)
        return [probe.report.lost for probe in running]


def senders(flow: FlowStatus) -> set[bool]:
    """Of the CHILD_SAs of a flow: whether tunsec's host sends on it, or the plain one.

    While it rekeys there are more than two.
    """
    assert flow.ike is not None
    return {one.own for one in flow.ike.child_sas}


@pytest.mark.parametrize("tunsec_name", [TUNSEC, pytest.param("db3", marks=pytest.mark.long)])
def test_each_side_sends_on_its_own_child_sa(lab: Lab, watch: LeakWatch) -> None:
    both = Both(lab)
    both.start()
    for source, _, address in both.ways():
        assert source.ping(address, count=20).lost == 0
    assert len(watch.report().esp_flows) == 4
    # What is not VXLAN is none of charon's business.
    for source, target in ((both.tunsec, both.plain.host), (both.plain.host, both.tunsec)):
        for underlay in target.addresses:
            with Probe(source, target, to=underlay, count=20) as probe:
                probe.wait()
            assert probe.report.lost == 0


@pytest.mark.long
def test_with_a_psk(lab: Lab, watch: LeakWatch) -> None:
    secret = lab.folder / "psk"
    secret.write_text(f"{PSK}\n")
    secret.chmod(0o600)
    both = Both(
        lab,
        ike=f"  {{auth: psk, psk_file: {secret}}}\n",
        extra=blocks("conf")[1].replace("PSK", PSK),
    )
    both.plain.identity = None
    both.start()
    for source, _, address in both.ways():
        assert source.ping(address, count=20).lost == 0
    assert "authentication of 'db1' with pre-shared key successful" in both.plain.charon.log()


def test_the_plain_host_asks_before_tunsec_is_there(lab: Lab, watch: LeakWatch) -> None:
    """Its first try is refused, as tunsec has not loaded anything yet; its packets make others."""
    both = Both(lab)
    both.cluster.start_charon(both.tunsec)
    both.plain.set_up()
    both.plain.host.raise_overlays()
    to = both.tunsec.overlay_addresses("red")[0]
    assert not both.plain.host.reaches(to)
    assert "NO_PROPOSAL_CHOSEN" in both.plain.charon.log()
    both.cluster.start(both.tunsec)
    both.tunsec.raise_overlays()
    began = time.monotonic()
    both.wait_protected()
    print(f"protected both ways after {time.monotonic() - began:.1f} s")
    assert both.plain.host.ping(to, count=5).lost == 0


@pytest.mark.long
@pytest.mark.timeout(200)
def test_rekeys_of_both_sides_lose_nothing(lab: Lab, watch: LeakWatch) -> None:
    """charon's own rekeying on the plain host crosses tunsec's."""
    both = Both(lab, defaults=QUICK, ike="  {rekey: 60s}\n", extra=OFTEN)
    both.start()

    def rekeys() -> None:
        so_far = max(flow.rekeys for flow in both.flows())
        both.cluster.wait_until(both.tunsec, rekeys=so_far + REKEYS)

    assert both.under_load(rekeys) == [0, 0, 0, 0]
    log = both.plain.charon.log()
    assert len(re.findall(r"CHILD_SA to-db1\{\d+\} established", log)) > 4, "it rekeyed nothing"


@pytest.mark.long
@pytest.mark.timeout(200)
def test_charons_that_crash_or_stop_leak_nothing(lab: Lab, watch: LeakWatch) -> None:
    both = Both(lab)
    both.start()

    def crash_tunsecs() -> None:
        both.cluster.charons[both.tunsec.name].kill9()
        time.sleep(1.0)  # as systemd restarts it
        both.cluster.start_charon(both.tunsec)
        time.sleep(8.0)
        both.wait_protected()

    def crash_plain() -> None:
        both.plain.charon.kill9()
        time.sleep(1.0)
        both.plain.start()
        time.sleep(8.0)
        both.wait_protected()

    def stop_plain() -> None:
        both.plain.charon.stop()
        time.sleep(1.0)
        both.plain.start()
        both.wait_protected()

    lost = both.under_load(crash_tunsecs)
    print(f"charon beside tunsec killed: lost {lost}")
    assert lost[::2] == [0, 0], "towards the plain host the SAs in the kernel carry on"
    for what, act in (
        ("charon of the plain host killed", crash_plain),
        ("charon of the plain host stopped", stop_plain),
    ):
        print(f"{what}: lost {both.under_load(act)}")


def test_the_plain_host_is_closed_without_charon(lab: Lab, watch: LeakWatch) -> None:
    both = Both(lab)
    both.start()
    a, b = both.tunsec, both.plain.host
    to = a.overlay_addresses("red")[0]
    assert b.reaches(to)
    both.plain.charon.stop()
    assert "tmpl" not in b.run(["ip", "xfrm", "policy"]).stdout
    assert not b.reaches(to, wait=0.3)

    def clear_gets_in() -> bool:
        before = both.plain.has_taken("vx41")
        a.ping(b.overlay_addresses("red")[0], count=8, interval=0.2, wait=0.3)
        return both.plain.has_taken("vx41") > before

    def open_both() -> None:
        both.cluster.daemons[a.name].kill9()
        a.ip("xfrm state flush", "xfrm policy flush")
        a.nft("flush ruleset")
        assert not clear_gets_in()
        b.ip("xfrm policy flush")
        assert clear_gets_in()
        assert b.reaches(to)
        both.plain.close()
        assert not clear_gets_in()
        a.lower_overlays()

    watch.prove_sees(open_both)
    assert not b.reaches(to, wait=0.3)
