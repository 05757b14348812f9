"""The `lab` command: exec, shell, build, doctor, clean."""

import argparse
import fcntl
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tunsec_lab.boot import EXIT_LAB_FAILED, GuestRun, Mount, run_guest
from tunsec_lab.cache import Cache, Progress, cache_root, remove_tree, size_bytes
from tunsec_lab.doctor import diagnose
from tunsec_lab.errors import LabError
from tunsec_lab.image import cached_image, get_image, image_key
from tunsec_lab.kernel import Clock, KernelRecipe
from tunsec_lab.site import COMPILE, GUEST_SITE, cached_site, get_site, requirements, site_key

CHECKOUT: Final = Path(__file__).resolve().parents[2]
GUEST_CHECKOUT: Final = "/tunsec"
SPAN: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h)?")
SPAN_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, None: 1.0}
ROOM: Final = "make room, or name other folders: XDG_CACHE_HOME for the cache, TMPDIR for a run"
MEMORY: Final = re.compile(r"[1-9][0-9]*[MG]")


def parse_span(text: str) -> float:
    """Seconds of a span such as 120s, 2m or 1.5h."""
    found = SPAN.fullmatch(text)
    if not found or float(found[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time span (try 120s, 2m or 1h)")
    return float(found[1]) * SPAN_SECONDS[found[2]]


def parse_memory(text: str) -> str:
    if not MEMORY.fullmatch(text.upper()):
        raise argparse.ArgumentTypeError(f"{text!r} is not an amount of memory (try 2G or 768M)")
    return text.upper()


def parse_cpus(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 8:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of CPUs from 1 to 8")
    return int(text)


def parse_clock(text: str) -> Clock:
    try:
        return Clock(text)
    except ValueError:
        known = ", ".join(Clock)
        raise argparse.ArgumentTypeError(f"{text!r} is no clock (there are {known})") from None


def parse_mount(text: str) -> Mount:
    parts = text.split(":")
    if len(parts) not in (2, 3) or (len(parts) == 3 and parts[2] not in ("ro", "rw")):
        raise argparse.ArgumentTypeError(f"{text!r} is not HOSTDIR:GUESTDIR or HOSTDIR:GUESTDIR:ro")
    host = Path(parts[0])
    if not host.is_dir():
        raise argparse.ArgumentTypeError(f"{parts[0]!r} is not a folder of this host")
    try:
        return Mount(host.resolve(), parts[1], "ro" if parts[2:] == ["ro"] else "rw")
    except LabError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def parse_setting(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE or NAME")
    return name, value if equals else os.environ.get(name, "")


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="lab", description="Runs commands in a kernel that has all that tunsec needs."
    )
    actions = top.add_subparsers(dest="action", required=True, metavar="ACTION")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        action = actions.add_parser(name, help=text, description=text)
        action.add_argument("--quiet", action="store_true", help="no progress lines")
        action.add_argument(
            "--kernel-tree",
            type=Path,
            default=os.environ.get("TUNSEC_LAB_KERNEL_TREE") or None,
            metavar="DIR",
            help="build the kernel from this tree (or TUNSEC_LAB_KERNEL_TREE), not from Debian's",
        )
        return action

    running = add("exec", "boot, run COMMAND as root, pass on its output and exit status")
    shell = add("shell", "boot and open a shell on this terminal")
    running.add_argument("--timeout", type=parse_span, metavar="SPAN", help="as 120s or 5m")
    for action in (running, shell):
        action.add_argument("--cpus", type=parse_cpus, default=2, metavar="N")
        action.add_argument("--memory", type=parse_memory, default="2G", metavar="SIZE")
        action.add_argument(
            "--clock",
            type=parse_clock,
            choices=list(Clock),
            default=Clock.REAL,
            help="virtual: waiting and computing cost no time; virtual:cpu: waiting costs none",
        )
        action.add_argument(
            "--mount",
            type=parse_mount,
            action="append",
            default=[],
            metavar="HOSTDIR:GUESTDIR[:ro]",
            help="a folder of the host in the guest; may be given again",
        )
        action.add_argument(
            "--env",
            type=parse_setting,
            action="append",
            default=[],
            metavar="NAME[=VALUE]",
            help="a variable for the command; without a value the one it has here",
        )
    running.add_argument("command", nargs="*", metavar="-- COMMAND")

    build = add("build", "make kernel, image and Python packages ready in the cache")
    build.add_argument(
        "--clock", choices=("real", "virtual", "all"), default="real", help="which kernel"
    )
    add("doctor", "tell what is missing and how to get it")
    clean = add("clean", "remove what this checkout does not use from the cache")
    clean.add_argument("--all", action="store_true", help="remove the whole cache")
    return top


@dataclass(frozen=True)
class Ready:
    """What a boot needs, in the cache."""

    kernel: Path
    image: Path
    site: Path


def prepare(cache: Cache, recipe: KernelRecipe) -> Ready:
    """Builds what is not in the cache yet."""
    image = get_image(cache)
    kernel = recipe.get(cache).binary

    def compile_in_guest(packages: Path) -> int:
        mounts = (Mount(packages, GUEST_SITE, "rw"),)
        return run_guest(GuestRun(kernel, image, COMPILE, mounts=mounts, workdir="/"))

    wanted = requirements(CHECKOUT / "pyproject.toml")
    return Ready(kernel, image, get_site(cache, wanted, compile_in_guest=compile_in_guest))


@contextmanager
def in_use(cache: Cache, *, alone: bool = False) -> Iterator[None]:
    """Runs share the cache; `lab clean` needs it alone."""
    cache.root.mkdir(parents=True, exist_ok=True)
    with (cache.root / "in-use.lock").open("a") as file:
        try:
            fcntl.flock(file, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            if alone:
                raise LabError(
                    f"the cache {cache.root} is in use by a running lab",
                    remedy="wait for it to end, or stop it",
                ) from None
            cache.progress.say("waiting for `lab clean` to end")
            fcntl.flock(file, fcntl.LOCK_SH)
        yield


def run(cache: Cache, options: argparse.Namespace, command: Sequence[str]) -> int:
    clock: Clock = options.clock
    terminal = options.action == "shell"
    if terminal and not os.isatty(0):
        raise LabError("lab shell needs a terminal", remedy="use `lab exec -- COMMAND`")
    with in_use(cache):
        ready = prepare(cache, KernelRecipe(clock, options.kernel_tree))
        standing = (
            Mount(CHECKOUT, GUEST_CHECKOUT, "view"),
            Mount(ready.site, GUEST_SITE, "ro"),
        )
        environment = dict(options.env)
        if terminal:
            environment = {"TERM": os.environ.get("TERM", "linux")} | environment
        guest = GuestRun(
            kernel=ready.kernel,
            root=ready.image,
            command=tuple(command),
            mounts=(*standing, *options.mount),
            cpus=options.cpus,
            memory=options.memory,
            timeout_seconds=None if terminal else options.timeout,
            clock=clock,
            terminal=terminal,
            environment=environment,
        )
        return run_guest(guest)


def build(cache: Cache, options: argparse.Namespace) -> int:
    clocks = {
        "real": (Clock.REAL,),
        "virtual": (Clock.REAL, Clock.VIRTUAL),
        "all": (Clock.REAL, Clock.VIRTUAL),
    }[options.clock]
    with in_use(cache):
        prepare(cache, KernelRecipe(Clock.REAL, options.kernel_tree))
        for clock in clocks:
            kernel = KernelRecipe(clock, options.kernel_tree).get(cache)
            cache.progress.say(f"ready: {kernel.folder.name} from {kernel.source}")
    return 0


def clean(cache: Cache, options: argparse.Namespace) -> int:
    with in_use(cache, alone=True):
        before = size_bytes(cache.root)
        wanted = requirements(CHECKOUT / "pyproject.toml")
        kept = {
            cache.place("image", image_key()),
            cache.place("site", site_key(wanted)),
            *(
                cache.place("kernel", KernelRecipe(clock, options.kernel_tree).key())
                for clock in Clock
            ),
        }
        for folder in ("kernel", "image", "site"):
            for thing in sorted((cache.root / folder).glob("*")):
                if options.all or thing not in kept:
                    cache.progress.say(f"removing {folder} {thing.name}")
                    remove_tree(thing)
        for folder in ("work", "downloads", "apt"):
            remove_tree(cache.root / folder)
        freed = (before - size_bytes(cache.root)) / 2**20
        cache.progress.say(f"freed {freed:.0f} MiB in {cache.root}")
    return 0


def doctor(cache: Cache, options: argparse.Namespace) -> int:
    wanted = requirements(CHECKOUT / "pyproject.toml")
    real = KernelRecipe(Clock.REAL, options.kernel_tree).cached(cache)
    virtual = KernelRecipe(Clock.VIRTUAL, options.kernel_tree).cached(cache)
    return diagnose(
        cache,
        kernels={"kernel, real time": real, "kernel, virtual time": virtual},
        image=cached_image(cache),
        site=cached_site(cache, wanted),
    )


def split_command(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """What is left and right of the first `--`."""
    if "--" not in arguments:
        return list(arguments), []
    cut = list(arguments).index("--")
    return list(arguments[:cut]), list(arguments[cut + 1 :])


def stop_building(*_: object) -> None:
    """SIGTERM ends a build as Ctrl-C does; a running guest has handlers of its own."""
    raise KeyboardInterrupt("SIGTERM")


def main(arguments: Sequence[str] | None = None) -> int:
    ours, command = split_command(sys.argv[1:] if arguments is None else arguments)
    top = parser()
    options = top.parse_args(ours)
    cache = Cache(cache_root(), Progress(quiet=options.quiet))
    signal.signal(signal.SIGTERM, stop_building)
    try:
        match options.action:
            case "exec":
                if options.command or not command:
                    top.error("exec needs -- and a COMMAND, as in: lab exec -- uname -a")
                return run(cache, options, command)
            case "shell":
                return run(cache, options, ("/bin/bash", "-l"))
            case "build":
                return build(cache, options)
            case "clean":
                return clean(cache, options)
            case _:
                return doctor(cache, options)
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return EXIT_LAB_FAILED
    except OSError as error:
        print(f"lab: {error}\n  remedy: {ROOM}", file=sys.stderr)
        return EXIT_LAB_FAILED
    except KeyboardInterrupt as stopped:
        name = "SIGTERM" if stopped.args else "SIGINT"
        print(f"lab: stopped by {name}; the next build goes on from here", file=sys.stderr)
        return 128 + signal.Signals[name]
