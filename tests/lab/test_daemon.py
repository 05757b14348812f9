"""tunsecd's conduct on a real kernel: limits, hostile records, policies, MTU, silence when idle."""

import base64
import json
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab.test_vxlan_directory import bring_up, overlays
from tunsec.wire.control import DirectoryStatus, PolicyBody, Status
from tunsec_lab.capture import LeakWatch
from tunsec_lab.cluster import Cluster
from tunsec_lab.host import Host, Lab
from tunsec_lab.packets import protect
from tunsec_lab.probe import Probe

pytestmark = pytest.mark.needs(
    "esp-ipv4", "esp-ipv6", "esn", "vxlan", "bridge", "nft-inet", "nft-netdev-egress"
)


def status_until(
    cluster: Cluster, host: Host, good: Callable[[Status], bool], *, timeout: float = 10.0
) -> Status:
    """The first status for which `good(status)` holds."""

    until = time.monotonic() + timeout
    client = cluster.client(host)
    status = client.status()
    while not good(status):
        left = until - time.monotonic()
        assert left > 0, status
        status = client.status(wait=min(left, 1.0))
    return status


@pytest.mark.parametrize("limit", ["packets: 300", "bytes: 64KiB"])
def test_a_count_asks_for_fresh_keys_and_nothing_is_lost(lab: Lab, limit: str) -> None:
    """The kernel ends an SA at 1.5 times the count, here a second after it has asked."""
    a, b = lab.hosts.values()
    cluster = Cluster(lab, defaults=f"  rekey: {{{limit}, hard: 9h}}\n")
    with LeakWatch(lab, protected=[protect("vxlan")]) as watch:
        bring_up(cluster, a, b)
        cluster.wait_protected()
        with Probe(a, b, to=overlays(b)[0], rate=150, count=2800) as probe:
            probe.wait(timeout=60)
        watch.assert_closed(needs_proof=False)
        spis = {flow.spi for flow in watch.report().esp_flows if flow.src == a.ipv4}
    assert probe.report.lost == 0, probe.report
    assert len(spis) >= 5
    assert cluster.flow(a).rekeys >= 4


def test_records_of_an_attacker_change_nothing_but_counters(lab: Lab) -> None:
    a, b = lab.hosts.values()
    cluster = Cluster(lab)
    bring_up(cluster, a, b)
    cluster.wait_protected()
    offer = cluster.directory / "offers" / "b"
    confirmation = cluster.directory / "confirmations" / "a" / "b"
    honest = {path: path.read_bytes() for path in (offer, confirmation)}
    spi = cluster.flow(a).spi_out
    forged = json.loads(honest[offer])
    signature = bytearray(base64.b64decode(forged["signature"]))
    signature[10] ^= 1
    forged["signature"] = base64.b64encode(signature).decode()
    attacks: list[tuple[Path, bytes, str]] = [
        (offer, b"", "truncated"),
        (offer, b"x" * 70_000, "oversized"),
        (offer, honest[offer][:-40], "truncated"),
        (offer, json.dumps(forged, separators=(",", ":"), sort_keys=True).encode(), "forged"),
        (cluster.directory / "offers" / "mallory", honest[offer], "wrong-name"),
        (confirmation, honest[offer], "unknown-type"),
        (confirmation, b'{"a":1,"a":2}', "malformed"),
    ]
    with Probe(a, b, to=overlays(b)[0], rate=200) as probe:
        for path, body, reason in attacks:
            before = refused_records(cluster.status(a))
            fresh = path.with_name(".attack")
            fresh.write_bytes(body)
            fresh.rename(path)
            if path.name == "mallory":
                continue  # not a host of the policy: not even looked at
            status = status_until(cluster, a, more_refused_than(before))
            assert reason in directory_of(status).refused, (reason, directory_of(status).refused)
        shutil.rmtree(cluster.directory / "confirmations" / "a")
        assert cluster.flow(a).spi_out == spi
        assert all(flow.protected for flow in cluster.status(a).flows)
    assert probe.report.lost == 0
    log = cluster.daemons["a"].output()
    assert log.count("record refused") <= len(attacks), "each is told once"


def policy_state(host: Host) -> dict[str, bytes]:
    """What a daemon has written down, but for the sequences, which it writes late."""
    kept = (path for path in host.state_dir.iterdir() if path.name != "sequences.json")
    return {path.name: path.read_bytes() for path in kept}


def refused_records(status: Status) -> int:
    """All records that were not believed."""
    return sum(directory_of(status).refused.values())


def more_refused_than(count: int) -> Callable[[Status], bool]:
    """Whether another record was refused since."""
    return lambda status: refused_records(status) > count


def directory_of(status: Status) -> DirectoryStatus:
    """The directory part of a status that has one."""
    assert status.directory is not None
    return status.directory


def test_an_unknown_ca_keeps_the_flow_blocked_and_says_so(lab: Lab) -> None:
    a, b = lab.hosts.values()
    cluster, other = Cluster(lab), lab.folder / "other"
    shutil.move(cluster.folder, other)
    again = Cluster(lab)
    shutil.rmtree(again.identity(b))
    shutil.copytree(other / "identity" / "b", again.identity(b))
    for host in (a, b):
        again.start(host)
        host.raise_overlays()
    status = status_until(again, a, lambda status: bool(directory_of(status).refused))
    assert set(directory_of(status).refused) == {"unknown-ca"}
    assert not any(flow.protected for flow in status.flows)
    assert all("its offer was refused: unknown-ca" in flow.reason for flow in status.flows)
    assert a.ping(overlays(b)[0], count=3, wait=0.1).received == 0
    assert "unknown-ca" in again.daemons["a"].output()


def test_an_overlay_that_leaves_no_room_for_esp_is_told_its_mtu(lab: Lab) -> None:
    a, b = lab.hosts.values()
    cluster = Cluster(lab)
    bring_up(cluster, a, b)
    cluster.wait_protected()
    assert not cluster.status(a).warnings
    device = next(each.device for each in lab.overlays_of(a) if each.name == "red")
    a.ip(f"link set {device} mtu 1450")
    status = status_until(cluster, a, lambda status: bool(status.warnings))
    [warning] = status.warnings
    assert device in warning
    right = int(warning.split("mtu ")[-1].split()[0].rstrip(")`',.;"))
    for host in (a, b):
        host.ip(f"link set {device} mtu {right}")
    status_until(cluster, a, lambda status: not status.warnings)
    assert a.ping(overlays(b)[0], size=right - 28).lost == 0
    assert "1450" in cluster.daemons["a"].output()


def test_plan_shows_what_apply_does(lab: Lab) -> None:
    a, b = lab.hosts.values()
    cluster = Cluster(lab)
    bring_up(cluster, a, b)
    cluster.wait_protected()
    client = cluster.client(a)
    assert client.plan(None).steps == ()
    both = cluster.flows + "  second: {kind: vxlan, between: all, port: 4790}\n"
    body = PolicyBody(cluster.policy(flows=both), "both.yaml")
    planned = client.plan(body)
    assert planned.flows_added == ("second",)
    assert [step.split()[2] for step in planned.steps] == ["block"] * 4 + ["protect"] * 2
    for host in (a, b):
        assert cluster.client(host).apply(body).flows_added == ("second",)
    cluster.wait_protected()
    assert client.plan(None).steps == ()
    assert client.plan(body).steps == ()
    refused = a.run(
        ["tunsec", "plan", "-", "--socket", a.run_dir / "control.sock"],
        stdin="version: 1\n",
        check=False,
    )
    assert refused.status != 0
    assert "hosts" in refused.stdout + refused.stderr


@pytest.mark.parametrize("run", ["same", "other"])
def test_a_second_daemon_is_refused_before_it_does_anything(lab: Lab, run: str) -> None:
    a, b = lab.hosts.values()
    cluster = Cluster(lab)
    bring_up(cluster, a, b)
    cluster.wait_protected()
    first, spi = cluster.daemons["a"], cluster.flow(a).spi_out
    other = cluster.policy(flows="  other: {kind: vxlan, between: all, port: 4790}\n")
    cluster.policy_file.write_text(other)
    state = policy_state(a)
    with Probe(a, b, to=overlays(b)[0], rate=500) as probe:
        elsewhere = ["--run", str(a.folder / "elsewhere")] if run == "other" else []
        second = cluster.start(a, *elsewhere, ready=False)
        assert second.wait(timeout=20) == 1
    assert "another tunsecd" in second.output()
    assert probe.report.lost == 0
    assert policy_state(a) == state
    assert first.alive()
    assert cluster.flow(a).spi_out == spi


def test_an_address_that_a_policy_takes_away_ends_its_relation_alone(lab: Lab) -> None:
    a, b = lab.hosts.values()
    b.ip("addr add 192.0.2.112/24 dev eth0")
    cluster = Cluster(lab)
    text = cluster.policy().replace("192.0.2.12,", "192.0.2.12, 192.0.2.112,")
    cluster.policy_file.write_text(text)
    bring_up(cluster, a, b)
    cluster.wait_protected()
    assert len(cluster.status(a).flows) == 3
    with Probe(a, b, to=overlays(b)[0], rate=200) as probe:
        for host in (a, b):
            cluster.client(host).apply(PolicyBody(cluster.policy(), "fewer.yaml"))
        cluster.wait_protected()
        kept = [flow for flow in cluster.status(a).flows if flow.declared]
        assert len(kept) == 2
        cluster.wait_until(b, rekeys=1, timeout=20)
    assert probe.report.lost == 0
    assert cluster.daemons["a"].alive()


def test_what_changed_while_nobody_ran_stays_blocked(lab: Lab) -> None:
    a, b = lab.hosts.values()
    cluster = Cluster(lab)
    bring_up(cluster, a, b)
    cluster.wait_protected()
    for host in (a, b):
        cluster.daemons[host.name].terminate()
    lab.destroy(a, b)
    lab.create(a, b)
    for flows in (
        "  other: {kind: vxlan, between: all, port: 4790}\n",
        "  overlay: {kind: vxlan, between: all, port: 4790}\n",
    ):
        cluster.policy_file.write_text(cluster.policy(flows=flows))
        with LeakWatch(lab, protected=[protect("vxlan")]) as watch:
            bring_up(cluster, a, b)
            assert a.ping(overlays(b)[0], count=3, wait=0.1).received == 0
            a.ip("xfrm policy flush")
            assert a.ping(overlays(b)[0], count=3, wait=0.1).received == 0
            watch.assert_closed(needs_esp=False, needs_proof=False)
        former = [flow for flow in cluster.status(a).flows if not flow.declared]
        assert former
        assert all("tunsec release" in flow.reason for flow in former)
        for host in (a, b):
            cluster.daemons[host.name].kill9()
            host.lower_overlays()


def test_a_daemon_that_cannot_run_has_closed_its_flows(lab: Lab) -> None:
    a, b = lab.hosts.values()
    cluster = Cluster(lab)
    (cluster.identity(a) / "key.pem").write_text("rubbish")
    with LeakWatch(lab, protected=[protect("vxlan", between=(a.addresses, b.addresses))]) as watch:
        for option in ((), ("--directory", "nfs://nowhere")):
            daemon = cluster.start(a, *option, ready=False)
            assert daemon.wait(timeout=20) == 2
            a.raise_overlays()
            assert a.ping(overlays(b)[0], count=3, wait=0.1).received == 0
        watch.assert_closed(needs_esp=False, needs_proof=False)
    assert "tunsec" in a.run(["nft", "list", "tables"]).stdout


def test_a_daemon_without_rights_names_the_one_it_needs(lab: Lab) -> None:
    a, _ = lab.hosts.values()
    cluster = Cluster(lab)
    cluster.start(a).kill9()
    again = a.spawn(
        [
            *("setpriv", "--bounding-set", "-all", "--inh-caps", "-all", "tunsecd", "--host", "a"),
            *("--policy", cluster.policy_file, "--identity", cluster.identity(a)),
            *("--directory", cluster.directory.as_uri()),
            *("--run", a.run_dir, "--state", a.state_dir),
        ]
    )
    assert again.wait(timeout=20) == 1
    assert "CAP_NET_ADMIN" in again.output().splitlines()[-1]
    assert "Traceback" not in again.output()


def test_a_storm_of_signals_is_one_reload(lab: Lab) -> None:
    a, b = lab.hosts.values()
    cluster = Cluster(lab)
    bring_up(cluster, a, b)
    cluster.wait_protected()
    for _ in range(200):
        cluster.daemons["a"].signal(signal.SIGHUP)
    cluster.daemons["a"].wait_for_line("policy applied")
    assert cluster.status(a).flows
    assert cluster.daemons["a"].output().count("policy applied") < 10


def test_release_survives_a_reload_and_ends_with_an_apply(lab: Lab) -> None:
    a, b = lab.hosts.values()
    cluster = Cluster(lab)
    bring_up(cluster, a, b)
    cluster.wait_protected()
    client = cluster.client(a)
    client.release("overlay")
    client.reload()
    assert {flow.state for flow in cluster.status(a).flows} == {"RELEASED"}
    assert not client.wait(None, 0.1).protected
    cluster.daemons["a"].kill9()
    cluster.start(a)
    assert {flow.state for flow in cluster.status(a).flows} == {"RELEASED"}
    client.apply(PolicyBody(cluster.policy(), "again.yaml"))
    cluster.wait_protected()


def test_state_that_cannot_be_written_is_told_and_stops_nothing(lab: Lab) -> None:
    a, b = lab.hosts.values()
    a.state_dir.mkdir(parents=True, exist_ok=True)
    a.run(["mount", "-t", "tmpfs", "-o", "size=4k", "none", a.state_dir])
    try:
        (a.state_dir / "filler").write_bytes(b"")
        with (a.state_dir / "filler").open("wb", buffering=0) as filler:
            filler.write(bytes(4096))
        cluster = Cluster(lab)
        bring_up(cluster, a, b)
        cluster.wait_protected()
        assert a.ping(overlays(b)[0], count=3).lost == 0
        status = cluster.status(a)
        assert any("No space left" in warning for warning in status.warnings), status.warnings
    finally:
        cluster.daemons["a"].kill9()
        a.run(["umount", a.state_dir])
