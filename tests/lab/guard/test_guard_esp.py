"""The guard with real ESP: what is protected passes, whatever is not is dropped and counted."""

import socket
from collections.abc import Iterator

import pytest

from tests.lab.guard.esp_pair import OVERLAY, PORTS, Host, esp_pair, missing_esp
from tests.namespaces import inside, named_namespaces, run
from tunsec.model.flow import Kind
from tunsec.model.guard import GuardDrops

pytestmark = pytest.mark.skipif(missing_esp() is not None, reason=str(missing_esp()))

FORGED = b"forged"
WITNESS = (
    "table inet witness { counter forged { }; chain c { type filter hook input priority 0; "
    f"udp dport 4789 udp length {8 + len(FORGED)} meta ipsec exists counter name forged; }}; }};"
)


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def version(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(params=[Kind.VXLAN, Kind.GENEVE], ids=str)
def pair(request: pytest.FixtureRequest, version: int) -> Iterator[tuple[Host, Host]]:
    with esp_pair(request.param, version) as hosts:
        for host in hosts:
            host.put_guard()
        yield hosts


@pytest.fixture
def vxlan_pair(version: int) -> Iterator[tuple[Host, Host]]:
    with esp_pair(Kind.VXLAN, version) as hosts:
        for host in hosts:
            host.put_guard()
        yield hosts


def test_what_is_protected_passes(pair: tuple[Host, Host]) -> None:
    a, b = pair
    assert a.reaches(b.overlay)
    if a.local.version == 4:  # over IPv6 the kernel does not fragment what a tunnel sends
        for host in (a, b):
            host.run("ip link set tun0 mtu 3000")
    assert a.reaches(b.overlay, "-s 4000")
    assert (a.drops(), b.drops()) == (GuardDrops(), GuardDrops())


def test_what_would_leave_in_clear_is_dropped_and_counted(pair: tuple[Host, Host]) -> None:
    a, b = pair
    a.unprotect("out")
    assert not a.reaches(b.overlay)
    assert a.drops().clear_out >= 1
    assert b.drops() == GuardDrops()


def test_what_arrives_in_clear_is_dropped_and_counted(pair: tuple[Host, Host]) -> None:
    a, b = pair
    a.unprotect("out")
    b.unprotect("in")  # the first layer of law 1 is gone: the guard is alone
    a.run("nft delete table inet tunsec")
    assert not a.reaches(b.overlay)
    assert b.drops().clear_in >= 1
    b.run("nft delete table inet tunsec")
    b.unprotect("out")
    a.unprotect("in")
    assert a.reaches(b.overlay)  # it was the guard indeed


def test_a_user_cannot_have_a_datagram_encrypted(pair: tuple[Host, Host]) -> None:
    a, b = pair
    family = socket.AF_INET if a.local.version == 4 else socket.AF_INET6
    with inside("ga"), socket.socket(family, socket.SOCK_DGRAM) as sock:
        where = (str(b.local), PORTS[a.kind])
        for _ in range(2):
            with pytest.raises(PermissionError):
                sock.sendto(b"forged", where)
    assert a.drops() == GuardDrops(local_injection=2)


def test_a_masqueraded_container_cannot_either(vxlan_pair: tuple[Host, Host]) -> None:
    a, b = vxlan_pair
    four = a.local.version == 4
    inner = ("198.51.100.1", "198.51.100.2", 24) if four else ("fd00::1", "fd00::2", 64)
    with named_namespaces("gc"):
        run("ip -n ga link add c0 type veth peer name c0 netns gc")
        for name, address in (("ga", inner[0]), ("gc", inner[1])):
            nodad = "" if four else " nodad"
            run(f"ip -n {name} addr add {address}/{inner[2]} dev c0{nodad}")
            run(f"ip -n {name} link set c0 up")
        run(f"ip -n gc route add default via {inner[0]}")
        a.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
        with inside("ga"):
            run(
                "nft -f -",
                stdin="table inet nat { chain c { type nat hook postrouting priority 100; "
                "oifname u0 masquerade; }; };",
            )
        assert run(f"ip netns exec gc ping -c 1 -W 2 {b.local}")  # the way is open
        with inside("gb"):
            run("nft -f -", stdin=WITNESS)

        def forge() -> str:
            family = socket.AF_INET if four else socket.AF_INET6
            with inside("gc"), socket.socket(family, socket.SOCK_DGRAM) as sock:
                for _ in range(3):
                    sock.sendto(FORGED, (str(b.local), 4789))
            return b.run("nft list counter inet witness forged").split("\n")[2].strip()

        assert forge().startswith("packets 0 ")
        assert a.drops().local_injection == 3
        a.run("nft delete table inet tunsec")
        assert forge().startswith("packets 3 ")  # encrypted for it: the guard was the only bar


def test_what_is_bridged_into_the_tunnel_passes(vxlan_pair: tuple[Host, Host]) -> None:
    a, b = vxlan_pair
    with named_namespaces("gc"):
        run("ip -n ga link add c0 type veth peer name c0 netns gc")
        script = "link add br0 type bridge\nlink set br0 addrgenmode none up\n"
        script += "link set tun0 master br0\nlink set c0 master br0 addrgenmode none up\n"
        run("ip -n ga -batch -", stdin=script)
        run("ip -n gc -batch -", stdin="addr add 10.9.0.3/24 dev c0\nlink set c0 up\n")
        said = run("ip netns exec gc ping -c 3 -i 0.2 -W 1 10.9.0.2", check=False)
        assert " 3 received" in said
    assert a.drops().local_injection == 0
    assert b.drops() == GuardDrops()


def test_a_device_moved_away_loses_its_mark(vxlan_pair: tuple[Host, Host]) -> None:
    """skb_scrub_packet zeroes the mark of what crosses namespaces: such a device's flow must be
    declared `local_senders: any`, or it stays blocked."""
    a, b = vxlan_pair
    with named_namespaces("gc"):
        run("ip -n ga link set tun0 netns gc")
        run(f"ip -n gc addr add {OVERLAY[0]}/24 dev tun0")
        run("ip -n gc link set tun0 up")
        a.put_guard()
        ping = f"ip netns exec gc ping -c 3 -i 0.2 -W 1 {b.overlay}"
        assert " 3 received" not in run(ping, check=False)
        assert a.drops().local_injection >= 1
        a.put_guard(tunnel_only=False)
        assert " 3 received" in run(ping, check=False)
        assert a.drops().clear_out == 0
