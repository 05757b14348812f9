"""Whether this kernel asks the SPD with a tunnel's port, tried by sending, once per boot.

Geneve asked without a port before Linux 5.9 (CVE-2020-25645), VXLAN and Geneve over IPv6 did not
ask at all before 5.6 (CVE-2020-1749), and what distributions ported back no version tells. SPs by
port are not seen there: such tunnels send in clear, which only the guard stops.

The tunnel that is tried has its remote behind itself. Where no SP blocks its packet, the packet's
way leads back into the device, and there it ends; where one does, it has no way at all. The
device counts both, so nothing leaves the host, and CAP_NET_ADMIN is all it takes: tunsecd may not
make namespaces or packet sockets, nor should it for this.
"""

import ipaddress
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tunsec.adapters.boot_file import read_boot_file, write_boot_file
from tunsec.adapters.links import HostLinks
from tunsec.model.errors import Refused, Unavailable
from tunsec.model.flow import Kind
from tunsec.model.names import Vni
from tunsec.model.overlay import LookupFault
from tunsec.model.ownership import PRIORITY_BLOCK
from tunsec.model.selector import UDP, PortMatch, Selector, any_network
from tunsec.model.sp import Sp, SpAction, SpDirection, SpId
from tunsec.model.step import AddSp, RemoveSp
from tunsec.ports import Kernel

DEVICE: Final = "tunsec-probe"
ENDS: Final = {
    4: ("198.51.100.252", "198.51.100.253", 31),  # RFC 5737; no subnet's broadcast address
    6: ("100::fe", "100::ff", 127),  # RFC 6666
}
VNI: Final = Vni(0xFFFFFE)
DISCARD: Final = 9
"""The port to which the packet inside goes (RFC 863)."""
CACHE_NAME: Final = "tunnel-lookups.json"
CONF: Final = Path("/proc/sys/net/ipv4/conf")

UNSEEN: Final = {
    (Kind.GENEVE, 4): "CVE-2020-25645, mended in Linux 5.9",
    (Kind.GENEVE, 6): "CVE-2020-1749 and CVE-2020-25645, mended in Linux 5.9",
    (Kind.VXLAN, 6): "CVE-2020-1749, mended in Linux 5.6",
}

Wanted = Iterable[tuple[Kind, int]]


def lookup_faults(run: Path, kernel: Kernel, links: HostLinks, wanted: Wanted) -> list[LookupFault]:
    """Which of these tunnels (kind, IP version of the underlay) this kernel cannot protect.

    From the file of this boot in the folder `run` as far as it goes. Raises Unavailable for what
    cannot be tried here; what was tried before it is kept.
    """
    document = read_boot_file(run / CACHE_NAME)
    faults = []
    for kind, version in wanted:
        known = document.get(f"{kind}/{version}")
        if not isinstance(known, str):
            known = try_lookup(kernel, links, kind, version)
            document[f"{kind}/{version}"] = known
            write_boot_file(run / CACHE_NAME, document)
        if known:
            faults.append(LookupFault(kind, version, known))
    return faults


def try_lookup(
    kernel: Kernel, links: HostLinks, kind: Kind, version: int, *, off_by: int = 0
) -> str:
    """What is wrong with how a tunnel's packets are looked up; empty: nothing.

    `off_by` makes the SP that shall block select another port than the tunnel's: then any kernel
    looks like one that does not ask with the port. Raises Unavailable when nothing can be told.
    """
    local, remote, prefix = ENDS[version]
    port = _free_port()
    try:
        links.remove(DEVICE)  # a daemon that was killed leaves it
        to = ipaddress.ip_address(remote)
        try:
            links.make_overlay(kind, name=DEVICE, vni=VNI, remote=to, port=port, up=True)
            links.add_address(DEVICE, ipaddress.ip_address(local), prefix=prefix)
            if version == 4:
                _check_asked_at_all()
            with _blocked(kernel, remote, port ^ 1):
                if not _passes(links, remote):
                    raise Unavailable("its packets are blocked by another rule")
            with _blocked(kernel, remote, port + off_by):
                passes = _passes(links, remote)
        finally:
            links.remove(DEVICE)
    except (Refused, Unavailable, OSError) as error:
        raise Unavailable(f"{kind} over IPv{version} cannot be tried: {error}") from error
    if not passes:
        return ""
    return (
        f"this kernel looks {kind} over IPv{version} up without its port, so that no SP protects "
        f"it ({UNSEEN.get((kind, version), 'unknown cause')}): use a newer kernel"
    )


def _free_port() -> int:
    """One that nobody listens on."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("", 0))
        return int(taken.getsockname()[1])


def _check_asked_at_all() -> None:
    """`disable_xfrm` switches look-ups off for a device; new ones take it from the default."""
    if (CONF / DEVICE / "disable_xfrm").read_text().strip() != "0":
        raise Unavailable("net/ipv4/conf/default/disable_xfrm is set")


@contextmanager
def _blocked(kernel: Kernel, remote: str, port: int) -> Iterator[None]:
    """An SP blocks what goes to the remote and the port meanwhile.

    It bears tunsec's mark of ownership: what a daemon that is killed leaves goes with `release`.
    """
    to = ipaddress.ip_network(remote)
    selector = Selector(any_network(to.version), to, UDP, dport=PortMatch(port))
    sp = Sp(SpId(selector, SpDirection.OUT), PRIORITY_BLOCK, SpAction.BLOCK)
    _carry_out(kernel, AddSp(sp))
    try:
        yield
    finally:
        _carry_out(kernel, RemoveSp(sp))


def _carry_out(kernel: Kernel, step: AddSp | RemoveSp) -> None:
    (refused,) = kernel.apply([step])
    if refused is not None:
        raise refused


def _passes(links: HostLinks, remote: str) -> bool:
    """Whether a packet that the tunnel is given finds its way, past all SPs."""
    before = links.sent(DEVICE)
    family = socket.AF_INET if ":" not in remote else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as program:
        program.sendto(b"", (remote, DISCARD))
    after = links.sent(DEVICE)
    if after.circular > before.circular:
        return True
    if after.no_way > before.no_way:
        return False
    raise Unavailable("its packets go another way")
