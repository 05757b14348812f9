"""`lab doctor`: what this host has and lacks for building and running the lab."""

import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tunsec_lab import image, kernel
from tunsec_lab.apt import mirror, present
from tunsec_lab.cache import Cache, size_bytes
from tunsec_lab.errors import LabError
from tunsec_lab.site import has_pip

BUILD_BYTES: Final = 6 << 30  # source tree, objects and image while they are being made
RUN_BYTES: Final = 2 << 30  # default memory of a guest
SHARED_MEMORY: Final = Path("/dev/shm")
BUILD_LATER: Final = "built when first needed; `lab build` builds it now"


@dataclass(frozen=True)
class Finding:
    subject: str
    good: bool
    found: str
    remedy: str = ""
    needed: bool = True
    """False: the lab works without it."""

    def line(self) -> str:
        word = "ok" if self.good else "MISSING" if self.needed else "not yet"
        text = f"{word:8} {self.subject:24} {self.found}"
        return text if self.good or not self.remedy else f"{text}\n{'':8}   -> {self.remedy}"


def diagnose(
    cache: Cache,
    *,
    kernels: Mapping[str, kernel.Kernel | None],
    image: Path | None,
    site: Path | None,
) -> int:
    """Prints every finding; 1 if something needed is missing."""
    findings = [check_machine(), check_memory(), check_boot(kernels), check_pip()]
    building = [check_packages(), check_mirror(), check_room(cache)]
    built = [
        *(check_kernel(name, built) for name, built in kernels.items()),
        check_built("image", image),
        check_built("python packages", site),
    ]
    # What is needed for building only matters while something is still to be built.
    if all(finding.good for finding in built):
        building = [soften(finding) for finding in building]
    for finding in (*findings, *building, *built):
        print(finding.line())
    print(f"{'':8} {'cache':24} {cache.root}")
    return int(any(not f.good and f.needed for f in (*findings, *building, *built)))


def soften(finding: Finding) -> Finding:
    return Finding(finding.subject, finding.good, finding.found, finding.remedy, needed=False)


def check_machine() -> Finding:
    machine, system = platform.machine(), platform.system()
    good = (machine, system) == ("x86_64", "Linux")
    return Finding(
        "machine",
        good,
        f"{system} {machine}, {len(os.sched_getaffinity(0))} CPUs",
        "User Mode Linux runs on x86_64 Linux; elsewhere run lab tests on a capable kernel as root",
    )


def check_memory() -> Finding:
    try:
        room = os.statvfs(SHARED_MEMORY)
        free = room.f_bavail * room.f_frsize
    except OSError as error:
        return Finding("guest memory", good=False, found=str(error), remedy="mount a tmpfs there")
    return Finding(
        "guest memory",
        free >= RUN_BYTES,
        f"{free / 2**30:.1f} GiB free in {SHARED_MEMORY}",
        "a guest then keeps its memory in a file of the temporary folder, which is slower; "
        f"make {SHARED_MEMORY} larger (mount -o remount,size=4G {SHARED_MEMORY})",
        needed=False,
    )


def check_boot(kernels: Mapping[str, kernel.Kernel | None]) -> Finding:
    """Asks a built kernel for its version: shows that this host lets it run at all."""
    first = next(filter(None, kernels.values()), None)
    if first is None:
        return Finding("starting a kernel", True, "not tried: none is built")
    command = [str(first.binary), "--version"]
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding("starting a kernel", good=False, found=str(error), remedy="lab clean --all")
    version = done.stdout.strip()
    return Finding("starting a kernel", done.returncode == 0, version, "lab clean --all")


def check_pip() -> Finding:
    good = any(map(has_pip, ("python3", shutil.which("python3") or "", "/usr/bin/python3")))
    remedy = "apt-get install python3-pip (root: done for you)"
    found = "found" if good else "none"
    return Finding("pip", good, found, remedy, needed=os.geteuid() != 0)


def check_packages() -> Finding:
    wanted = kernel.BUILD_PACKAGES | image.BUILD_PACKAGES
    lacking = sorted({package for program, package in wanted.items() if not present(program)})
    return Finding(
        "build packages",
        not lacking,
        "all there" if not lacking else " ".join(lacking),
        f"apt-get install --yes --no-install-recommends {' '.join(lacking)} (root: done for you)",
        needed=os.geteuid() != 0,
    )


def check_mirror() -> Finding:
    return attempt("debian mirror", mirror)


def attempt(subject: str, ask: Callable[[], str]) -> Finding:
    try:
        return Finding(subject, True, ask())
    except LabError as error:
        return Finding(subject, False, error.args[0], error.remedy)


def check_room(cache: Cache) -> Finding:
    folder = next(path for path in (cache.root, *cache.root.parents) if path.exists())
    free = shutil.disk_usage(folder).free
    return Finding(
        "room for building",
        free >= BUILD_BYTES,
        f"{free / 2**30:.1f} GiB free",
        f"building takes {BUILD_BYTES >> 30} GiB for a while; "
        "free some, or set XDG_CACHE_HOME to a larger disk",
    )


def check_kernel(name: str, built: kernel.Kernel | None) -> Finding:
    if built is None:
        return Finding(name, False, "not built", BUILD_LATER, needed=False)
    text = f"{built.source}, {size_bytes(built.folder) / 2**20:.0f} MiB"
    return Finding(name, True, text)


def check_built(name: str, folder: Path | None) -> Finding:
    if folder is None:
        return Finding(name, False, "not built", BUILD_LATER, needed=False)
    return Finding(name, True, f"{size_bytes(folder) / 2**20:.0f} MiB")
