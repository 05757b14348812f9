"""The lab itself: hosts, wires, faults, and a leak watch that is not blind."""

import socket
import threading
import time
from itertools import permutations
from pathlib import Path

import pytest

from tunsec_lab.capture import LeakFound, LeakWatch
from tunsec_lab.errors import LabError
from tunsec_lab.faults import Impairment
from tunsec_lab.host import RDMA_DEVICES, Host, Lab
from tunsec_lab.namespaces import NAMES, inside, ip, processes_in
from tunsec_lab.packets import protect
from tunsec_lab.probe import Probe
from tunsec_lab.process import CommandFailed
from tunsec_lab.roce import add_rxe

KEY = "0x" + bytes(range(36)).hex()
VXLAN_ESP = ("esp-ipv4", "esp-ipv6", "aead-chacha20-poly1305", "esn")
pytestmark = pytest.mark.needs("bridge", "vxlan", "ping")


def protect_by_hand(one: Host, other: Host) -> None:
    """ESP for VXLAN between two hosts, both families, as an administrator would do it."""
    for host, peer, spi_out, spi_in in ((one, other, 0x101, 0x102), (other, one, 0x102, 0x101)):
        for near, far in zip(host.addresses, peer.addresses, strict=True):
            out, back = f"src {near} dst {far}", f"src {far} dst {near}"
            aead = f"aead rfc7539esp(chacha20,poly1305) {KEY} 128"
            sa = f"mode transport replay-window 1024 flag esn {aead}"
            out_tmpl, back_tmpl = (f"tmpl {way} proto esp mode transport" for way in (out, back))
            host.ip(
                f"xfrm state add {back} proto esp spi {spi_in:#x} {sa}",
                f"xfrm state add {out} proto esp spi {spi_out:#x} {sa}",
                f"xfrm policy add {out} proto udp dport 4789 dir out {out_tmpl}",
                f"xfrm policy add {back} proto udp dport 4789 dir in {back_tmpl}",
            )


def unprotect(*hosts: Host) -> None:
    for host in hosts:
        host.ip("xfrm policy flush", "xfrm state flush")


# -- hosts and wires --------------------------------------------------------------------------


def test_hosts_reach_each_other_at_once_in_both_families(two_hosts: Lab) -> None:
    a, b = two_hosts.hosts["a"], two_hosts.hosts["b"]
    for address in (*b.addresses, *b.overlay_addresses("red"), *b.overlay_addresses("blue")):
        assert a.ping(address).lost == 0


def test_every_pair_of_three_hosts_shares_the_overlay(three_hosts: Lab) -> None:
    for one, other in permutations(three_hosts.hosts.values(), 2):
        for address in other.overlay_addresses("red"):
            assert one.reaches(address)


def test_overlay_and_underlay_have_the_mtu_of_the_topology(two_hosts: Lab) -> None:
    a, b = two_hosts.hosts["a"], two_hosts.hosts["b"]
    assert a.ping(b.ipv4, size=1500 - 28).lost == 0
    assert a.ping(b.overlay_addresses("red")[0], size=1400 - 28).lost == 0
    assert a.ping(b.overlay_addresses("red")[0], size=1400 - 27).received == 0


def test_two_labs_do_not_meet(two_hosts: Lab) -> None:
    with Lab("two-hosts") as other:
        two_hosts.hosts["b"].destroy()
        assert other.hosts["a"].reaches(other.hosts["b"])
        assert not two_hosts.hosts["a"].reaches("192.0.2.12", wait=0.2)


def test_a_rebooted_host_comes_back_as_it_was_but_empty(two_hosts: Lab) -> None:
    a, b = two_hosts.hosts["a"], two_hosts.hosts["b"]
    assert a.reaches(b.overlay_addresses("red")[0])
    daemon = b.spawn(["sleep", "1000"])
    # A daemon that left its session is found by its namespace.
    b.run(["sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 &"])
    (b.run_dir / "socket").touch()
    (b.state_dir / "kept").touch()
    b.destroy()
    assert not daemon.alive()
    assert not (NAMES / b.netns).exists()
    assert not a.reaches(b.ipv4, wait=0.1)
    b.recreate()
    a.ip("neigh flush all")  # what could not be found while b was away is asked for again
    assert a.reaches(b.ipv4)
    assert a.reaches(b.overlay_addresses("red")[0])
    assert a.reaches(b.overlay_addresses("blue")[1])
    assert not processes_in([b.netns])
    assert list(b.run_dir.iterdir()) == []
    assert (b.state_dir / "kept").exists()


@pytest.mark.needs("rxe")
def test_soft_roce_is_gone_before_the_host_is() -> None:
    """While it is going, no namespace can be made: neither the host's nor the next lab's."""
    with Lab("two-hosts", overlays_up=False) as lab:
        a, b = lab.hosts.values()
        for host in (a, b):
            add_rxe(host)
        b.destroy()
        assert [(RDMA_DEVICES / host.rxe).exists() for host in (a, b)] == [True, False]
        b.recreate()
        add_rxe(b)
    assert not any((RDMA_DEVICES / host.rxe).exists() for host in (a, b))


def test_everything_is_undone_when_a_scenario_fails() -> None:
    netns_before = {path.name for path in NAMES.iterdir()} if NAMES.exists() else set()
    kept = {}

    def scenario() -> None:
        with Lab("two-hosts") as lab:
            kept[lab.folder] = lab.hosts["a"].spawn(["sleep", "1000"])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        scenario()
    ((folder, sleeper),) = kept.items()
    assert not sleeper.alive()
    assert not folder.exists()
    assert {path.name for path in NAMES.iterdir()} == netns_before


# -- programs ---------------------------------------------------------------------------------


def test_commands_run_in_their_host(two_hosts: Lab) -> None:
    a = two_hosts.hosts["a"]
    assert "192.0.2.11" in a.run(["ip", "-4", "addr"]).stdout
    assert a.run(["cat"], stdin="words").stdout == "words"
    assert a.run(["false"], check=False).status == 1
    with pytest.raises(CommandFailed, match=r"host a: sh -c .*status 3(.|\n)*a reason"):
        a.run(["sh", "-c", "echo a reason >&2; exit 3"])
    with pytest.raises(LabError, match="still ran after"):
        a.run(["sleep", "100"], timeout=0.2)
    assert not processes_in([a.netns])


def test_a_daemon_is_heard_stopped_and_started_again(two_hosts: Lab) -> None:
    a = two_hosts.hosts["a"]
    daemon = a.spawn(["sh", "-c", "echo up; sleep 0.2; echo ready 7; exec sleep 1000"])
    assert daemon.wait_for_line(r"^ready (\d)$")[1] == "7"
    daemon.freeze()
    state = Path(f"/proc/{daemon.pid}/stat").read_text().split(") ")[1][0]
    assert state == "T"
    daemon.thaw()
    assert daemon.alive()
    assert daemon.kill9() == -9
    with pytest.raises(LabError, match="ended"):
        daemon.wait_for_line("never")


def test_a_daemon_can_have_a_run_folder_of_its_own(two_hosts: Lab) -> None:
    a = two_hosts.hosts["a"]
    marker = Path("/run") / f"{a.netns}.pid"
    shared = a.run_dir / "seen-by-all"
    daemon = a.spawn(
        ["sh", "-c", f"touch {marker} {shared}; echo ready; exec sleep 1000"], own_run=True
    )
    daemon.wait_for_line("ready")
    assert shared.exists()
    assert not marker.exists()


# -- faults -----------------------------------------------------------------------------------


@pytest.mark.needs("netem")
def test_faults_come_and_go(two_hosts: Lab) -> None:
    a, b = two_hosts.hosts["a"], two_hosts.hosts["b"]
    assert a.reaches(b)
    with two_hosts.faults.link_down("b"):
        assert not a.reaches(b, wait=0.1)
        assert "NO-CARRIER" in b.run(["ip", "link", "show", "eth0"]).stdout
    assert a.reaches(b, wait=2)
    with two_hosts.faults.impair("b", Impairment(loss_percent=100)):
        assert not a.reaches(b, wait=0.1)
    assert a.reaches(b, wait=2)
    with two_hosts.faults.impair("b", Impairment(delay_ms=60)):
        began = time.monotonic()
        assert a.reaches(b)
        assert time.monotonic() - began > 0.06


@pytest.mark.needs("netem")
def test_an_answer_that_comes_late_is_not_lost(two_hosts: Lab) -> None:
    """Every second one at once, the others and the last one much later."""
    a, b = two_hosts.hosts["a"], two_hosts.hosts["b"]
    assert a.reaches(b)
    late = "delay 300ms reorder 100% gap 2"
    ip(f"qdisc add dev eth0 root netem {late}", netns=b.netns, program="tc")
    assert a.ping(b, count=5, interval=0.01).lost > 0, "what ping itself would say"
    assert a.ping(b, count=5).lost == 0


def test_a_partition_cuts_between_groups_only(three_hosts: Lab) -> None:
    a, b, c = three_hosts.hosts.values()
    with three_hosts.faults.partition(["a"], ["b", "c"]):
        assert b.reaches(c, wait=2)
        assert not a.reaches(b, wait=0.1)
        assert not c.reaches(a, wait=0.1)
    assert a.reaches(b, wait=2)
    assert c.reaches(a, wait=2)


# -- the leak watch ---------------------------------------------------------------------------


@pytest.mark.needs(*VXLAN_ESP)
@pytest.mark.parametrize("count_esp_only", [False, True])
def test_the_watch_tells_clear_from_esp(lab: Lab, count_esp_only: bool) -> None:
    a, b = lab.hosts["a"], lab.hosts["b"]
    with LeakWatch(lab, protected=[protect("vxlan")], count_esp_only=count_esp_only) as watch:
        protect_by_hand(a, b)
        for host in (a, b):
            host.raise_overlays()
        assert a.ping(b.overlay_addresses("red")[0], count=5).lost == 0
        assert a.ping(b.overlay_addresses("blue")[1], count=5).lost == 0
        with pytest.raises(LeakFound, match="never shown"):
            watch.assert_closed()

        def exposed() -> None:
            unprotect(a, b)
            assert a.ping(b.overlay_addresses("red")[0]).lost == 0
            protect_by_hand(a, b)

        assert watch.prove_sees(exposed) >= 6
        report = watch.report()
        assert report.clear == 0, str(report)
        assert report.esp >= 20
        if not count_esp_only:
            assert {(flow.src, flow.spi) for flow in report.esp_flows} == {
                *((address, 0x101) for address in a.addresses),
                *((address, 0x102) for address in b.addresses),
            }
        watch.assert_closed()


@pytest.mark.needs(*VXLAN_ESP)
def test_one_clear_packet_fails_the_watch(lab: Lab) -> None:
    a, b = lab.hosts["a"], lab.hosts["b"]
    matcher = protect("vxlan", between=(a.addresses, b.addresses))
    with LeakWatch(lab, protected=[matcher]) as watch:
        watch.assert_closed(needs_esp=False, needs_proof=False)
        with inside(a.netns), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"secret", (str(b.ipv6), 4789))
        report = watch.report()
        with pytest.raises(LeakFound, match=r"1 clear packets(.|\n)*2001:db8::12.4789"):
            report.assert_closed()
        # The answer of b's kernel quotes the clear packet: reported apart.
        assert report.quoted == 1


def test_the_watch_sees_fragments_of_a_protected_flow(lab: Lab) -> None:
    a, b = lab.hosts["a"], lab.hosts["b"]
    with LeakWatch(lab, protected=[protect("udp", port=5000)]) as watch:
        for address in b.addresses:
            family = socket.AF_INET if address.version == 4 else socket.AF_INET6
            with inside(a.netns), socket.socket(family, socket.SOCK_DGRAM) as sock:
                sock.sendto(bytes(4000), (str(address), 5000))
                sock.sendto(bytes(4000), (str(address), 5001))
        report = watch.report()
        assert report.clear == 6, report.clear_examples


def test_the_watch_goes_on_while_a_host_reboots(lab: Lab) -> None:
    a, b = lab.hosts["a"], lab.hosts["b"]
    with LeakWatch(lab, protected=[protect("vxlan")]) as watch:
        b.destroy()
        assert watch.report().clear == 0
        b.recreate()
        a.raise_overlays()
        b.raise_overlays()
        assert b.reaches(a.overlay_addresses("red")[0])
        examples = watch.report().clear_examples
        assert any(packet.port == "b.eth0" for packet in examples)


def test_a_watch_that_lost_packets_does_not_pass(
    two_hosts: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = two_hosts.hosts["a"], two_hosts.hosts["b"]
    hold = threading.Event()
    with LeakWatch(two_hosts, protected=[protect("geneve")]) as watch:
        monkeypatch.setattr("tunsec_lab.capture.Ring.drain", lambda ring, take: hold.wait())
        with inside(a.netns), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for _ in range(70_000):
                sock.sendto(b"x", (str(b.ipv4), 7))
        monkeypatch.undo()
        hold.set()
        with pytest.raises(LeakFound, match=r"lost|deaf"):
            watch.assert_closed(needs_esp=False, needs_proof=False)
        with pytest.raises(LeakFound):  # and stays so until the end of the watch
            watch.assert_closed(needs_esp=False, needs_proof=False)


def test_the_watch_knows_all_of_a_flood_or_what_it_missed(two_hosts: Lab) -> None:
    a, b = two_hosts.hosts["a"], two_hosts.hosts["b"]
    count = 20_000
    with LeakWatch(two_hosts, protected=[protect("geneve")]) as watch:
        with inside(a.netns), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for _ in range(count):
                sock.sendto(b"x", (str(b.ipv4), 6081))
        report = watch.report()
    # A packet that a sender's own queues lose on a busy machine was never on the wire.
    assert count * 0.99 < report.clear + report.dropped
    assert report.clear <= count


# -- the probe --------------------------------------------------------------------------------


@pytest.mark.needs("netem")
def test_the_probe_counts_what_a_fault_takes(two_hosts: Lab) -> None:
    a, b = two_hosts.hosts["a"], two_hosts.hosts["b"]
    with Probe(a, b, to=b.overlay_addresses("red")[0], rate=500, count=250) as probe:
        probe.wait(timeout=20)
    assert probe.report.sent == 250
    assert probe.report.lost == 0
    with Probe(a, b, to=b.overlay_addresses("red")[0], rate=500, count=250) as probe:
        with two_hosts.faults.impair("b", Impairment(loss_percent=100)):
            time.sleep(0.1)
        probe.wait(timeout=20)
    assert 0 < probe.report.lost < 250
    assert probe.report.longest_gap_ms > 50


@pytest.mark.virtual_time
def test_a_day_of_probes_in_virtual_time(two_hosts: Lab) -> None:
    a, b = two_hosts.hosts["a"], two_hosts.hosts["b"]
    with LeakWatch(two_hosts, protected=[protect("geneve")]) as watch:
        with Probe(a, b, to=b.overlay_addresses("red")[0], rate=1, count=86_400) as probe:
            probe.wait()
        assert watch.report().other >= 86_400
    assert (probe.report.sent, probe.report.lost) == (86_400, 0)
