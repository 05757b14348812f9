"""This host as tunsecd will find it: policy, addresses, identity, clock, folders, tunnels.

Files are looked at as tunsecd's user (`acting_as`); who calls sees to that.
"""

import os
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from tunsec.adapters.dir_file import parse_directory_url
from tunsec.adapters.file_system import is_local
from tunsec.adapters.identity import CERT, PPK, load_identity
from tunsec.adapters.key_files import load_certificates
from tunsec.adapters.links import HostLinks
from tunsec.adapters.psk_file import read_psk
from tunsec.adapters.rdma import HostRdma
from tunsec.cli.check import read_policy
from tunsec.cli.doctor.finding import Finding, Group, Verdict, ok, problem, told, warning
from tunsec.cli.doctor.part import Part
from tunsec.model.clock import Seconds, WallTime
from tunsec.model.errors import PolicyError, TunsecError
from tunsec.model.flow import Kind, OffloadWish
from tunsec.model.names import HostName
from tunsec.model.underlay import EspFeature, Underlay
from tunsec.plan.devices import (
    group_warnings,
    mtu_warnings,
    uncovered_devices,
    ways_wanted,
)
from tunsec.plan.rdma import REMEDY, bypassed, roce_warnings
from tunsec.policy.intent import parse_policy
from tunsec.policy.values import Ppk

HOST: Final = Group.HOST
ANSWER_AFTER: Final = Seconds(10.0)
"""A network file system that has not answered for so long hangs (adapters/dir_file.py)."""
CLOCK_SLACK: Final = Seconds(60.0)
"""File servers have clocks of their own."""


def check_policy(path: Path, host: HostName) -> tuple[list[Finding], Part | None]:
    """Whether the policy can be read, is good and names this host."""
    try:
        text = read_policy(str(path))
    except OSError as error:
        found = f"{path} cannot be read: {error.strerror}"
        return [problem(HOST, "policy", found, "name it with --policy, check owner and mode")], None
    try:
        part = Part.of(parse_policy(text, str(path)), host)
    except PolicyError as error:
        return told(HOST, "policy", error.problems, Verdict.PROBLEM), None
    flows = ", ".join(flow.name for flow in part.flows)
    found = f"{path} ({part.intent.digest[:12]}) is good; flows of {host}: {flows or 'none'}"
    if not part.flows:
        return [warning(HOST, "policy", found, "tunsec has nothing to do here")], part
    return [ok(HOST, "policy", found)], part


def check_addresses(part: Part) -> Finding:
    """Whether this host has the addresses that the policy gives it."""
    wanted = part.host.addresses
    try:
        with HostLinks() as links:
            held = links.addresses()
    except TunsecError as error:
        return problem(HOST, "addresses", str(error), "tunsec needs rtnetlink")
    missing = [address for address in wanted if address not in held]
    if missing:
        found = f"no device has {', '.join(map(str, missing))}, which the policy gives this host"
        remedy = "correct hosts in the policy, or configure the interface"
        return problem(HOST, "addresses", found, remedy)
    return ok(HOST, "addresses", ", ".join(map(str, wanted)))


def check_identity(folder: Path, part: Part, *, wall_now: WallTime) -> list[Finding]:
    """Whether peers will believe this host."""
    try:
        loaded = load_identity(
            folder, host=part.host.name, name=part.host.identity, wall_now=wall_now
        )
        if part.intent.ike.psk_file is not None:
            read_psk(Path(part.intent.ike.psk_file))
    except PolicyError as error:
        return told(HOST, "identity", error.problems, Verdict.PROBLEM)
    if part.intent.ppk is Ppk.REQUIRED and loaded.ppk is None:
        found = f"{folder / PPK} is missing, and the policy requires a PPK"
        return [problem(HOST, "identity", found, "put the cluster's PPK there")]
    if loaded.warnings:
        return told(HOST, "identity", loaded.warnings, Verdict.WARNING)
    days = (loaded.valid_until - wall_now) / 86_400
    return [ok(HOST, "identity", f"{part.host.identity}, good for {days:.0f} days")]


def check_clock(identity: Path, written: tuple[Path, ...], *, wall_now: WallTime) -> Finding:
    """Whether the clock is behind what must lie in the past: a certificate, files written here."""
    past: dict[str, float] = {}
    with suppress(PolicyError):
        leaf = load_certificates(identity / CERT)[0]
        past[f"{identity / CERT} begins"] = leaf.not_valid_before_utc.timestamp()
    for path in written:
        with suppress(OSError):
            past[f"{path} was written"] = path.stat().st_mtime
    what, latest = max(past.items(), key=lambda item: item[1], default=("", 0.0))
    now = f"it is {_moment(wall_now)}"
    if latest > wall_now + CLOCK_SLACK:
        found = f"{now} here, but {what} at {_moment(latest)}"
        remedy = "set the clock: peers refuse offers of another time (timedatectl set-ntp true)"
        return problem(HOST, "clock", found, remedy)
    return ok(HOST, "clock", now)


def check_folder(path: Path, name: str) -> Finding:
    """Whether tunsecd may write one of its own folders."""
    remedy = "systemd-tmpfiles --create tunsec.conf, or correct owner and mode"
    try:
        is_folder = stat.S_ISDIR(path.stat().st_mode)
    except FileNotFoundError:
        return ok(HOST, name, f"{path} is not there yet: tunsecd or its unit makes it")
    except OSError as error:
        return problem(HOST, name, f"{path}: {error.strerror}", remedy)
    if not is_folder:
        return problem(HOST, name, f"{path} is no folder", "move it away")
    if not os.access(path, os.W_OK | os.X_OK, effective_ids=True):
        return problem(HOST, name, f"{path} cannot be written by tunsecd's user", remedy)
    return ok(HOST, name, str(path))


def check_directory(url: str, *, patience: Seconds = ANSWER_AFTER) -> list[Finding]:
    """Whether records can be read and written; waits so long for a network file system."""
    try:
        folder = parse_directory_url(url)
    except PolicyError as error:
        return told(HOST, "directory", error.problems, Verdict.PROBLEM)
    finding = within(patience, lambda: _try_directory(folder))
    if finding is None:
        found = f"{folder} does not answer for {patience:g} s"
        return [problem(HOST, "directory", found, "check the file server and the way to it")]
    return [finding]


def within(patience: Seconds, attempt: Callable[[], Finding]) -> Finding | None:
    """What the attempt finds, None when it takes longer.

    A hung NFS mount holds its caller for ever, even against signals: it is left behind.
    """
    answers: list[Finding] = []
    thread = threading.Thread(target=lambda: answers.append(attempt()), daemon=True)
    thread.start()
    thread.join(patience)
    return answers[0] if answers else None


def _try_directory(folder: Path) -> Finding:
    offers = folder / "offers"
    place = offers if offers.is_dir() else folder
    try:
        names = [path.name for path in place.iterdir() if not path.name.startswith(".")]
        # Names with a dot are no records: nobody heeds them.
        with tempfile.NamedTemporaryFile(prefix=".doctor-", dir=place) as file:
            file.write(b"tunsec doctor")
            file.flush()
            os.fsync(file.fileno())
        local = is_local(folder)
    except OSError as error:
        found = f"{error.filename or folder}: {error.strerror}"
        remedy = "mount it, and let tunsecd's user write there: ReadWritePaths= of its unit, too"
        return problem(HOST, "directory", found, remedy)
    count = len(names) if place == offers else 0
    how = "changes are told at once" if local else "a network file system: changes are polled for"
    return ok(HOST, "directory", f"{folder}, {count} offer{'' if count == 1 else 's'}, {how}")


def check_devices(part: Part) -> Iterator[Finding]:
    """Tunnel devices without room for ESP, those with a group, and those that no flow covers."""
    guarded, children = part.desired.guarded, part.desired.children
    try:
        with HostLinks() as links:
            devices = links.overlay_devices()
            ways = {peer: links.underlay_mtu(peer) for peer in ways_wanted(guarded, devices)}
    except TunsecError as error:
        yield problem(HOST, "tunnels", str(error), "tunsec needs rtnetlink")
        return
    tight = mtu_warnings(guarded, devices, ways)
    floods = group_warnings(guarded, devices)
    bare = uncovered_devices(guarded, children, devices)
    for text in tight:
        yield warning(HOST, "tunnels", text, "docs/operations.md, MTU of tunnel devices")
    for text in bare:
        yield warning(HOST, "tunnels", text, "declare a flow with this port")
    for text in floods:
        yield warning(HOST, "tunnels", text, "docs/policy.md, Strangers")
    if not (tight or bare or floods):
        names = ", ".join(device.name for device in devices)
        yield ok(HOST, "tunnels", names or "no tunnel device is there yet")


def check_rdma(part: Part) -> Iterator[Finding]:
    """RDMA devices that send past the kernel, and RoCE packets without room for ESP."""
    roce = [child for child in part.desired.children if child.kind is Kind.ROCEV2]
    if not roce:
        return
    try:
        devices = HostRdma().devices()
        with HostLinks() as links:
            holders = links.addresses()
            underlay = {child.id.remote: links.underlay_mtu(child.id.remote) for child in roce}
    except TunsecError as error:
        yield problem(HOST, "rdma", str(error), "tunsec needs sysfs and rtnetlink")
        return
    past, tight = bypassed(roce, devices, holders), roce_warnings(roce, underlay)
    for text in dict.fromkeys(past.values()):
        yield problem(HOST, "rdma", text.removesuffix(f"; {REMEDY}"), REMEDY)
    for text in tight:
        yield warning(HOST, "rdma", text, "docs/operations.md, RoCE")
    if not past and not tight:
        names = ", ".join(device.name for device in devices if device.roce)
        yield ok(HOST, "rdma", names or "no RoCE device is there yet")


def check_offload(part: Part) -> Iterator[Finding]:
    """What the devices to the peers say of ESP, beside what the policy wishes of them. Whether they
    take an SA is tried by the daemon, which alone has keys to spare; see its status."""
    wishes: dict[Underlay, set[OffloadWish]] = {}
    try:
        with HostLinks() as links:
            for child in part.desired.children:
                device = links.underlay(child.id.local, child.id.remote)
                if device is not None:
                    wishes.setdefault(device, set()).add(child.offload)
    except TunsecError as error:
        yield problem(HOST, "offload", str(error), "tunsec needs rtnetlink")
        return
    for device, wished in sorted(wishes.items(), key=lambda one: one[0].name):
        must = sorted(wished & {OffloadWish.CRYPTO, OffloadWish.PACKET})
        if device.esp is EspFeature.ON:
            yield ok(HOST, "offload", f"{device.name} offloads ESP")
        elif not must:
            yield ok(HOST, "offload", f"{device.name} leaves ESP to the CPU")
        else:
            found = f"{device.name}: esp-hw-offload is {device.esp}, wished: {', '.join(must)}"
            off = device.esp is EspFeature.OFF
            switch = f"ethtool -K {device.name} esp-hw-offload on"
            yield problem(HOST, "offload", found, switch if off else "'offload: auto' or 'none'")


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def own_files(policy: Path, state: Path) -> tuple[Path, ...]:
    """What was written on this host, by its own clock."""
    files = [policy]
    with suppress(OSError):
        files += sorted(state.iterdir())
    return tuple(files)
