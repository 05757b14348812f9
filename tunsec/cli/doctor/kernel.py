"""What the kernel can do, tried in a network namespace of its own; and what it was told.

Each attempt is what tunsecd does later: written, read back, removed. No version is asked.
"""

import ipaddress
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Final

from tunsec.adapters.aead_speed import REMEDY, measure
from tunsec.adapters.links import HostLinks
from tunsec.adapters.nft import NftGuard
from tunsec.adapters.scratch_namespace import scratch_namespace
from tunsec.adapters.sockets import SocketEvents, Sockets
from tunsec.adapters.syn_queue import SynQueue
from tunsec.adapters.tc import TcMarks
from tunsec.adapters.tunnel_lookup import try_lookup
from tunsec.adapters.xfrm import XfrmKernel
from tunsec.cli.doctor.finding import Finding, Group, ok, problem, warning
from tunsec.cli.doctor.part import Part
from tunsec.model.aead import Aead, AeadSpeed
from tunsec.model.errors import TunsecError, Unavailable
from tunsec.model.flow import Kind
from tunsec.model.guard import Guard, GuardedFlow, TunnelDevice, VniMarks
from tunsec.model.names import FlowName, Mark, Spi, Vni
from tunsec.model.ownership import PRIORITY_BLOCK, PRIORITY_PROTECT, REQID_FIRST
from tunsec.model.sa import Replay, Sa, SaDirection, SaId
from tunsec.model.secret import Secret
from tunsec.model.selector import TCP, UDP, PortMatch, Selector
from tunsec.model.sp import Sp, SpAction, SpDirection, SpId, Template
from tunsec.model.step import AddSa, AddSp, RemoveSa, RemoveSp
from tunsec.plan.compare import sa_matches, sp_matches
from tunsec.policy.desired import REPLAY_WINDOW
from tunsec.ports import Kernel
from tunsec.wire.rtnl import OVERLAY_KINDS

KERNEL: Final = Group.KERNEL
ENDS: Final = {4: ("192.0.2.1", "192.0.2.2"), 6: ("2001:db8::1", "2001:db8::2")}
VXLAN_PORT: Final = 4789
RDS_PORT: Final = 16385
ROCE_PORT: Final = 4791
FAR_BEHIND: Final = 0.5
"""Of the fastest AEAD's speed."""
NET_SETTINGS: Final = Path("/proc/sys/net")
CPU: Final = Path("/proc/cpuinfo")

MODULES: Final = {
    Aead.AES_128_GCM: "gcm aes seqiv",
    Aead.AES_256_GCM: "gcm aes seqiv",
    Aead.CHACHA20_POLY1305: "chacha20poly1305",
}
ESP_REMEDY: Final = "modprobe esp4 esp6 gcm aes seqiv chacha20poly1305, or another kernel"

Troubles = Mapping[tuple[int, Aead], str]
"""What was wrong with an SA by IP version and AEAD; empty: nothing."""

_spis: Final = count(0x1000)


def check_kernel(part: Part | None) -> list[Finding]:
    """Everything that is tried in a scratch namespace."""
    try:
        with scratch_namespace():
            return list(_tried(part))
    except Unavailable as error:
        found = f"{error}: what this kernel can do was not tried"
        return [warning(KERNEL, "namespace", found, "run tunsec doctor as root")]


def _tried(part: Part | None) -> Iterator[Finding]:
    try:
        kernel = XfrmKernel()
    except TunsecError as error:
        yield problem(KERNEL, "xfrm", str(error), "a kernel with CONFIG_XFRM_USER")
        return
    try:
        yield check_sps(kernel)
        yield from check_sas(kernel, part)
    finally:
        kernel.close()
    yield check_guard()
    if part is not None and any(flow.gated for flow in part.desired.guarded):
        yield check_gates()
    versions = _versions(part)
    for kind in _overlay_kinds(part):
        yield check_overlay(kind)
        yield from check_lookups(kind, versions)
    if part is not None and any(flow.tenants for flow in part.flows):
        yield check_vni_marks()


# -- XFRM ---------------------------------------------------------------------------------------


def check_sps(kernel: Kernel) -> Finding:
    """Block SPs, and SPs that protect by one SA, of both families."""
    for version in ENDS:
        for sp in (_block(version), _protect(version)):
            trouble = try_sp(kernel, sp)
            if trouble:
                remedy = "a kernel with CONFIG_XFRM_USER, and root's rights"
                return problem(KERNEL, "policies", f"{sp}: {trouble}", remedy)
    return ok(KERNEL, "policies", "block and protect, IPv4 and IPv6")


def check_sas(kernel: Kernel, part: Part | None) -> Iterator[Finding]:
    """ESP over each IP version with each AEAD, and what SAs ask beside."""
    troubles = {
        (version, aead): try_sa(kernel, probe_sa(aead, version=version))
        for version in ENDS
        for aead in Aead
    }
    able = {key for key, trouble in troubles.items() if not trouble}
    if not able:
        found = "; ".join(dict.fromkeys(troubles.values()))
        yield problem(KERNEL, "esp", f"no SA can be made: {found}", ESP_REMEDY)
        return
    yield from judge_versions(troubles, part)
    yield from judge_aeads(troubles, part)
    aead = next(aead for _, aead in troubles if (4, aead) in able or (6, aead) in able)
    version = 4 if (4, aead) in able else 6
    yield check_esn(kernel, probe_sa(aead, version=version))
    yield check_direction(kernel, probe_sa(aead, version=version))


def judge_versions(troubles: Troubles, part: Part | None) -> Iterator[Finding]:
    """An IP version without ESP is a problem if the policy uses it."""
    used = _versions(part)
    for version in ENDS:
        said = [trouble for (of, _), trouble in troubles.items() if of == version]
        if not all(said):
            yield ok(KERNEL, f"esp-ipv{version}", "transport mode")
            continue
        verdict = problem if version in used else warning
        yield verdict(KERNEL, f"esp-ipv{version}", "; ".join(dict.fromkeys(said)), ESP_REMEDY)


def judge_aeads(troubles: Troubles, part: Part | None) -> Iterator[Finding]:
    """An AEAD that is lacking is a problem if a flow is left without any."""
    said = {aead: [trouble for (_, of), trouble in troubles.items() if of is aead] for aead in Aead}
    able = {aead for aead, ones in said.items() if not all(ones)}
    for aead, ones in said.items():
        if aead in able:
            yield ok(KERNEL, aead, "keyed, read back and removed")
            continue
        found = "; ".join(dict.fromkeys(ones))
        remedy = f"modprobe {MODULES[aead]}, or name another aead in the policy"
        lost = [
            flow.name
            for flow in (part.flows if part else ())
            if aead in flow.aeads and not set(flow.aeads) & able
        ]
        if lost:
            yield problem(KERNEL, aead, f"{found}; flow {', '.join(lost)} has no other", remedy)
        else:
            yield warning(KERNEL, aead, found, remedy)


def check_esn(kernel: Kernel, sa: Sa) -> Finding:
    """64-bit sequence numbers with the window that tunsec asks for."""
    trouble = try_sa(kernel, replace(sa, replay=Replay(window=REPLAY_WINDOW, esn=True)))
    if trouble:
        return problem(KERNEL, "esn", trouble, "a kernel that has ESN with wide windows")
    return ok(KERNEL, "esn", f"with a replay window of {REPLAY_WINDOW} packets")


def check_direction(kernel: Kernel, sa: Sa) -> Finding:
    """Whether SAs know their direction, as newer kernels let them."""
    trouble = try_sa(kernel, replace(sa, direction=SaDirection.INBOUND))
    found = "SAs do not know their direction: tunsec does without"
    return ok(KERNEL, "direction", found if trouble else "SAs know their direction")


def probe_sa(aead: Aead, *, version: int = 4) -> Sa:
    """An inbound SA with a random key; no two have one id."""
    src, dst = map(ipaddress.ip_address, ENDS[version])
    key = Secret(os.urandom(aead.key_bytes + aead.salt_bytes))
    return Sa(SaId(dst, Spi(next(_spis))), src, REQID_FIRST, aead, key)


def try_sa(kernel: Kernel, sa: Sa) -> str:
    """What is wrong with an SA that is added, read back and removed; empty: nothing."""
    try:
        (refused,) = kernel.apply([AddSa(sa, SaDirection.INBOUND)])
        if refused is not None:
            return refused.reason
        there = kernel.sa(sa.id)
        (left,) = kernel.apply([RemoveSa(sa.id)])
    except TunsecError as error:
        return str(error)
    finally:
        if sa.key is not None:
            sa.key.wipe()
    if there is None or not sa_matches(sa, there):
        return f"asked for {_shown(sa)}, the kernel made {_shown(there)}"
    return "" if left is None else f"it cannot be removed: {left.reason}"


def try_sp(kernel: Kernel, sp: Sp) -> str:
    """What is wrong with an SP that is added, read back and removed; empty: nothing."""
    try:
        (refused,) = kernel.apply([AddSp(sp)])
        if refused is not None:
            return refused.reason
        there = kernel.sp(sp.id)
        (left,) = kernel.apply([RemoveSp(sp)])
    except TunsecError as error:
        return str(error)
    if there is None or not sp_matches(sp, there):
        return f"the kernel made {there or 'nothing'}"
    return "" if left is None else f"it cannot be removed: {left.reason}"


def _shown(sa: Sa | None) -> str:
    if sa is None:
        return "nothing"
    numbers = "64-bit" if sa.replay.esn else "32-bit"
    direction = f", {sa.direction}bound" if sa.direction else ""
    return f"{sa.aead or 'another algorithm'}, {numbers}, window {sa.replay.window}{direction}"


def _selector(version: int) -> Selector:
    src, dst = map(ipaddress.ip_network, ENDS[version])
    return Selector(src, dst, UDP, dport=PortMatch(VXLAN_PORT))


def _block(version: int) -> Sp:
    return Sp(SpId(_selector(version), SpDirection.OUT), PRIORITY_BLOCK, SpAction.BLOCK)


def _protect(version: int) -> Sp:
    src, dst = map(ipaddress.ip_address, ENDS[version])
    template = Template(src=src, dst=dst, reqid=REQID_FIRST, spi=Spi(next(_spis)))
    id_ = SpId(_selector(version), SpDirection.OUT)
    return Sp(id_, PRIORITY_PROTECT, SpAction.ALLOW, (template,))


# -- nftables and tunnels -----------------------------------------------------------------------


def check_guard() -> Finding:
    """The guard's tables with everything in them that a policy can ask for."""
    flow = GuardedFlow(
        flow=FlowName("doctor"),
        kind=Kind.VXLAN,
        proto=UDP,
        ports=(VXLAN_PORT,),
        either_side=False,
        peers=frozenset(ipaddress.ip_address(dst) for _, dst in ENDS.values()),
        tunnel_only=True,
        strangers_blocked=True,
    )
    sockets = replace(flow, flow=FlowName("sockets"), kind=Kind.ROCEV2, ports=(ROCE_PORT,))
    devices = (TunnelDevice("lo", 1, Kind.VXLAN, VXLAN_PORT),)
    try:
        table = NftGuard()
        table.put(Guard((flow, sockets), devices, Mark(1 << 31, 1 << 31)))
        table.remove()
    except Unavailable as error:
        return problem(
            KERNEL, "nftables", str(error), "apt-get install nftables, or its counterpart"
        )
    except TunsecError as error:
        remedy = "a kernel with nf_tables, its inet and netdev families, and nft_xfrm"
        return problem(KERNEL, "nftables", str(error), remedy)
    return ok(KERNEL, "nftables", "rt ipsec, meta ipsec, netdev egress")


def check_gates() -> Finding:
    """What `on_reconnect` needs: rules that hold new connections, the queue that they wait in, and
    what tells of connections."""
    flow = GuardedFlow(
        flow=FlowName("doctor"),
        kind=Kind.RDS_TCP,
        proto=TCP,
        ports=(RDS_PORT,),
        either_side=True,
        peers=frozenset(ipaddress.ip_address(dst) for _, dst in ENDS.values()),
        tunnel_only=False,
        gated=True,
    )
    try:
        table = NftGuard()
        table.put(Guard((flow,), (), Mark(1 << 31, 1 << 31)))
        table.remove()
        with SynQueue() as syns, SocketEvents():
            syns.bind()
        sockets = Sockets()
        try:
            sockets.connections(RDS_PORT)
        finally:
            sockets.close()
    except TunsecError as error:
        remedy = "modprobe nft_queue nfnetlink_queue inet_diag tcp_diag, or 'on_reconnect: keep'"
        return problem(KERNEL, "on-reconnect", str(error), remedy)
    return ok(KERNEL, "on-reconnect", "nft queue, nfnetlink_queue, sock_diag")


def check_overlay(kind: Kind) -> Finding:
    """Tunnel devices of a kind, over both IP versions."""
    try:
        with HostLinks() as links:
            for version, (_, remote) in ENDS.items():
                links.make_overlay(
                    kind,
                    name=f"{kind}{version}",
                    vni=Vni(version),
                    remote=ipaddress.ip_address(remote),
                    port=VXLAN_PORT + version,
                )
    except TunsecError as error:
        return problem(KERNEL, kind, str(error), f"modprobe {kind}")
    return ok(KERNEL, kind, "devices can be made")


def check_lookups(kind: Kind, versions: Collection[int]) -> Iterator[Finding]:
    """Whether SPs by port stop what the tunnels of a kind send over these IP versions."""
    try:
        with HostLinks() as links, closing(XfrmKernel()) as kernel:
            troubles = [try_lookup(kernel, links, kind, version) for version in sorted(versions)]
    except TunsecError as error:
        yield warning(KERNEL, f"{kind}-ports", str(error), "tunsec doctor on an idle host")
        return
    for trouble in filter(None, troubles):
        what, _, remedy = trouble.rpartition(": ")
        yield problem(KERNEL, f"{kind}-ports", what, remedy)
    if not any(troubles):
        shown = " and ".join(f"IPv{version}" for version in sorted(versions))
        yield ok(KERNEL, f"{kind}-ports", f"SPs by port stop its packets over {shown}")


def _versions(part: Part | None) -> set[int]:
    """IP versions that the host uses; all without a policy."""
    return {address.version for address in part.host.addresses} if part else set(ENDS)


def check_vni_marks() -> Finding:
    """Filters that mark by VNI; only `external` devices of flows with tenants need them."""
    marked = ((Vni(1), Mark(1 << 31, 1 << 31)),)
    try:
        TcMarks().put([VniMarks("lo", 1, marked)])
    except TunsecError as error:
        found = f"external tunnel devices have no tenants here: {error}"
        remedy = "install iproute2, modprobe sch_ingress cls_flower act_skbedit"
        return warning(KERNEL, "tc", found, remedy)
    return ok(KERNEL, "tc", "flower on egress, marks by VNI")


def _overlay_kinds(part: Part | None) -> list[Kind]:
    kinds = {flow.kind for flow in part.flows} if part else set()
    return [kind for kind in OVERLAY_KINDS if kind in kinds]


# -- the host's own namespace: only read --------------------------------------------------------


def check_speed(part: Part | None) -> Finding:
    """How fast each AEAD is, measured now: 0.2 s."""
    try:
        speeds = measure(Aead)
    except Unavailable as error:
        return problem(KERNEL, "speed", str(error).removesuffix(f" ({REMEDY})"), REMEDY)
    return judge_speed(part, speeds, has_aes=_has_aes(CPU))


def judge_speed(part: Part | None, speeds: tuple[AeadSpeed, ...], *, has_aes: bool) -> Finding:
    """Whether the policy insists on a slow AEAD, or the kernel leaves AES instructions unused."""
    by_aead = {speed.aead: speed.bytes_per_second for speed in speeds}
    best = max(by_aead.values())
    shown = ", ".join(
        f"{speed.aead} {speed.bytes_per_second * 8 / 1e9:.2g} Gbit/s"
        for speed in sorted(speeds, key=lambda speed: -speed.bytes_per_second)
    )
    for flow in part.flows if part else ():
        if max((by_aead.get(aead, 0) for aead in flow.aeads), default=0) < best * FAR_BEHIND:
            found = f"flow {flow.name} must use {', '.join(flow.aeads)}; a core does {shown}"
            return warning(KERNEL, "speed", found, "aead: auto takes what is fastest on both hosts")
    if has_aes and by_aead.get(Aead.AES_128_GCM, 0) < by_aead.get(Aead.CHACHA20_POLY1305, 0):
        found = f"the CPU has AES instructions that the kernel does not use; a core does {shown}"
        return warning(KERNEL, "speed", found, "modprobe aesni_intel, or this CPU's counterpart")
    return ok(KERNEL, "speed", f"a core does {shown}")


def _has_aes(cpu: Path) -> bool:
    """Whether the CPU has AES instructions (x86 calls the list flags, Arm Features)."""
    try:
        lines = cpu.read_text().splitlines()
    except OSError:
        return False
    return any("aes" in line.split() for line in lines if line.startswith(("flags", "Features")))


def check_settings(folder: Path = NET_SETTINGS) -> Iterator[Finding]:
    """Kernel settings that switch IPsec off on devices.

    The loopback device has them set from its birth (net/ipv4/devinet.c), and what is set for
    `all` holds for every device (IN_DEV_ORCONF).
    """
    found = False
    for name, effect in (
        ("ipv4/conf/*/disable_xfrm", "packets that leave by it are not looked up in the SPD"),
        ("ipv4/conf/*/disable_policy", "packets that come in by it are not checked"),
        ("ipv6/conf/*/disable_policy", "packets that come in by it are not checked"),
    ):
        for path in sorted(folder.glob(name)):
            device = path.parent.name
            if device == "lo" or not _is_set(path):
                continue
            found = True
            setting = f"net/{path.relative_to(folder)}"
            verdict = problem if device == "all" else warning
            text = f"{setting} = 1: {effect}, the guard drops them"
            yield verdict(KERNEL, "settings", text, f"sysctl -w {setting}=0")
    if not found:
        yield ok(KERNEL, "settings", "IPsec is switched off on no device")


def _is_set(path: Path) -> bool:
    try:
        return path.read_text().strip() not in ("", "0")
    except OSError:
        return False
