"""A connection breaks: no packet of the next one goes under the authentication of before.

Behind each host's gate a set of nftables notes by which SA the packets of each connection came: so
it is known of every packet, not of samples.
"""

import json
import sys
import time
from collections.abc import Iterator

import pytest

from tests.lab.watched import watched_flows
from tunsec.model.flow import Keying
from tunsec.wire.control import FlowStatus
from tunsec_lab.capture import LeakWatch
from tunsec_lab.cluster import Cluster
from tunsec_lab.host import Host, Lab
from tunsec_lab.packets import protect
from tunsec_lab.rds import RdsTalk, tcp_connections

pytestmark = pytest.mark.needs("esp-ipv4", "esp-ipv6", "esn", "nft-inet", "rds-tcp", "sock-destroy")

RDS, TCP, REKEYED = 16385, 5432, 5433
PATHS = 8
BREAKS = 3
DIALS = 2
RDS_BREAKS = ("ss", "-KHn", "state", "connected", f"( sport = :{RDS} or dport = :{RDS} )")
FLOWS = f"""\
  bus: {{kind: rds-tcp, between: all, on_reconnect: reauth}}
  copy: {{kind: tcp, port: {TCP}, between: all, on_reconnect: reauth}}
  keys: {{kind: tcp, port: {REKEYED}, between: all, on_reconnect: rekey}}
"""
WITNESS = f"""
define dialled = {{ {TCP}, {REKEYED} }}
define every = {{ {RDS}, {TCP}, {REKEYED} }}
table inet witness {{
  set seen {{ typeof ipsec in spi . tcp sport . tcp dport; flags dynamic; size 65535; }}
  set begun {{ typeof ipsec in spi . tcp sport . tcp dport; flags dynamic; size 65535; }}
  chain input {{
    type filter hook input priority -200; policy accept;
    tcp dport $dialled tcp flags syn update @begun {{ ipsec in spi . tcp sport . tcp dport }}
    tcp sport $dialled tcp flags syn update @begun {{ ipsec in spi . tcp sport . tcp dport }}
    tcp sport $every update @seen {{ ipsec in spi . tcp sport . tcp dport }}
    tcp dport $every update @seen {{ ipsec in spi . tcp sport . tcp dport }}
  }}
}}
"""
ECHO = """
import socket, sys
near = sys.argv[1]
family = socket.AF_INET6 if ":" in near else socket.AF_INET
server = socket.create_server((near, int(sys.argv[2])), family=family)
print("ready", flush=True)
while True:
    one, _ = server.accept()
    with one:
        try:
            while got := one.recv(100):
                one.sendall(got)
        except ConnectionError:
            pass
"""
DIAL = """
import socket, struct, sys, time
near, far, port, times = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
for number in range(times):
    began = time.monotonic()
    while True:
        try:
            one = socket.create_connection((far, port), source_address=(near, 0))
            break
        except PermissionError:  # the old SAs are gone and the new ones not there yet
            time.sleep(0.05)
    one.sendall(b"x")
    assert one.recv(1) == b"x"
    took = round(1000 * (time.monotonic() - began))
    print("up", took, one.getsockname()[1], flush=True)
    time.sleep(1.0)
    if number % 2:  # by RST, else by FIN
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    one.close()
print("done", flush=True)
"""

Ports = tuple[int, int]
Spis = dict[Ports, set[int]]


@pytest.fixture
def watch(lab: Lab) -> Iterator[LeakWatch]:
    a, b = lab.hosts.values()

    def speak_and_restart() -> None:
        with RdsTalk(a, b, sizes=(1,)) as talk:
            talk.wait()
        # RDS keeps its connections, and speaks on them by itself.
        for host in (a, b):
            host.destroy()
        for host in (a, b):
            host.recreate()

    with watched_flows(lab, {protect("rds-tcp"): speak_and_restart}) as seen:
        yield seen


def witnessed(host: Host, of: str = "seen") -> Spis:
    """SPIs by the ports of the connection whose packets they brought to a host; `begun` tells of
    its first packet alone."""
    listed = json.loads(host.run(["nft", "-j", "list", "set", "inet", "witness", of]).stdout)
    found: Spis = {}
    for one in listed["nftables"]:
        for element in one.get("set", {}).get("elem", ()):
            spi, sport, dport = element["concat"]
            found.setdefault((sport, dport), set()).add(spi)
    return found


def inbound(host: Host) -> set[int]:
    """SPIs of all SAs by which something may come in to a host."""
    listed = host.run(["ip", "-o", "xfrm", "state", "list", "dst", str(host.ipv4)]).stdout
    return {int(line.split(" spi ")[1].split()[0], 16) for line in listed.splitlines()}


def of_flow(cluster: Cluster, host: Host, flow: str) -> FlowStatus:
    return cluster.flow(host, flow=flow)


def quiet(cluster: Cluster, talk: RdsTalk) -> None:
    """Every path is up at both ends, and nobody re-authenticates."""
    until = time.monotonic() + 20
    for host in cluster.lab.hosts.values():
        while (
            sum(line.startswith("ESTAB") for line in tcp_connections(host)) != PATHS
            or of_flow(cluster, host, "bus").reason
        ):
            assert time.monotonic() < until, (
                tcp_connections(host),
                of_flow(cluster, host, "bus"),
                [cluster.daemons[name].output()[-5000:] for name in cluster.daemons],
            )
            talk.wait_for_more(2)


def reset_rds(host: Host) -> set[Ports]:
    """A host resets every path; the ports of both ends, in either order."""
    killed = host.run(RDS_BREAKS).stdout.splitlines()
    near_far = [[int(end.rpartition(":")[2]) for end in line.split()[2:4]] for line in killed]
    return {(near, far) for near, far in near_far} | {(far, near) for near, far in near_far}


def break_rds(cluster: Cluster, talk: RdsTalk, number: int) -> float:
    """One end resets every path; seconds until the next message is back."""
    quiet(cluster, talk)
    hosts = tuple(cluster.lab.hosts.values())
    before = {host.name: (set(witnessed(host)), inbound(host)) for host in hosts}
    began = time.monotonic()
    broken = reset_rds(hosts[number % 2])
    talk.wait_for_more(1)
    gap = time.monotonic() - began
    talk.wait_for_more(5)
    for host in hosts:
        known, old = before[host.name]
        # RDS may have opened one more since we looked.
        known |= broken
        new = {ports: spis for ports, spis in witnessed(host).items() if ports not in known}
        assert new, f"{host.name} has seen no new connection"
        for ports, spis in new.items():
            assert not spis & old, f"break {number}: {ports} came to {host.name} by an old SA"
        assert not inbound(host) & old & {spi for spis in new.values() for spi in spis}
    return gap


def dial(host: Host, other: Host, *, port: int = TCP, version: int = 4) -> list[Ports]:
    """One connection after the other, each ended by FIN or by RST; their ports, in order."""
    near, far = (str(one.ipv4 if version == 4 else one.ipv6) for one in (host, other))
    server = other.spawn([sys.executable, "-c", ECHO, far, str(port)])
    server.wait_for_line("^ready")
    dialler = host.spawn([sys.executable, "-c", DIAL, near, far, str(port), str(DIALS)])
    dialler.wait_for_line("^done", timeout=60)
    server.terminate()
    ups = [line.split()[1:] for line in dialler.output().splitlines() if line.startswith("up")]
    print(f"{host.name} dials {port}, ms until up:", [int(took) for took, _ in ups], flush=True)
    return [(port, int(own)) for _, own in ups]


def assert_none_by_the_old(host: Host, dialled: list[Ports]) -> None:
    """No packet of a connection came by an SA by which an earlier one began. What an earlier one
    still says when it ends may come by a fresh one."""
    seen, begun = witnessed(host), witnessed(host, "begun")
    old: set[int] = set()
    for near, far in dialled:
        ports = (near, far) if (near, far) in seen else (far, near)
        assert not seen[ports] & old, f"{ports} came to {host.name} by an old SA"
        assert begun[ports], ports
        old |= begun[ports]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("keying", list(Keying))
def test_a_new_connection_waits_for_fresh_authentication(
    lab: Lab, watch: LeakWatch, keying: Keying
) -> None:
    a, b = lab.hosts.values()
    cluster = Cluster(lab, flows=FLOWS, defaults=f"  {{keying: {keying}}}\n")
    if keying is Keying.IKE:
        for host in (a, b):
            cluster.start_charon(host)
    cluster.start_all()
    for host in (a, b):
        host.run(["nft", "-f", "-"], stdin=WITNESS)
    try:
        with RdsTalk(a, b, version=4) as talk:
            talk.wait_for_more()
            gaps = [break_rds(cluster, talk, number) for number in range(BREAKS)]
        assert talk.report.sent == talk.report.echoed
        print(f"{keying} rds gaps in ms:", sorted(round(1000 * gap) for gap in gaps), flush=True)

        for dialled in (
            [*dial(a, b), *dial(b, a)],
            dial(a, b, version=6),
            dial(b, a, port=REKEYED),
        ):
            for host in (a, b):
                assert_none_by_the_old(host, dialled)
    finally:
        for host in (a, b):
            print(f"== {host.name}\n{cluster.daemons[host.name].output()[-9000:]}", flush=True)
