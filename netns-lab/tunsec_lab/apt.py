"""Debian's archive, reached with an apt configuration of the lab's own.

The host's package sources stay as they are. The mirror is the one the host itself uses, so no
address of a server is written here.
"""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cmp_to_key
from pathlib import Path
from typing import Final

from tunsec_lab.cache import Progress
from tunsec_lab.errors import LabError

KEYRING: Final = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
DOWNLOAD_ATTEMPTS: Final = 6
PAUSE_AFTER_FAILURE_SECONDS: Final = 5.0
SOURCE_PACKAGE: Final = re.compile(r"^linux-source-(7|[89]|[1-9][0-9]+)\.[0-9]+$")


def mirror() -> str:
    """Address of the Debian mirror this host uses, or the one named in TUNSEC_LAB_MIRROR."""
    if named := os.environ.get("TUNSEC_LAB_MIRROR"):
        return named
    try:
        listed = subprocess.run(
            ["apt-get", "indextargets", "--format", "$(LABEL)\t$(REPO_URI)"],
            check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
    except (OSError, subprocess.CalledProcessError) as error:
        raise LabError(
            f"cannot ask apt-get for the Debian mirror: {error}",
            remedy="set TUNSEC_LAB_MIRROR to the address of a Debian mirror (http://.../debian/)",
        ) from error
    for line in listed.splitlines():
        label, _, address = line.partition("\t")
        if label == "Debian" and address:
            return address
    raise LabError(
        "apt has no Debian mirror in its package lists",
        remedy="run `apt-get update`, or set TUNSEC_LAB_MIRROR to the address of a Debian mirror",
    )


def need_programs(packages: Mapping[str, str], progress: Progress) -> None:
    """Installs the packages of programs that are not there: program -> package.

    A path with a slash stands for a file. Without root the exact command is named instead.
    """
    lacking = sorted({pkg for program, pkg in packages.items() if not present(program)})
    if not lacking:
        return
    command = ["apt-get", "install", "--yes", "--no-install-recommends", *lacking]
    if os.geteuid() != 0:
        raise LabError(
            f"packages missing on this host: {' '.join(lacking)}",
            remedy=f"sudo {' '.join(command)}",
        )
    progress.say(f"installing on this host: {' '.join(lacking)}")
    quiet = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for attempt in (["apt-get", "update"], command):
        result = subprocess.run(attempt, env=quiet, capture_output=True, text=True, check=False)
        if result.returncode and attempt is command:
            raise LabError(
                f"{' '.join(command)} failed:\n{result.stdout[-2000:]}{result.stderr[-2000:]}",
                remedy="install these packages by hand and run the lab again",
            )


def present(program: str) -> bool:
    return Path(program).exists() if "/" in program else shutil.which(program) is not None


@dataclass(frozen=True)
class Apt:
    """An apt of its own in `folder`, that knows the given suites of the host's mirror."""

    folder: Path
    suites: tuple[str, ...]
    progress: Progress

    def run(self, program: str, *arguments: str, cwd: Path | None = None) -> str:
        options = {
            "Dir::Etc::sourcelist": str(self.folder / "sources.list"),
            "Dir::Etc::sourceparts": "-",
            "Dir::Etc::preferences": "-",
            "Dir::Etc::preferencesparts": "-",
            "Dir::State::lists": str(self.folder / "lists"),
            "Dir::Cache": str(self.folder / "cache"),
            "APT::Sandbox::User": "root",
            "Acquire::Retries": "3",
        }
        flags = [part for name, value in options.items() for part in ("-o", f"{name}={value}")]
        result = subprocess.run(
            [program, *flags, *arguments],
            check=False, capture_output=True, text=True, cwd=cwd, env=os.environ | {"LC_ALL": "C"},
        )  # fmt: skip
        if result.returncode:
            raise LabError(f"{program} {' '.join(arguments)} failed:\n{result.stderr[-2000:]}")
        return result.stdout

    def update(self) -> None:
        for folder in ("lists/partial", "cache/archives/partial"):
            (self.folder / folder).mkdir(parents=True, exist_ok=True)
        address = mirror()
        (self.folder / "sources.list").write_text(
            "".join(f"deb [signed-by={KEYRING}] {address} {suite} main\n" for suite in self.suites)
        )
        self.run("apt-get", "update")

    def newest_kernel_source(self) -> tuple[str, str]:
        """Package and version of the newest linux-source-7.x (or later) the mirror has."""
        names = self.run("apt-cache", "pkgnames", "linux-source-").split()
        found = [
            (name, version)
            for name in sorted(filter(SOURCE_PACKAGE.match, names))
            for version in self.versions(name)
        ]
        if not found:
            raise LabError(
                f"the mirror has no linux-source-7.x in {' or '.join(self.suites)}",
                remedy="point to a kernel tree with --kernel-tree DIR, or name another mirror in "
                "TUNSEC_LAB_MIRROR",
            )
        by_version = cmp_to_key(compare_versions)
        return max(found, key=lambda each: by_version(each[1]))

    def versions(self, package: str) -> list[str]:
        rows = self.run("apt-cache", "madison", package).splitlines()
        return [row.split("|")[1].strip() for row in rows if row.count("|") >= 2]

    def download(self, package: str, version: str, folder: Path) -> Path:
        """The .deb of a package. apt verifies it, and goes on where an attempt broke off."""
        folder.mkdir(parents=True, exist_ok=True)
        for attempt in range(1, DOWNLOAD_ATTEMPTS + 1):
            try:
                self.run("apt-get", "download", f"{package}={version}", cwd=folder)
            except LabError as error:
                if attempt == DOWNLOAD_ATTEMPTS:
                    raise
                lines = str(error).splitlines()
                self.progress.say(f"download of {package} broke off, trying again: {lines[-1]}")
                time.sleep(PAUSE_AFTER_FAILURE_SECONDS)
            else:
                return newest_file(folder, f"{package}_*.deb")
        raise AssertionError("the last attempt either returned or raised")


def newest_file(folder: Path, pattern: str) -> Path:
    files = sorted(folder.glob(pattern), key=lambda path: path.stat().st_mtime)
    if not files:
        raise LabError(f"no {pattern} in {folder} after its download")
    return files[-1]


def compare_versions(left: str, right: str) -> int:
    def holds(relation: str) -> bool:
        command: Sequence[str] = ("dpkg", "--compare-versions", left, relation, right)
        return subprocess.run(command, check=False).returncode == 0

    return -1 if holds("lt") else 1 if holds("gt") else 0
