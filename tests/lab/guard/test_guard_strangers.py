"""The guard and hosts outside of a flow, on the flow's port: dropped in clear, or left alone."""

import re
import socket
from collections.abc import Iterator

import pytest

from tests.lab.guard.esp_pair import PORTS, UNDERLAY, Host, esp_pair, missing_esp
from tests.namespaces import inside, run
from tunsec.model.flow import Kind
from tunsec.model.guard import GuardDrops

pytestmark = pytest.mark.skipif(missing_esp() is not None, reason=str(missing_esp()))

STRANGER = {4: "192.0.2.3", 6: "2001:db8::3"}
BEYOND = "10.9.1.2"


@pytest.fixture(params=[Kind.VXLAN, Kind.GENEVE], ids=str)
def kind(request: pytest.FixtureRequest) -> Kind:
    return Kind(request.param)


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def pair(request: pytest.FixtureRequest, kind: Kind) -> Iterator[tuple[Host, Host]]:
    """Two hosts with ESP between them. The second also has addresses that are no peer's, of both
    families, and no guard; the first has a tunnel device `tun1` to one of them."""
    version = int(request.param)
    with esp_pair(kind, version) as (a, b):
        other = 10 - version
        a.run(f"ip addr add {UNDERLAY[other][0]}/{UNDERLAY[other][2]} dev u0{nodad(other)}")
        for each in (4, 6):
            extra = f"{nodad(each)} preferred_lft 0"  # no source that a tunnel would take by itself
            b.run(f"ip addr add {STRANGER[each]}/{UNDERLAY[each][2]} dev u0{extra}")
        local = f"local {a.local}" if kind is Kind.VXLAN else ""
        what = f"{kind} id 10 dstport {PORTS[kind]} {local} remote {STRANGER[version]}"
        a.run(f"ip link add tun1 type {what}")
        a.run("ip link set tun1 addrgenmode none")  # else the kernel's own IPv6 chatter is counted
        a.run("ip link set tun1 mtu 1396 up")
        a.run("ip addr add 10.9.1.1/24 dev tun1")
        a.run(f"ip neigh add {BEYOND} lladdr 02:00:00:00:09:02 dev tun1")
        for host in (a, b):
            with inside(host.name):
                run("nft -f -", stdin=witness(PORTS[kind]))
        yield a, b


def nodad(version: int) -> str:
    return " nodad" if version == 6 else ""


def witness(port: int) -> str:
    """A table that counts what came past the guard in clear."""
    return (
        "table inet witness { counter clear { }; chain c { type filter hook input priority 0; "
        f"udp dport {port} meta ipsec missing counter name clear; }}; }};"
    )


def came(host: Host) -> int:
    """Clear packets that came past the guard."""
    found = re.search(r"packets (\d+)", host.run("nft list counter inet witness clear"))
    assert found
    return int(found[1])


def send(host: Host, source: str, to: str, port: int) -> str:
    """Send one datagram; "" or the kernel's refusal."""
    family = socket.AF_INET6 if ":" in to else socket.AF_INET
    with inside(host.name), socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.bind((source, 0))
        try:
            sock.sendto(b"x", (to, port))
        except PermissionError as error:
            return str(error.strerror)
    return ""


def settle(host: Host) -> None:
    """Returns when the stranger has answered on both families: what was sent has arrived."""
    for stranger in STRANGER.values():
        host.run(f"ping -c 1 -W 2 {stranger}")


def test_what_a_stranger_sends_in_clear_is_dropped_and_counted(pair: tuple[Host, Host]) -> None:
    a, b = pair
    a.put_guard()
    for sent, version in enumerate((4, 6), start=1):
        assert send(b, STRANGER[version], UNDERLAY[version][0], PORTS[a.kind]) == ""
        settle(a)
        assert a.drops() == GuardDrops(clear_in=sent)
    assert came(a) == 0
    assert a.reaches(b.overlay)  # nor does the peer suffer


def test_what_a_tunnel_sends_to_a_stranger_is_dropped_and_counted(pair: tuple[Host, Host]) -> None:
    a, b = pair
    a.put_guard()
    assert send(a, "10.9.1.1", BEYOND, 9) == ""
    settle(a)
    assert (a.drops(), came(b)) == (GuardDrops(clear_out=1), 0)


def test_nor_may_a_user_send_to_one(pair: tuple[Host, Host]) -> None:
    a, b = pair
    a.put_guard()
    for version in (4, 6):
        refusal = send(a, UNDERLAY[version][0], STRANGER[version], PORTS[a.kind])
        assert refusal == "Operation not permitted"
    assert (a.drops(), came(b)) == (GuardDrops(local_injection=2), 0)


def test_strangers_are_left_alone_where_the_flow_allows_them(pair: tuple[Host, Host]) -> None:
    a, b = pair
    a.put_guard(strangers_blocked=False)
    for version in (4, 6):
        assert send(b, STRANGER[version], UNDERLAY[version][0], PORTS[a.kind]) == ""
    assert send(a, "10.9.1.1", BEYOND, 9) == ""
    settle(a)
    assert (came(a), came(b)) == (2, 1)
    assert a.reaches(b.overlay)
    assert a.drops() == GuardDrops()
