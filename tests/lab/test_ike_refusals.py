"""Peers that prove nothing, or the wrong thing, under real charons and daemons: blocked, and both
sides say why."""

import shutil
import time
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from tests.lab.watched import watched
from tunsec.adapters import ca_files
from tunsec.keying.ca import KeyType
from tunsec.model.clock import WallTime
from tunsec.model.flow import Keying
from tunsec.model.names import HostName
from tunsec.wire.control import PolicyBody
from tunsec_lab.capture import LeakWatch
from tunsec_lab.cluster import Cluster
from tunsec_lab.host import Host, Lab

pytestmark = pytest.mark.needs(
    "esp-ipv4", "esp-ipv6", "esn", "vxlan", "bridge", "nft-inet", "nft-netdev-egress"
)

IKE = "  {keying: ike}\n"
PSK_BYTES = 48
DAY = 86_400.0


@pytest.fixture
def watch(lab: Lab) -> Iterator[LeakWatch]:
    """There need be no ESP: nothing passes."""
    with watched(lab, needs_esp=False) as seen:
        yield seen


def cluster_of(lab: Lab, *, ike: str = "  {}\n") -> Cluster:
    cluster = Cluster(lab, defaults=IKE, ike=ike)
    for host in lab.hosts.values():
        cluster.start_charon(host)
    return cluster


def start(cluster: Cluster, *hosts: Host) -> None:
    for host in hosts:
        cluster.start(host)
        host.raise_overlays()


def wait_reason(cluster: Cluster, host: Host, words: str) -> None:
    """The host says so in its status, of a flow that is blocked."""
    until = time.monotonic() + 30
    while words not in (reason := cluster.flow(host).reason):
        log = cluster.daemons[host.name].tail()
        assert time.monotonic() < until, f"{host.name}: {reason!r}, not {words!r}{log}"
        time.sleep(0.1)
    assert not cluster.flow(host).protected


def nothing_passes(a: Host, b: Host) -> None:
    assert a.ping(b.overlay_addresses("red")[0], count=3).received == 0
    for host in (a, b):  # SPIs that are only reserved have no keys
        assert "aead" not in host.run(["ip", "xfrm", "state"]).stdout


def reissue(cluster: Cluster, host: Host, ca: Path, *, ago: float = 0.0, days: float = 30) -> None:
    """The host gets an identity of this CA, made `ago` days before now."""
    now = WallTime(time.time())
    identity = cluster.identity(host)
    shutil.rmtree(identity)
    ca_files.issue_to(
        identity,
        HostName(host.name),
        authority=ca_files.load(ca, wall_now=now),
        addresses=[ip_address(str(address)) for address in host.addresses],
        days=days,
        kind=KeyType.ED25519,
        wall_now=WallTime(now - ago * DAY),
    )


def make_ca(cluster: Cluster, *, ago: float = 0.0) -> Path:
    """Another CA, made `ago` days before now."""
    folder = cluster.folder / "other-ca"
    made = WallTime(time.time() - ago * DAY)
    ca_files.init(folder, name="other", days=60, kind=KeyType.ED25519, wall_now=made)
    return folder


def write_psk(path: Path, fill: bytes) -> None:
    path.write_bytes(bytes(fill[0] + number for number in range(PSK_BYTES)))
    path.chmod(0o600)


def test_a_certificate_of_another_ca(lab: Lab, watch: LeakWatch) -> None:
    a, b = lab.hosts.values()
    cluster = cluster_of(lab)
    known = (cluster.identity(b) / "ca.pem").read_bytes()
    reissue(cluster, b, make_ca(cluster))
    with (cluster.identity(b) / "ca.pem").open("ab") as roots:
        roots.write(known)
    start(cluster, a, b)
    wait_reason(cluster, a, "no trusted")
    wait_reason(cluster, b, "AUTH")
    nothing_passes(a, b)


def test_a_valid_certificate_for_another_name(lab: Lab, watch: LeakWatch) -> None:
    """a knows b under another name: what b proves is not that."""
    a, b = lab.hosts.values()
    cluster = cluster_of(lab)
    policy = cluster.policy().replace("  b: {", "  b: {identity: elsewhere, ")
    own = cluster.folder / "policy-of-a.yaml"
    own.write_text(policy)
    cluster.start(b)
    cluster.policy_file.write_text(policy)
    cluster.start(a)
    for host in (a, b):
        host.raise_overlays()
    for host in (a, b):
        wait_reason(cluster, host, "AUTH")
    nothing_passes(a, b)


def test_an_expired_certificate(lab: Lab, watch: LeakWatch) -> None:
    """Its own host does not even start, and stays closed; the peer says that it was turned away."""
    a, b = lab.hosts.values()
    cluster = cluster_of(lab)
    ca = make_ca(cluster, ago=20)
    reissue(cluster, a, ca)
    reissue(cluster, b, ca, ago=10, days=5)
    daemon = cluster.start(b, ready=False)
    assert daemon.wait(timeout=20) == 2
    assert "cert.pem" in daemon.output()
    start(cluster, a)
    b.raise_overlays()
    wait_reason(cluster, a, "NO_PROP")  # b's charon was told of no connection
    nothing_passes(a, b)


@pytest.mark.timeout(120)
def test_a_revoked_certificate(lab: Lab, watch: LeakWatch) -> None:
    """Revoked while it carries a flow: a reload of the peer ends that."""
    a, b = lab.hosts.values()
    cluster = cluster_of(lab)
    start(cluster, a, b)
    cluster.wait_protected()
    assert a.ping(b.overlay_addresses("red")[0], count=3).lost == 0
    now = WallTime(time.time())
    ca = cluster.folder / "ca"
    lists = revoke(ca, cluster.identity(b) / "cert.pem", now)
    (cluster.identity(a) / "crl.pem").write_bytes(lists)
    cluster.client(a).reload()
    wait_reason(cluster, a, "revoked")
    until = time.monotonic() + 30
    while cluster.flow(b).protected:
        assert time.monotonic() < until, "the revoked host believes that its flow is protected"
        time.sleep(0.1)
    assert cluster.flow(b).reason
    nothing_passes(a, b)


def revoke(ca: Path, certificate: Path, now: WallTime) -> bytes:
    """The CA's list after it revoked a certificate."""
    authority = ca_files.load(ca, wall_now=now)
    ca_files.revoke_all([str(certificate)], authority=authority, days=30, wall_now=now)
    return (ca / "crl.pem").read_bytes()


@pytest.mark.timeout(120)
def test_pre_shared_keys(lab: Lab, watch: LeakWatch) -> None:
    """Different ones are refused on both sides, the same one protects."""
    a, b = lab.hosts.values()
    secret = {host.name: lab.folder / f"psk-{host.name}" for host in (a, b)}
    write_psk(secret["a"], b"A")
    write_psk(secret["b"], b"0")
    cluster = cluster_of(lab)
    for host in (a, b):
        ike = f"  {{auth: psk, psk_file: {secret[host.name]}}}\n"
        cluster.policy_file.write_text(cluster.policy(ike=ike))
        start(cluster, host)
    wait_reason(cluster, a, "AUTH")
    wait_reason(cluster, b, "AUTH")
    nothing_passes(a, b)
    write_psk(secret["b"], b"A")
    ike = f"  {{auth: psk, psk_file: {secret['b']}}}\n"
    cluster.client(b).apply(PolicyBody(cluster.policy(ike=ike), "test"))
    cluster.wait_protected(timeout=60)
    for host in (a, b):
        host.run(["ip", "neigh", "flush", "all"])  # nobody answered while it was blocked
    assert a.ping(b.overlay_addresses("red")[0], count=3).lost == 0


@pytest.mark.parametrize("keying", list(Keying))
@pytest.mark.timeout(120)
def test_ppks(lab: Lab, watch: LeakWatch, keying: Keying) -> None:
    """One is missing: no start. Different ones are refused on both sides, the same one protects."""
    a, b = lab.hosts.values()
    cluster = cluster_of(lab) if keying is Keying.IKE else Cluster(lab)
    cluster.defaults = f"  {{keying: {keying}, ppk: required}}\n"
    cluster.policy_file.write_text(cluster.policy())
    daemon = cluster.start(a, ready=False)
    assert daemon.wait(timeout=20) == 2
    assert "ppk.key: the policy requires a PPK" in daemon.output()
    for host, fill in ((a, b"A"), (b, b"0")):
        write_psk(cluster.identity(host) / "ppk.key", fill)
        start(cluster, host)
    why = {Keying.IKE: "AUTHENTICATION_FAILED", Keying.DIRECTORY: "ppk-mismatch"}[keying]
    wait_reason(cluster, b, why)
    if keying is Keying.DIRECTORY:
        wait_reason(cluster, a, why)
    nothing_passes(a, b)
    write_psk(cluster.identity(b) / "ppk.key", b"A")
    cluster.daemons[b.name].kill9()
    cluster.start(b)
    cluster.wait_protected(timeout=60)
    for host in (a, b):
        host.run(["ip", "neigh", "flush", "all"])
    assert a.ping(b.overlay_addresses("red")[0], count=3).lost == 0
    for flow in cluster.status(a).flows:
        assert flow.keying == keying
        assert flow.ike is None or flow.ike.ppk
