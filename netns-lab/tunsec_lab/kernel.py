"""The lab kernel: User Mode Linux, built from Debian's newest kernel source or from a user's tree.

The cache key is made of what this repository says (options, recipe), not of what a mirror has
today: once a kernel for this option list is in the cache, no network is asked.
"""

import json
import os
import re
import subprocess
from collections import deque
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from tunsec_lab.apt import KEYRING, Apt, need_programs
from tunsec_lab.cache import Cache, Stages, digest, remove_tree
from tunsec_lab.children import child, run_to_end
from tunsec_lab.errors import LabError

FOLDER: Final = Path(__file__).resolve().parent.parent / "kernel"
BASE_OPTIONS: Final = FOLDER / "kernel.config"
VIRTUAL_OPTIONS: Final = FOLDER / "virtual-time.config"
SUITES: Final = ("sid", "trixie-backports")
RECIPE: Final = "1"  # raise when the steps below change what comes out of the same options
# A full build compiles about this many files; only the progress lines depend on it.
EXPECTED_OBJECTS: Final = 1560
SAY_EVERY_OBJECTS: Final = 200

BUILD_PACKAGES: Final = {
    "make": "make",
    "gcc": "gcc",
    "flex": "flex",
    "bison": "bison",
    "bc": "bc",
    "xz": "xz-utils",
    "dpkg-deb": "dpkg",
    "/usr/include/gelf.h": "libelf-dev",
    "/usr/include/stdio.h": "libc6-dev",
    str(KEYRING): "debian-archive-keyring",
}


class Clock(StrEnum):
    """`virtual` costs nothing while waiting nor computing, `virtual:cpu` only while waiting."""

    REAL = "real"
    VIRTUAL = "virtual"
    VIRTUAL_CPU = "virtual:cpu"

    @property
    def is_virtual(self) -> bool:
        return self is not Clock.REAL


@dataclass(frozen=True)
class Option:
    """One line of the option list: any of the alternatives satisfies it."""

    alternatives: tuple[str, ...]

    def __str__(self) -> str:
        return " | ".join(self.alternatives)

    def met_by(self, present: frozenset[str]) -> bool:
        return not present.isdisjoint(self.alternatives)


@dataclass(frozen=True)
class OptionChange:
    """A difference file: lines to take out of a list and lines to add."""

    removed: frozenset[Option]
    added: tuple[Option, ...]


OPTION_LINE: Final = re.compile(r"CONFIG_\w+=\S+")


def parse_options(text: str, *, source: str) -> tuple[Option, ...]:
    change = parse_change(text, source=source)
    if change.removed:
        raise LabError(
            f"{source}: a base option list cannot take {min(map(str, change.removed))} out",
            remedy="delete the line, or move it to a difference file",
        )
    return change.added


def parse_change(text: str, *, source: str) -> OptionChange:
    removed: set[Option] = set()
    added: list[Option] = []
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.partition("#")[0].strip()
        if not line:
            continue
        option = Option(tuple(part.strip() for part in line.removeprefix("-").split("|")))
        if not all(map(OPTION_LINE.fullmatch, option.alternatives)):
            raise LabError(
                f"{source}:{number}: {raw.strip()!r} is not an option line",
                remedy="write CONFIG_NAME=value, alternatives separated by |",
            )
        if line.startswith("-"):
            removed.add(option)
        else:
            added.append(option)
    return OptionChange(frozenset(removed), tuple(added))


def apply_change(
    base: tuple[Option, ...], change: OptionChange, *, source: str
) -> tuple[Option, ...]:
    if unknown := change.removed - set(base):
        raise LabError(
            f"{source} takes out {min(map(str, unknown))}, which the base list does not have",
            remedy="delete the line",
        )
    kept = tuple(option for option in base if option not in change.removed)
    return kept + change.added


def wanted_options(clock: Clock) -> tuple[Option, ...]:
    base = parse_options(BASE_OPTIONS.read_text(), source=BASE_OPTIONS.name)
    if not clock.is_virtual:
        return base
    name = VIRTUAL_OPTIONS.name
    change = parse_change(VIRTUAL_OPTIONS.read_text(), source=name)
    return apply_change(base, change, source=name)


def missing_options(wanted: tuple[Option, ...], dot_config: str) -> list[Option]:
    """What was asked for and is not in the .config the build ended up with."""
    present = frozenset(dot_config.split("\n"))
    return [option for option in wanted if not option.met_by(present)]


def fragment(options: tuple[Option, ...]) -> str:
    """For KCONFIG_ALLCONFIG: all alternatives; make skips the names its version does not know."""
    return "".join(f"{line}\n" for option in options for line in option.alternatives)


@dataclass(frozen=True)
class Kernel:
    """A kernel in the cache."""

    binary: Path
    source: str
    folder: Path


@dataclass(frozen=True)
class KernelRecipe:
    clock: Clock
    tree: Path | None = None
    """A kernel tree of the user's own; otherwise Debian's newest source package."""

    @property
    def variant(self) -> str:
        return "virtual-time" if self.clock.is_virtual else "real-time"

    def key(self) -> str:
        origin = tree_fingerprint(self.tree) if self.tree else "debian"
        return self.variant + "-" + digest(RECIPE, origin, *map(str, wanted_options(self.clock)))

    def cached(self, cache: Cache) -> Kernel | None:
        folder = cache.place("kernel", self.key())
        if not folder.is_dir():
            return None
        made_from = json.loads((folder / "made-from.json").read_text())
        return Kernel(folder / "linux", str(made_from["source"]), folder)

    def get(self, cache: Cache) -> Kernel:
        """From the cache, or built now."""
        return self.cached(cache) or self._build(cache)

    def _build(self, cache: Cache) -> Kernel:
        key = self.key()
        with cache.building("kernel", key) as work:
            if found := self.cached(cache):  # built while this run waited for the lock
                return found
            cache.progress.say(f"kernel {key}: not in the cache, building (about 8 minutes)")
            need_programs(BUILD_PACKAGES, cache.progress)
            if self.tree:
                tree, source = self.tree, tree_fingerprint(self.tree)
            else:
                tree, source = debian_source(cache, work)
            self._compile(cache, work, tree)
            self._publish(cache, work, source)
        built = self.cached(cache)
        if built is None:
            raise LabError(f"kernel {key} vanished from the cache right after its build")
        return built

    def _compile(self, cache: Cache, work: Path, tree: Path) -> None:
        output = work / "build"
        output.mkdir(exist_ok=True)
        options = wanted_options(self.clock)
        wanted = work / "wanted.config"
        wanted.write_text(fragment(options))
        log = work / "build.log"
        make = ["make", "-C", str(tree), f"O={output}", "ARCH=um"]
        run_logged([*make, f"KCONFIG_ALLCONFIG={wanted}", "allnoconfig"], log)
        check_options(options, output / ".config", when="before the build")
        cores = len(os.sched_getaffinity(0))
        cache.progress.say(f"kernel: compiling on {cores} cores, log in {log}")
        compile_kernel(cache, [*make, f"-j{cores}", "linux"], log)
        check_options(options, output / ".config", when="after the build")

    def _publish(self, cache: Cache, work: Path, source: str) -> None:
        ready = work / "ready"
        remove_tree(ready)
        ready.mkdir()
        output = work / "build"
        subprocess.run(
            ["strip", "--strip-debug", "-o", str(ready / "linux"), str(output / "linux")],
            check=True,
        )
        (ready / "config").write_bytes((output / ".config").read_bytes())
        made_from = {"source": source, "variant": self.variant, "recipe": RECIPE}
        (ready / "made-from.json").write_text(json.dumps(made_from, indent=2) + "\n")
        cache.publish(ready, "kernel", self.key())
        remove_tree(work)
        cache.progress.say(f"kernel {self.key()}: done, made from {source}")


def check_options(options: tuple[Option, ...], dot_config: Path, *, when: str) -> None:
    if missing := missing_options(options, dot_config.read_text()):
        names = "\n".join(f"  {option}" for option in missing)
        raise LabError(
            f"kernel options missing {when} (looked up in {dot_config}):\n{names}",
            remedy="see what each depends on (make ARCH=um menuconfig, then / NAME) and add that "
            f"to {BASE_OPTIONS}; if it was renamed write OLD | NEW",
        )


def debian_source(cache: Cache, work: Path) -> tuple[Path, str]:
    """Unpacked source and its name. An archive already downloaded is used again, so that both
    kernels are of one version."""
    stages = Stages(work)
    named = work / "source-name"
    tree = work / "source"
    if stages.done("unpacked"):
        return tree, named.read_text()
    with cache.locked("kernel-source"):
        archives = sorted(cache.downloads.glob("linux-source-*.deb"))
        archive = archives[-1] if archives else download_source(cache)
    cache.progress.say(f"kernel: unpacking {archive.name}")
    remove_tree(tree)
    remove_tree(work / "package")
    subprocess.run(["dpkg-deb", "-x", str(archive), str(work / "package")], check=True)
    tarball = next((work / "package/usr/src").glob("linux-source-*.tar.xz"))
    tree.mkdir()
    subprocess.run(
        ["tar", "-C", str(tree), "--strip-components=1", "-xf", str(tarball)], check=True
    )
    remove_tree(work / "package")
    named.write_text(archive.name.removesuffix(".deb"))
    stages.mark("unpacked")
    return tree, named.read_text()


def download_source(cache: Cache) -> Path:
    apt = Apt(cache.root / "apt", SUITES, cache.progress)
    cache.progress.say(f"kernel: asking the mirror for the newest source in {', '.join(SUITES)}")
    apt.update()
    package, version = apt.newest_kernel_source()
    cache.progress.say(f"kernel: downloading {package} {version} (about 165 MB)")
    arriving = cache.downloads / "arriving"
    deb = apt.download(package, version, arriving)
    return deb.rename(cache.downloads / deb.name)


def tree_fingerprint(tree: Path) -> str:
    """Names the state of a user's kernel tree, so that a change of it is another kernel."""
    makefile = tree / "Makefile"
    if not (tree / "arch/um").is_dir() or not makefile.is_file():
        raise LabError(
            f"{tree} is not a kernel tree (no arch/um)",
            remedy="give the top folder of an unpacked kernel source to --kernel-tree",
        )
    described = git(tree, "describe", "--always", "--dirty", "--abbrev=40")
    changes = git(tree, "diff", "HEAD") if described else ""
    state = described or f"{makefile.stat().st_mtime_ns}"
    return f"tree {tree.resolve()} {state} {digest(makefile.read_text(), changes)}"


def git(tree: Path, *arguments: str) -> str:
    if not (tree / ".git").exists():
        return ""
    done = subprocess.run(
        ["git", "-C", str(tree), *arguments], check=False, capture_output=True, text=True
    )
    return done.stdout.strip()


def run_logged(command: list[str], log: Path) -> None:
    with log.open("a") as file:
        status = run_to_end(command, output=file)
    if status:
        raise failed_build(command, log, log.read_text(errors="replace").splitlines())


def compile_kernel(cache: Cache, command: list[str], log: Path) -> None:
    """Runs make with a progress line every so many objects."""
    objects = 0
    tail: deque[str] = deque(maxlen=30)
    with log.open("a") as file, child(command, stdout=subprocess.PIPE) as make:
        assert make.stdout is not None
        for line in make.stdout:
            file.write(line)
            tail.append(line.rstrip())
            if line.startswith(("  CC ", "  AS ")):
                objects += 1
                if objects % SAY_EVERY_OBJECTS == 0:
                    cache.progress.say(f"kernel: {objects} of about {EXPECTED_OBJECTS} files")
    if make.returncode:
        raise failed_build(command, log, list(tail))


def failed_build(command: list[str], log: Path, lines: list[str]) -> LabError:
    shown = "\n".join(f"  {line}" for line in lines[-15:])
    return LabError(
        f"{' '.join(command)} failed:\n{shown}",
        remedy=f"read {log}; the next run goes on where this one stopped",
    )
