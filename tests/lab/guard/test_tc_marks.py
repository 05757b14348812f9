"""Marks by VNI on a real kernel, without ESP: put, read back, kept apart from what others have."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.namespaces import missing_capability, private_namespace, run
from tunsec.adapters.nft import TOOL_PATH
from tunsec.adapters.tc import TcMarks, TcMonitor
from tunsec.cli.doctor.finding import Verdict
from tunsec.cli.doctor.kernel import check_vni_marks
from tunsec.model.errors import Refused, Unavailable
from tunsec.model.guard import VniMarks
from tunsec.model.names import Mark, Vni

pytestmark = pytest.mark.skipif(
    missing_capability() is not None or shutil.which("tc", path=TOOL_PATH) is None,
    reason=missing_capability() or "tc is not installed",
)

TENANTS = tuple((Vni(vni), Mark(0x8000_0000 | vni << 24, 0xFF00_0000)) for vni in (1, 2))
OTHERS = Mark(0xFF00_0000, 0xFF00_0000)
THEIRS = "filter add dev vx0 egress pref 10 protocol ip flower dst_ip 192.0.2.9 action drop"

OURS = "dev vx0 egress pref 21588"


@pytest.fixture
def want() -> Iterator[VniMarks]:
    """Two tenants, and others, of an external device `vx0`."""
    with private_namespace():
        run("ip link add vx0 type vxlan external dstport 4789")
        run("ip link set vx0 up")
        if run_quietly("tc qdisc add dev vx0 clsact") or run_quietly(f"tc {THEIRS}"):
            pytest.skip("this kernel has no flower")
        run("tc qdisc del dev vx0 clsact")
        yield VniMarks("vx0", 2, TENANTS, OTHERS)


def run_quietly(command: str) -> int:
    """The exit status of a command that may fail."""
    return subprocess.run(command.split(), capture_output=True, check=False).returncode


def nothing(want: VniMarks) -> VniMarks:
    """The same device without any tenant."""
    return VniMarks(want.device, want.ifindex)


def kinds() -> list[str]:
    """Which qdiscs the device has."""
    return [one["kind"] for one in json.loads(run("tc -j qdisc show dev vx0"))]


def test_what_is_put_is_found_and_put_again_changes_nothing(want: VniMarks) -> None:
    marks = TcMarks()
    assert len(marks.drift([want])) == 3
    marks.put([want])
    assert marks.drift([want]) == ()
    before = run("tc filter show dev vx0 egress")
    marks.put([want])
    assert run("tc filter show dev vx0 egress") == before
    fewer = VniMarks("vx0", 2, TENANTS[:1])
    assert len(marks.drift([fewer])) == 2
    marks.put([fewer])
    assert marks.drift([fewer]) == ()


@pytest.mark.parametrize(
    "vandalism",
    [
        "filter del dev vx0 egress pref 21588",
        "filter del dev vx0 egress",
        "qdisc del dev vx0 clsact",
        f"filter replace {OURS} handle 0x54000001 protocol all flower enc_key_id 1 action pass",
        f"filter add {OURS} handle 0x54000009 protocol all flower enc_key_id 9 action pass",
    ],
)
def test_what_others_do_to_ours_is_heard_seen_and_put_right(want: VniMarks, vandalism: str) -> None:
    marks = TcMarks()
    marks.put([want])
    with TcMonitor() as monitor:
        run(f"tc {vandalism}")
        assert monitor.read()
        assert marks.drift([want])
        marks.put([want])
        assert marks.drift([want]) == ()


def test_what_others_do_to_theirs_is_not_ours_to_hear(want: VniMarks) -> None:
    TcMarks().put([want])
    with TcMonitor() as monitor:
        run(f"tc {THEIRS}")
        run("ip link add other type vxlan external dstport 4790")
        assert not monitor.read()


def test_a_clsact_of_ours_goes_with_our_filters(want: VniMarks) -> None:
    marks = TcMarks()
    marks.put([want])
    assert "clsact" in kinds()
    TcMarks().put([nothing(want)])
    assert "clsact" not in kinds()
    assert marks.drift([nothing(want)]) == ()


@pytest.mark.parametrize("first", [True, False])
def test_others_keep_their_filters_and_their_clsact(want: VniMarks, first: bool) -> None:
    if first:
        run("tc qdisc add dev vx0 clsact")
    marks = TcMarks()
    marks.put([want])
    run(f"tc {THEIRS}")
    theirs = "192.0.2.9"
    marks.put([want])
    assert theirs in run("tc filter show dev vx0 egress")
    marks.put([nothing(want)])
    assert "21588" not in run("tc filter show dev vx0 egress")
    assert theirs in run("tc filter show dev vx0 egress")
    assert "clsact" in kinds()


def test_a_clsact_that_others_made_stays_when_it_is_empty(want: VniMarks) -> None:
    run("tc qdisc add dev vx0 clsact")
    marks = TcMarks()
    marks.put([want])
    marks.put([nothing(want)])
    assert "clsact" in kinds()


def test_a_device_that_cannot_be_marked_costs_no_other_one(want: VniMarks) -> None:
    run("ip link add vx1 type vxlan external dstport 4790")
    run("tc qdisc add dev vx1 ingress")
    second = VniMarks("vx1", 3, TENANTS)
    marks = TcMarks()
    with pytest.raises(Refused, match=r"vx1.*make it a clsact"):
        marks.put([second, want])
    assert marks.drift([want]) == ()
    assert len(marks.drift([second])) == 2
    run("ip link del vx1")
    with pytest.raises(Refused, match="Cannot find device"):
        marks.put([second])


def test_without_tc_only_who_needs_it_is_told(want: VniMarks, tmp_path: Path) -> None:
    marks = TcMarks(tool=str(tmp_path / "tc"))
    with pytest.raises(Unavailable, match="cannot run"):
        marks.put([want])


def test_the_doctor_tries_the_same(want: VniMarks) -> None:
    assert check_vni_marks().verdict is Verdict.OK
