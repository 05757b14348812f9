"""Traffic of flows that need no overlay: RDS over TCP and RoCE, protected or in clear."""

from tunsec.model.flow import Keying
from tunsec_lab.cluster import Cluster
from tunsec_lab.host import Host, Lab
from tunsec_lab.probe import Probe
from tunsec_lab.rds import SIZES, RdsTalk
from tunsec_lab.roce import RdmaTransfer, Verb


def begin_closed(cluster: Cluster, keying: Keying) -> None:
    """Daemons on both hosts that cannot agree on keys yet."""
    a, b = cluster.lab.hosts.values()
    elsewhere = cluster.folder / "elsewhere"
    elsewhere.mkdir()
    cluster.start(a)
    alone = ["--directory", elsewhere.as_uri()] if keying is Keying.DIRECTORY else []
    cluster.start(b, *alone)


def let_key(cluster: Cluster, keying: Keying) -> None:
    """What was in the way goes."""
    a, b = cluster.lab.hosts.values()
    if keying is Keying.IKE:
        for host in (a, b):
            cluster.start_charon(host)
    else:
        cluster.daemons[b.name].terminate()
        cluster.start(b)
    cluster.wait_protected()


def talk(one: Host, other: Host, *, version: int) -> None:
    """RDS messages of all sizes go there and come back as they were."""
    with RdsTalk(one, other, version=version, sizes=SIZES) as talking:
        assert talking.wait().echoed == len(SIZES)


def rds_in_clear(lab: Lab) -> None:
    """Over IPv4 the smaller address dials, over IPv6 the larger one.

    RDS keeps its connections, and speaks on them by itself: the hosts are rebooted.
    """
    a, b = lab.hosts.values()
    for one, other, version in ((a, b, 4), (b, a, 6)):
        talk(one, other, version=version)
    lab.reboot(a, b)


def transfer(one: Host, other: Host, *, verb: Verb, version: int) -> int:
    """Returns when the other end has acknowledged all of so many bytes."""
    with RdmaTransfer(one, other, verb=verb, version=version) as running:
        running.wait()
    return running.bytes


def rdma_in_clear(lab: Lab) -> None:
    """Over both families; the hosts have their Soft-RoCE devices."""
    a, b = lab.hosts.values()
    for version in (4, 6):
        transfer(a, b, verb=Verb.WRITE, version=version)


def injected(cluster: Cluster, host: Host, flow: str) -> int:
    """What programs on a host have tried to send as if they were the kernel."""
    return cluster.status(host).guard.drops[flow].local_injection


def datagrams(one: Host, other: Host, *, port: int, count: int = 20) -> int:
    """How many of so many datagrams over IPv4 arrived."""
    with Probe(one, other, to=other.ipv4, rate=200, count=count, port=port) as probe:
        probe.wait()
    return probe.report.received
