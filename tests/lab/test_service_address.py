"""A service address that moves between two of three hosts, under traffic and with the wire watched:
its peers speak with the one holder of the highest fencing token, in ESP, and with nobody else."""

import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from typing import Final

import pytest

from tunsec.wire.control import ServiceStatus
from tunsec_lab.capture import LeakWatch
from tunsec_lab.cluster import Cluster
from tunsec_lab.host import Host, Lab
from tunsec_lab.namespaces import inside
from tunsec_lab.packets import protect
from tunsec_lab.process import Process
from tunsec_lab.rds import SIZES, RdsTalk
from tunsec_lab.service import SERVICES, VIP, announce, comes, goes, sas_over

pytestmark = pytest.mark.needs("esp-ipv4", "esn", "nft-inet")

UDP_PORT: Final = 7000
TCP_PORT: Final = 7001
IP_FREEBIND: Final = 15
PAUSE: Final = 0.002
"""Seconds between two packets to the address."""
PATIENCE: Final = 20.0


def flows(keying: str) -> str:
    """Everybody speaks with the address."""
    return "".join(
        f"  {kind}: {{kind: {kind}, port: {port}, between: [a, b, c, vip], keying: {keying}}}\n"
        for kind, port in (("udp", UDP_PORT), ("tcp", TCP_PORT))
    )


class Traffic:
    """c sends to the address all the time; a and b tell when they get it."""

    def __init__(self, lab: Lab) -> None:
        self.arrivals: dict[str, list[float]] = {"a": [], "b": []}
        self._sockets = {name: bound(lab.hosts[name]) for name in self.arrivals}
        with inside(lab.hosts["c"].netns):
            self._sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._stop = threading.Event()
        self._news = threading.Condition()
        self._threads = [
            threading.Thread(target=self._send),
            *(threading.Thread(target=self._receive, args=(name,)) for name in self.arrivals),
        ]

    def __enter__(self) -> "Traffic":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        for one in (*self._sockets.values(), self._sender):
            one.close()

    def _send(self) -> None:
        while not self._stop.wait(PAUSE):
            try:
                self._sender.sendto(b"to the service", (VIP, UDP_PORT))
            except OSError:
                continue  # blocked

    def _receive(self, name: str) -> None:
        while not self._stop.is_set():
            try:
                self._sockets[name].recv(100)
            except TimeoutError:
                continue
            with self._news:
                self.arrivals[name].append(time.monotonic())
                self._news.notify_all()

    def gap(self, host: Host, since: float) -> float:
        """Seconds from `since` until the first packet that came to a host after it."""

        def later() -> list[float]:
            return [at for at in self.arrivals[host.name] if at > since]

        with self._news:
            assert self._news.wait_for(later, PATIENCE), f"nothing comes to {host.name}"
            return later()[0] - since

    def comes_to(self, host: Host) -> bool:
        """Whether packets of from now on come to a host."""
        since = time.monotonic()
        with self._news:
            return self._news.wait_for(
                lambda: self.arrivals[host.name][-1:] > [since], timeout=50 * PAUSE
            )


def bound(host: Host) -> socket.socket:
    """A socket on the address, which need not be there yet."""
    with inside(host.netns):
        opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    opened.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
    opened.bind((VIP, UDP_PORT))
    opened.settimeout(0.1)
    return opened


def speak_in_clear(lab: Lab) -> None:
    """c reaches the address on a without any protection."""
    a, c = lab.hosts["a"], lab.hosts["c"]
    comes(a, c)
    with bound(a) as service, inside(c.netns), socket.socket(type=socket.SOCK_DGRAM) as sender:
        sender.sendto(b"clear", (VIP, UDP_PORT))
        assert service.recv(10) == b"clear"
    goes(a)


def seen(cluster: Cluster, host: Host) -> ServiceStatus:
    """How a daemon sees the address."""
    [service] = cluster.status(host).services
    return service


def wait_for(cluster: Cluster, host: Host, true: Callable[[ServiceStatus], bool]) -> ServiceStatus:
    """Returns when it is true of what a daemon says of the address."""
    until = time.monotonic() + PATIENCE
    client = cluster.client(host)
    status = client.status()
    while not true(status.services[0]):
        assert time.monotonic() < until, status.services
        status = client.status(wait=1.0)
    return status.services[0]


def held_by(cluster: Cluster, host: Host, token: int) -> None:
    """Every daemon says that a host holds the address by a token, and all is protected."""
    for other in cluster.lab.hosts.values():
        wait_for(cluster, other, lambda one: (one.holder, one.token) == (host.name, token))
    cluster.wait_protected()


@contextmanager
def serving(lab: Lab, keying: str) -> Iterator[tuple[Cluster, Traffic]]:
    """Everything runs, the wire is watched, c sends; the address is nowhere yet."""
    protected = [protect("udp", port=UDP_PORT), protect("tcp", port=TCP_PORT)]
    with LeakWatch(lab, protected=protected) as watch:
        watch.prove_sees(lambda: speak_in_clear(lab))
        cluster = Cluster(lab, flows=flows(keying), services=SERVICES)
        for host in lab.hosts.values() if keying == "ike" else ():
            cluster.start_charon(host)
        cluster.start_all()
        with Traffic(lab) as traffic:
            assert seen(cluster, lab.hosts["c"]).state == "FREE"
            yield cluster, traffic
        watch.assert_closed()


@pytest.mark.parametrize("keying", ["directory", "ike"])
def test_the_address_moves(keying: str) -> None:
    with Lab("three-hosts", overlays_up=False) as lab, serving(lab, keying) as (cluster, traffic):
        a, b, c = lab.hosts.values()
        gaps = [traffic.gap(a, comes(a, c))]
        held_by(cluster, a, 1)
        assert answers_tcp(a, c)
        before = sas_over(c)

        goes(a)
        gaps.append(traffic.gap(b, comes(b, c)))
        wait_for(cluster, a, lambda one: one.state == "ABSENT")
        held_by(cluster, b, seen(cluster, b).token)
        assert not before & sas_over(c), "SAs with the former holder are left"
        assert answers_tcp(b, c)
        assert not traffic.comes_to(a)

        # Two have it: who got it later serves it alone.
        token = seen(cluster, b).token
        gaps.append(traffic.gap(a, comes(a, c)))
        wait_for(cluster, c, lambda one: (one.holder, one.token) == ("a", token + 1))
        assert wait_for(cluster, b, lambda one: one.state == "FENCED").here
        assert any("a holds it by token" in text for text in cluster.status(b).warnings)
        assert not traffic.comes_to(b)
        since = time.monotonic()
        goes(a)
        announce(b, c)
        gaps.append(traffic.gap(b, since))
        print(f"{keying}: protected after", ", ".join(f"{1e3 * gap:.0f} ms" for gap in gaps))


def answers_tcp(host: Host, client: Host) -> bool:
    """Whether a connection to the address on a host carries something both ways."""
    with inside(host.netns):
        listener = socket.socket()
    with listener, inside(client.netns):
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((VIP, TCP_PORT))
        listener.listen()
        with socket.create_connection((VIP, TCP_PORT), timeout=PATIENCE) as there:
            here, (came_from, _) = listener.accept()
            with here:
                there.sendall(b"question")
                here.sendall(here.recv(8, socket.MSG_WAITALL)[::-1])
                answered = there.recv(8, socket.MSG_WAITALL) == b"noitseuq"
    return answered and ip_address(came_from) in client.addresses


@pytest.mark.needs("rds-tcp")
@pytest.mark.parametrize("keying", ["directory", "ike"])
def test_rds_over_the_address_finds_its_new_holder(keying: str) -> None:
    """The connection ends with the address; the next message goes to the other host."""
    flow = f"  bus: {{kind: rds-tcp, between: [a, b, c, vip], keying: {keying}}}\n"
    with (
        Lab("three-hosts", overlays_up=False) as lab,
        LeakWatch(lab, protected=[protect("rds-tcp")]) as watch,
    ):
        a, b, c = lab.hosts.values()

        def in_clear() -> None:
            """RDS keeps its connections, and speaks on them by itself: the hosts are rebooted."""
            comes(a, c)
            rds(c, a)
            lab.reboot(a, c)

        watch.prove_sees(in_clear)
        cluster = Cluster(lab, flows=flow, services=SERVICES)
        for host in lab.hosts.values() if keying == "ike" else ():
            cluster.start_charon(host)
        cluster.start_all()
        comes(a, c)
        held_by(cluster, a, 1)
        rds(c, a)
        before = sas_over(c)
        goes(a)
        comes(b, c)
        wait_for(cluster, a, lambda one: one.state == "ABSENT")
        held_by(cluster, b, seen(cluster, b).token)
        rds(c, b)
        assert not before & sas_over(c), "SAs with the former holder are left"
        watch.assert_closed()


def rds(source: Host, holder: Host) -> None:
    """Messages of all sizes go to the address, and come back as they were."""
    with RdsTalk(source, holder, far=VIP, sizes=SIZES) as talking:
        assert talking.wait().echoed == len(SIZES)


def test_what_cannot_be_claimed_does_not_move() -> None:
    """The directory is away, or a host that is no owner has the address."""
    with (
        Lab("three-hosts", overlays_up=False) as lab,
        serving(lab, "directory") as (cluster, traffic),
    ):
        a, b, c = lab.hosts.values()
        traffic.gap(a, comes(a, c))
        held_by(cluster, a, 1)
        hidden = cluster.directory.with_name("hidden")
        cluster.directory.rename(hidden)
        comes(b)
        wait_for(cluster, b, lambda one: one.state == "CLAIMING")
        assert traffic.comes_to(a)
        assert not traffic.comes_to(b)
        cluster.daemons["a"].kill9()
        assert traffic.comes_to(a)
        cluster.start(a)
        assert seen(cluster, a).state == "OWNED"
        assert traffic.comes_to(a)
        since = time.monotonic()
        hidden.rename(cluster.directory)
        goes(a)
        announce(b, c)
        traffic.gap(b, since)
        wait_for(cluster, b, lambda one: one.state == "OWNED")
        comes(c)
        wait_for(cluster, c, lambda one: one.here)
        assert any("not among its owners" in text for text in cluster.status(c).warnings)
        assert seen(cluster, c).holder == "b"


@pytest.mark.skipif(shutil.which("keepalived") is None, reason="there is no keepalived here")
def test_keepalived_moves_the_address() -> None:
    """Killed on the host that has the address, it leaves the address there: the other host takes
    it all the same, and is the one that is heard."""
    with (
        Lab("three-hosts", overlays_up=False) as lab,
        serving(lab, "directory") as (cluster, traffic),
    ):
        a, b, c = lab.hosts.values()
        since = time.monotonic()
        first = keepalived(a, priority=110)
        traffic.gap(a, since)
        keepalived(b, priority=100)
        held_by(cluster, a, 1)
        since = time.monotonic()
        first.kill9()
        traffic.gap(b, since)
        wait_for(cluster, c, lambda one: (one.holder, one.token) == ("b", 2))
        assert wait_for(cluster, a, lambda one: one.state == "FENCED").here
        assert not traffic.comes_to(a)


def keepalived(host: Host, *, priority: int) -> Process:
    """A real one on a host, which speaks VRRP every 0.2 s."""
    config = host.folder / "keepalived.conf"
    config.write_text(
        "global_defs { vrrp_version 3 }\n"
        "vrrp_instance vip {\n"
        "  state BACKUP\n"
        "  interface eth0\n"
        "  virtual_router_id 51\n"
        f"  priority {priority}\n"
        "  advert_int 0.2\n"
        f"  virtual_ipaddress {{ {VIP}/24 dev eth0 }}\n"
        "}\n"
    )
    options = ["--dont-fork", "--log-console", "--vrrp", f"--use-file={config}"]
    return host.spawn(["keepalived", *options], name="keepalived", own_run=True)
