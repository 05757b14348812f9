"""Trying whether tunnels are looked up by their port, on a real kernel."""

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.namespaces import missing_capability, private_namespace, run
from tunsec.adapters.boot_file import BOOT_ID
from tunsec.adapters.links import HostLinks
from tunsec.adapters.tunnel_lookup import CACHE_NAME, ENDS, lookup_faults, try_lookup
from tunsec.adapters.xfrm import XfrmKernel
from tunsec.model.errors import Unavailable
from tunsec.model.flow import Kind
from tunsec.model.overlay import LookupFault

pytestmark = pytest.mark.skipif(missing_capability() is not None, reason=str(missing_capability()))

TUNNELS = [(kind, version) for kind in (Kind.VXLAN, Kind.GENEVE) for version in (4, 6)]
Netlink = tuple[XfrmKernel, HostLinks]


@pytest.fixture
def netlink() -> Iterator[Netlink]:
    with private_namespace(), HostLinks() as links, closing(XfrmKernel()) as kernel:
        yield kernel, links


def nothing_left() -> bool:
    """Neither device nor SP."""
    return "tunsec-probe" not in run("ip link") and not run("ip xfrm policy").strip()


@pytest.mark.parametrize(("kind", "version"), TUNNELS)
def test_a_kernel_that_asks_with_the_port_and_one_that_seems_not_to(
    netlink: Netlink, kind: Kind, version: int
) -> None:
    """The second is this kernel with an SP that its packets cannot match."""
    run(f"ip link add there type {kind} id 1 remote 192.0.2.1 dstport 4000", check=False)
    if "there" not in run("ip link"):
        pytest.skip(f"this kernel has no {kind}")
    assert try_lookup(*netlink, kind, version) == ""
    assert nothing_left()
    said = try_lookup(*netlink, kind, version, off_by=1)
    assert said.startswith(f"this kernel looks {kind} over IPv{version} up without its port")
    assert nothing_left()


def test_what_a_killed_daemon_left_does_not_disturb(netlink: Netlink) -> None:
    run("ip link add tunsec-probe type vxlan id 16777214 remote 198.51.100.253 dstport 4000")
    assert try_lookup(*netlink, Kind.VXLAN, 4) == ""
    assert nothing_left()


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("ip xfrm policy add dir out dst {} proto udp action block", "Operation not permitted"),
        (
            "ip rule add to {} lookup 7 pref 0; ip route add unreachable {} table 7",
            "No route to host",
        ),
        ("sysctl -qw net.ipv4.conf.default.disable_xfrm=1", "default/disable_xfrm is set"),
    ],
)
def test_what_cannot_be_told_is_said(netlink: Netlink, command: str, why: str) -> None:
    for line in command.format(ENDS[4][1], ENDS[4][1]).split("; "):
        run(line)
    with pytest.raises(Unavailable, match=why):
        try_lookup(*netlink, Kind.VXLAN, 4)
    assert "tunsec-probe" not in run("ip link")


def test_each_is_tried_once_a_boot(netlink: Netlink, tmp_path: Path) -> None:
    assert lookup_faults(tmp_path, *netlink, [(Kind.VXLAN, 4)]) == []
    document = json.loads((tmp_path / CACHE_NAME).read_text())
    assert document == {"boot_id": BOOT_ID.read_text().strip(), "vxlan/4": ""}
    (tmp_path / CACHE_NAME).write_text(json.dumps({**document, "vxlan/4": "known"}))
    wanted = [(Kind.VXLAN, 4), (Kind.VXLAN, 6)]
    assert lookup_faults(tmp_path, *netlink, wanted) == [LookupFault(Kind.VXLAN, 4, "known")]
    (tmp_path / CACHE_NAME).write_text(json.dumps({**document, "boot_id": "another"}))
    assert lookup_faults(tmp_path, *netlink, [(Kind.VXLAN, 4)]) == []
