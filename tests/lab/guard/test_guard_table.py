"""The guard table on a real kernel, without ESP: written, read back, kept, compared, removed."""

import ipaddress
import json
import select
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.namespaces import missing_capability, private_namespace, run
from tunsec.adapters.nft import TOOL_PATH, GuardMonitor, NftGuard
from tunsec.model.errors import Refused, Unavailable
from tunsec.model.flow import Kind
from tunsec.model.guard import Guard, GuardDrops, GuardedFlow, TunnelDevice
from tunsec.model.names import FlowName, Mark
from tunsec.model.selector import TCP, UDP

pytestmark = pytest.mark.skipif(
    missing_capability() is not None or shutil.which("nft", path=TOOL_PATH) is None,
    reason=missing_capability() or "nft is not installed",
)

PEERS = frozenset(map(ipaddress.ip_address, ("192.0.2.2", "192.0.2.9", "2001:db8::2")))
OVERLAY = GuardedFlow(FlowName("tenant-overlay"), Kind.VXLAN, UDP, (4789,), False, PEERS, True)
BUS = GuardedFlow(FlowName("bus.1"), Kind.RDS_TCP, TCP, (7385, 7386), True, PEERS, False)
MARK = Mark(0x10000, 0x10000)


@pytest.fixture
def guard() -> Iterator[Guard]:
    with private_namespace():
        run("ip link add v0 type veth peer name v1")
        for device in ("v0", "v1"):
            run(f"ip link set {device} up")
        run("ip addr add 192.0.2.1/24 dev v0")
        run("ip addr add 2001:db8::1/64 dev v0 nodad")
        run("ip neigh add 192.0.2.2 lladdr 02:00:00:00:00:02 dev v0")
        run("ip neigh add 2001:db8::2 lladdr 02:00:00:00:00:02 dev v0")
        run("ip link add vx0 type vxlan id 5 dstport 4789 local 192.0.2.1 remote 192.0.2.2")
        run("ip link set vx0 addrgenmode none")  # else the kernel's own IPv6 chatter is counted
        run("ip link set vx0 up")
        index = int(json.loads(run("ip -j link show vx0"))[0]["ifindex"])
        overlay = TunnelDevice("vx0", index, Kind.VXLAN, 4789)
        yield Guard((OVERLAY, BUS), (overlay,), MARK)


def send(address: str, port: int, *, mark: int = 0) -> str:
    """Send one datagram; "" or the kernel's refusal."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        try:
            sock.sendto(b"x", (address, port))
        except PermissionError as error:
            return str(error.strerror)
    return ""


def test_what_is_put_is_found_and_put_again_changes_nothing(guard: Guard) -> None:
    table = NftGuard()
    assert not table.intact(guard)
    table.put(guard)
    assert table.drift(guard) == ()
    before = run("nft -y list ruleset")
    table.put(guard)
    assert run("nft -y list ruleset") == before


@pytest.mark.parametrize(
    "vandalism",
    [
        "delete table inet tunsec",
        "delete table netdev tunsec",
        "flush ruleset",
        "flush chain inet tunsec output",
        "flush set inet tunsec peers4.tenant-overlay",
        "delete element inet tunsec peers6.tenant-overlay { 2001:db8::2 }",
        "add element inet tunsec peers4.tenant-overlay { 198.51.100.1 }",
        "insert rule inet tunsec input accept",
        "add rule inet tunsec input drop",
        "add chain inet tunsec mine",
        "add chain inet tunsec mine { type filter hook output priority 0; policy drop; }",
        "add table inet tunsec { flags dormant; }",
        "add set inet tunsec mine { type ipv4_addr; }",
        "add map inet tunsec mine { type ipv4_addr : verdict; }",
        "add counter inet tunsec mine",
        "add chain inet tunsec input { policy drop; }",
        "insert rule inet tunsec input tcp dport 5 jump { counter; accept; }",
        "insert rule inet tunsec input tcp dport vmap { 1 : accept, 2 : drop }",
    ],
)
def test_drift_of_any_kind_is_seen_and_put_right(guard: Guard, vandalism: str) -> None:
    table = NftGuard()
    table.put(guard)
    run("nft -f -", stdin=vandalism)
    assert table.drift(guard)
    table.put(guard)
    assert table.intact(guard)


def test_a_device_made_anew_is_drift_until_the_guard_knows_it(guard: Guard) -> None:
    table = NftGuard()
    table.put(guard)
    run("ip link del vx0")
    run("ip link add vx0 type vxlan id 5 dstport 4789 local 192.0.2.1 remote 192.0.2.2")
    index = int(json.loads(run("ip -j link show vx0"))[0]["ifindex"])
    renewed = replace(guard, devices=(replace(guard.devices[0], ifindex=index),))
    assert not table.intact(renewed)
    table.put(renewed)
    assert table.intact(renewed)


@pytest.mark.parametrize(
    "become",
    [
        ("ip link del vx0", "ip link add vx0 type vxlan id 6 dstport 4789 remote 192.0.2.2"),
        (
            "ip link add vx1 type vxlan id 6 dstport 4789 remote 192.0.2.2",
            *("ip link set vx0 down", "ip link set vx0 name old", "ip link set vx1 name vx0"),
        ),
    ],
    ids=["made anew", "renamed"],
)
def test_a_device_does_not_inherit_the_mark_of_its_name(
    guard: Guard, become: tuple[str, ...]
) -> None:
    """Since Linux 6.16 a chain outlives its device, and hooks the next one of that name: it may be
    another tenant's."""
    table = NftGuard()
    table.put(guard)
    for command in become:
        run(command)
    run("ip link set vx0 addrgenmode none up")
    run("ip addr add 10.9.0.1/24 dev vx0")
    run("ip neigh add 10.9.0.2 lladdr 02:00:00:00:09:02 dev vx0")
    send("10.9.0.2", 9)
    drops = table.drops()[FlowName("tenant-overlay")]  # of IGMP's reports too
    assert (drops.local_injection > 0, drops.clear_out) == (True, 0)


def test_a_vanished_device_leaves_the_flows_guarded(guard: Guard) -> None:
    table = NftGuard()
    gone = replace(guard, devices=(TunnelDevice("nowhere0", 4711, Kind.VXLAN, 4789),))
    try:
        table.put(gone)
    except Refused:  # before Linux 6.16 a chain cannot wait for a device
        assert not table.intact(gone)
    else:
        assert table.intact(gone)
    assert send("192.0.2.2", 4789) == "Operation not permitted"


@pytest.mark.parametrize("name", ['x"; flush rul', "x*", "a\\b"])
def test_a_device_name_never_becomes_a_command(guard: Guard, name: str) -> None:
    table = NftGuard()
    with pytest.raises(Refused, match="rename the device"):
        table.put(replace(guard, devices=(TunnelDevice(name, 9, Kind.VXLAN, 4789),)))
    assert send("192.0.2.2", 4789) == "Operation not permitted"  # the flows are guarded already
    table.put(guard)
    assert table.intact(guard)


@pytest.mark.parametrize("peer", ["192.0.2.2", "2001:db8::2"])
def test_clear_packets_of_a_user_are_dropped_and_counted(guard: Guard, peer: str) -> None:
    table = NftGuard()
    table.put(guard)
    assert send(peer, 4789) == "Operation not permitted"
    assert send(peer, 4789, mark=0x20000) == "Operation not permitted"
    assert send(peer, 4789, mark=0x30000) == "Operation not permitted"  # marked, yet in clear
    assert send(peer, 4790) == ""
    assert table.drops()[FlowName("tenant-overlay")] == GuardDrops(clear_out=1, local_injection=2)


@pytest.mark.parametrize("stranger", ["198.51.100.1", "2001:db8::99"])
def test_a_stranger_is_no_exception_where_strangers_are_blocked(
    guard: Guard, stranger: str
) -> None:
    run(f"ip route add {stranger} dev v0")
    table = NftGuard()
    table.put(guard)
    assert send(stranger, 4789) == ""
    closed = replace(OVERLAY, strangers_blocked=True)
    table.put(replace(guard, flows=(closed, BUS)))
    assert table.intact(replace(guard, flows=(closed, BUS)))
    assert not table.intact(guard)
    assert send(stranger, 4789) == "Operation not permitted"
    assert send(stranger, 4789, mark=0x10000) == "Operation not permitted"
    assert send(stranger, 4790) == ""
    assert table.drops()[FlowName("tenant-overlay")] == GuardDrops(clear_out=1, local_injection=1)


def test_counters_go_on_over_replacement_and_go_with_their_flow(guard: Guard) -> None:
    table = NftGuard()
    table.put(guard)
    send("192.0.2.2", 4789)
    fewer_peers = replace(OVERLAY, peers=frozenset({ipaddress.ip_address("192.0.2.2")}))
    table.put(replace(guard, flows=(fewer_peers,)))
    assert table.drops() == {"tenant-overlay": GuardDrops(local_injection=1)}
    table.put(replace(guard, flows=(BUS,)))
    assert table.drops() == {"bus.1": GuardDrops()}


def test_a_tcp_flow_is_guarded_whichever_side_listens(guard: Guard) -> None:
    NftGuard().put(guard)
    for local_port, remote_port in ((0, 7385), (7385, 7)):
        with socket.socket() as sock:
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("192.0.2.1", local_port))
            # The kernel drops the SYN in silence and would try again: it is still connecting.
            assert sock.connect_ex(("192.0.2.2", remote_port)) != 0
    assert NftGuard().drops()[FlowName("bus.1")].clear_out == 2


def test_what_the_tunnel_device_sends_bears_the_mark_and_keeps_other_bits(guard: Guard) -> None:
    table = NftGuard()
    table.put(guard)
    run(
        "nft -f -",
        stdin="table inet witness { counter both { }; counter bare { }; chain c {"
        "type filter hook output priority 0; "
        "udp dport 4789 meta mark 0x00010007 counter name both\n"
        "udp dport 4789 meta mark & 0x00010000 == 0 counter name bare; }; };",
    )
    run("ip addr add 10.9.0.1/24 dev vx0")
    run("ip neigh add 10.9.0.2 lladdr 02:00:00:00:09:02 dev vx0")
    send("10.9.0.2", 9, mark=7)
    send("10.9.0.3", 9)  # an ARP request, which has no IP header
    listing = run("nft list table inet witness")
    assert "counter both {\n\t\tpackets 1 " in listing
    assert "counter bare {\n\t\tpackets 0 " in listing
    drops = table.drops()[FlowName("tenant-overlay")]
    assert drops.local_injection == 0
    assert drops.clear_out >= 2


def test_nobody_elses_table_is_touched(guard: Guard) -> None:
    foreign = (
        "table inet other { chain c { type filter hook output priority 0; "
        "udp dport 9 counter drop; }; };\ntable ip tunsec { set s { type ipv4_addr; }; };\n"
    )
    run("nft -f -", stdin=foreign)
    before = run("nft -a list ruleset")
    table = NftGuard()
    table.put(guard)
    table.put(replace(guard, flows=()))
    table.remove()
    table.remove()
    assert run("nft -a list ruleset") == before
    assert table.drops() == {}


def test_the_monitor_hears_of_our_tables_only(guard: Guard) -> None:
    table = NftGuard()
    table.put(guard)
    with GuardMonitor() as monitor:
        assert monitor.read() is False
        run("nft add table inet other")
        assert select.select([monitor], [], [], 5)[0]
        assert monitor.read() is False
        for change in ("flush chain inet tunsec input", "delete table inet tunsec"):
            run(f"nft {change}")
            assert select.select([monitor], [], [], 5)[0]
            assert monitor.read() is True
        run("nft -f -", stdin="flush ruleset")
        assert monitor.read() is True


def test_the_boot_file_closes_the_flows_without_tunsec(guard: Guard, tmp_path: Path) -> None:
    kept = tmp_path / "guard.nft"
    table = NftGuard(boot_file=kept)
    table.put(guard)
    inode = kept.stat().st_ino
    table.put(guard)
    assert kept.stat().st_ino == inode  # what says the same is not written again
    NftGuard().remove()
    run(f"nft -f {kept}")
    assert table.drift(replace(guard, devices=())) == ("table netdev tunsec is gone",)
    assert send("192.0.2.2", 4789) == "Operation not permitted"
    table.put(guard)
    assert table.drops()["tenant-overlay"].local_injection == 1
    table.remove()
    assert not kept.exists()


def test_an_own_user_with_net_admin_is_enough(guard: Guard, tmp_path: Path) -> None:
    program = (
        "from tests.lab.guard.test_guard_table import BUS, MARK, OVERLAY\n"
        "from tunsec.adapters.links import HostLinks, LinkMonitor\n"
        "from tunsec.adapters.nft import GuardMonitor, NftGuard\n"
        "from tunsec.model.guard import Guard\n"
        "with GuardMonitor(), LinkMonitor(), HostLinks() as links:\n"
        "    NftGuard().put(Guard((OVERLAY, BUS), (), MARK))\n"
        "    print(len(links.overlay_devices()), NftGuard().drops())\n"
    )
    done = subprocess.run(
        (
            "setpriv",
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "--no-new-privs",
            "--inh-caps=-all,+net_admin",
            "--ambient-caps=-all,+net_admin",
            "--bounding-set=-all,+net_admin",
            sys.executable,
            "-c",
            program,
        ),
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stderr == ""
    assert done.stdout.startswith("1 {")


def test_without_nft_the_guard_is_unavailable() -> None:
    with pytest.raises(Unavailable, match="cannot run"):
        NftGuard(tool="/nonexistent/nft").drops()
