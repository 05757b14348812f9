"""The checks of this host: policy, addresses, identity, clock, folders, directory, tunnels."""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.namespaces import missing_capability, private_namespace, run
from tunsec.adapters import ca_files
from tunsec.cli.doctor.finding import Finding, Group, Verdict, ok
from tunsec.cli.doctor.host import (
    check_addresses,
    check_clock,
    check_devices,
    check_directory,
    check_folder,
    check_identity,
    check_policy,
    check_rdma,
    own_files,
    within,
)
from tunsec.cli.doctor.part import Part
from tunsec.cli.doctor.user import User, acting_as
from tunsec.keying.ca import KeyType
from tunsec.model.clock import Seconds, WallTime
from tunsec.model.names import HostName
from tunsec.policy.intent import parse_policy

POLICY = """\
version: 1
hosts:
  db1: {address: [192.0.2.11, 2001:db8::11]}
  db2: {address: [192.0.2.12, 2001:db8::12]}
  db3: {address: 192.0.2.13}
defaults: {ppk: PPK}
flows:
  overlay: {kind: vxlan, between: [db1, db2]}
"""
DB1 = HostName("db1")
DAY = 86_400.0
NOW = WallTime(time.time())
NOBODY = User("nobody", 65534, 65534, ())

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
needs_namespaces = pytest.mark.skipif(
    missing_capability() is not None, reason=str(missing_capability())
)


def policy(*, ppk: str = "none", ike: str = "") -> Part:
    """db1's part of the policy."""
    return Part.of(parse_policy(POLICY.replace("PPK", ppk) + ike, "p.yaml"), "db1")


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ca") / "ca"
    ca_files.init(folder, name="test", days=60, kind=KeyType.ED25519, wall_now=NOW)
    return folder


def issue(ca: Path, folder: Path, *, name: str = "db1", days: float = 30, at: float = 0) -> Path:
    """An identity, `at` seconds from now."""
    ca_files.issue_to(
        folder,
        HostName(name),
        authority=ca_files.load(ca, wall_now=NOW),
        addresses=[],
        days=days,
        kind=KeyType.ED25519,
        wall_now=WallTime(NOW + at),
    )
    return folder


def verdicts(findings: list[Finding]) -> list[Verdict]:
    return [finding.verdict for finding in findings]


def test_a_good_policy(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(POLICY.replace("PPK", "none"))
    (finding,), part = check_policy(file, DB1)
    assert part is not None
    assert finding.verdict is Verdict.OK
    assert finding.found.endswith(") is good; flows of db1: overlay")
    (finding,), part = check_policy(file, HostName("db3"))
    assert part is not None
    assert finding.verdict is Verdict.WARNING
    assert finding.found.endswith("flows of db3: none")


def test_policies_that_are_of_no_use(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    (finding,), part = check_policy(file, DB1)
    assert (finding.verdict, part) == (Verdict.PROBLEM, None)
    assert finding.found == f"{file} cannot be read: No such file or directory"
    file.write_text(POLICY.replace("PPK", "nonsense").replace("vxlan", "vxlam"))
    found, part = check_policy(file, DB1)
    assert (verdicts(found), part) == ([Verdict.PROBLEM] * 2, None)
    assert found[1].found.startswith(f"{file}:8: flows.overlay.kind")
    assert "vxlan" in found[1].remedy
    file.write_text(POLICY.replace("PPK", "none"))
    (finding,), part = check_policy(file, HostName("db9"))
    assert (finding.verdict, part) == (Verdict.PROBLEM, None)
    assert "db9" in finding.found


@pytest.fixture
def underlay() -> Iterator[None]:
    with private_namespace():
        run("ip link add v0 type veth peer name v1")
        run("ip link set v0 up mtu 1500")
        run("ip link set v1 up")
        run("ip addr add 192.0.2.11/24 dev v0")
        yield


@needs_namespaces
def test_addresses_that_no_device_has(underlay: None) -> None:
    finding = check_addresses(policy())
    assert finding.verdict is Verdict.PROBLEM
    assert finding.found.startswith("no device has 2001:db8::11, ")
    run("ip addr add 2001:db8::11/64 dev v0 nodad")
    assert check_addresses(policy()).verdict is Verdict.OK


@needs_namespaces
def test_tunnel_devices(underlay: None) -> None:
    (finding,) = check_devices(policy())
    assert (finding.verdict, finding.found) == (Verdict.OK, "no tunnel device is there yet")
    run("ip link add red mtu 1416 type vxlan id 41 remote 192.0.2.12 dstport 4789")
    (finding,) = check_devices(policy())
    assert (finding.verdict, finding.found) == (Verdict.OK, "red")
    run("ip link set red mtu 1450")
    run("ip link add blue type vxlan id 42 remote 192.0.2.12 dstport 8472")
    tight, bare = check_devices(policy())
    assert (tight.verdict, bare.verdict) == (Verdict.WARNING, Verdict.WARNING)
    assert tight.found.startswith("red: MTU 1450 leaves no room for ESP")
    assert "blue" in bare.found
    assert "in clear" in bare.found


@needs_namespaces
def test_roce(underlay: None) -> None:
    assert list(check_rdma(policy())) == []
    text = POLICY.replace("PPK", "none").replace("kind: vxlan", "kind: rocev2")
    part = Part.of(parse_policy(text, "p"), DB1)
    run("ip route add 192.0.2.12 dev v0")
    (finding,) = check_rdma(part)
    assert finding.verdict is Verdict.OK
    run("ip link set v0 mtu 2140")
    run("ip link set v1 mtu 2140")
    (finding,) = check_rdma(part)
    assert finding.verdict is Verdict.WARNING
    assert "RoCE packets of path MTU 2048 take up to 2148 bytes with ESP" in finding.found


def test_an_identity_that_peers_believe(ca: Path, tmp_path: Path) -> None:
    folder = issue(ca, tmp_path / "id")
    (finding,) = check_identity(folder, policy(), wall_now=NOW)
    assert (finding.verdict, finding.found) == (Verdict.OK, "db1, good for 30 days")
    (finding,) = check_identity(folder, policy(), wall_now=WallTime(NOW + 20 * DAY))
    assert finding.verdict is Verdict.WARNING
    assert "ends in 10.0 days" in finding.found


def test_identities_that_peers_refuse(ca: Path, tmp_path: Path) -> None:
    (finding,) = check_identity(issue(ca, tmp_path / "other", name="db2"), policy(), wall_now=NOW)
    assert finding.verdict is Verdict.PROBLEM
    assert "names db2, not db1" in finding.found
    late = issue(ca, tmp_path / "late", days=1)
    (finding,) = check_identity(late, policy(), wall_now=WallTime(NOW + 2 * DAY))
    assert "expired-certificate" in finding.found
    open_ = issue(ca, tmp_path / "open")
    (open_ / "key.pem").chmod(0o644)
    (finding,) = check_identity(open_, policy(), wall_now=NOW)
    assert finding.verdict is Verdict.PROBLEM
    assert "key.pem: others may use this private file" in finding.found
    found = check_identity(tmp_path / "none", policy(), wall_now=NOW)
    assert set(verdicts(found)) == {Verdict.PROBLEM}


def test_secrets_that_the_policy_asks_for(ca: Path, tmp_path: Path) -> None:
    folder = issue(ca, tmp_path / "id")
    (finding,) = check_identity(folder, policy(ppk="required"), wall_now=NOW)
    assert finding.verdict is Verdict.PROBLEM
    assert "ppk.key is missing" in finding.found
    (folder / "ppk.key").write_text(os.urandom(32).hex())
    (folder / "ppk.key").chmod(0o600)
    (finding,) = check_identity(folder, policy(ppk="required"), wall_now=NOW)
    assert finding.verdict is Verdict.OK
    psk = tmp_path / "psk"
    with_psk = policy(ike=f"ike: {{auth: psk, psk_file: {psk}}}\n")
    (finding,) = check_identity(folder, with_psk, wall_now=NOW)
    assert finding.verdict is Verdict.PROBLEM
    assert finding.found.startswith(f"{psk}: ")


def test_a_clock_that_is_behind(ca: Path, tmp_path: Path) -> None:
    folder = issue(ca, tmp_path / "id")
    file = tmp_path / "policy.yaml"
    file.write_text(POLICY)
    assert check_clock(folder, (file,), wall_now=NOW).verdict is Verdict.OK
    assert check_clock(tmp_path / "none", (tmp_path / "none",), wall_now=NOW).verdict is Verdict.OK
    behind = check_clock(folder, (), wall_now=WallTime(NOW - DAY))
    assert behind.verdict is Verdict.PROBLEM
    assert f"{folder}/cert.pem begins at " in behind.found
    os.utime(file, (NOW + 3600, NOW + 3600))
    written = check_clock(folder, (file,), wall_now=NOW)
    assert written.verdict is Verdict.PROBLEM
    assert f"{file} was written at " in written.found


def test_files_of_this_host(tmp_path: Path) -> None:
    (tmp_path / "sequences.json").write_text("{}")
    policy_file = Path("/etc/policy")
    assert own_files(policy_file, tmp_path) == (policy_file, tmp_path / "sequences.json")
    assert own_files(policy_file, tmp_path / "none") == (policy_file,)


def test_folders(tmp_path: Path) -> None:
    assert check_folder(tmp_path, "run-folder").verdict is Verdict.OK
    absent = check_folder(tmp_path / "none", "run-folder")
    assert absent.verdict is Verdict.OK
    assert "is not there yet" in absent.found
    (tmp_path / "file").write_text("")
    assert check_folder(tmp_path / "file", "run-folder").verdict is Verdict.PROBLEM
    assert check_folder(tmp_path / "file" / "below", "run-folder").verdict is Verdict.PROBLEM


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A folder that everybody may reach."""
    for folder in (tmp_path, *tmp_path.parents):
        if folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o011)
    made = tmp_path / "shared"
    made.mkdir()
    made.chmod(0o777)
    return made


@needs_root
def test_a_folder_that_tunsecds_user_cannot_write(shared: Path) -> None:
    with acting_as(NOBODY):
        assert check_folder(shared, "state-folder").verdict is Verdict.OK
    shared.chmod(0o755)
    with acting_as(NOBODY):
        finding = check_folder(shared, "state-folder")
    assert finding.verdict is Verdict.PROBLEM
    assert "cannot be written by tunsecd's user" in finding.found


def test_a_directory_is_left_as_it_was(shared: Path) -> None:
    (finding,) = check_directory(shared.as_uri())
    assert finding.verdict is Verdict.OK
    assert finding.found.startswith(f"{shared}, 0 offers, ")
    assert list(shared.iterdir()) == []
    (shared / "offers").mkdir()
    (shared / "offers" / "db2").write_text("x")
    (shared / "offers" / ".new-1").write_text("x")
    (finding,) = check_directory(shared.as_uri())
    assert finding.found.startswith(f"{shared}, 1 offer, ")
    assert {path.name for path in (shared / "offers").iterdir()} == {"db2", ".new-1"}


@needs_root
def test_a_directory_that_tunsecds_user_cannot_write(shared: Path) -> None:
    shared.chmod(0o755)
    assert check_directory(shared.as_uri())[0].verdict is Verdict.OK
    with acting_as(NOBODY):
        (finding,) = check_directory(shared.as_uri())
    assert finding.verdict is Verdict.PROBLEM
    assert "Permission denied" in finding.found


def test_directories_that_are_none(tmp_path: Path) -> None:
    (finding,) = check_directory((tmp_path / "none").as_uri())
    assert finding.verdict is Verdict.PROBLEM
    assert "No such file" in finding.found
    (finding,) = check_directory("etcd://db1:2379")
    assert finding.verdict is Verdict.PROBLEM


def test_a_directory_that_hangs() -> None:
    answered = threading.Event()

    def attempt() -> Finding:
        answered.wait(10)
        return ok(Group.HOST, "directory", "at last")

    assert within(Seconds(0.05), attempt) is None
    answered.set()
    assert within(Seconds(10.0), attempt) == ok(Group.HOST, "directory", "at last")
