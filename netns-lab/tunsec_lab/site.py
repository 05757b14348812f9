"""The Python packages of the guest: what pyproject.toml lists, as wheels for the guest's Python."""

import json
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tunsec_lab.apt import need_programs
from tunsec_lab.cache import Cache, digest, remove_tree
from tunsec_lab.errors import LabError
from tunsec_lab.image import PYTHON_VERSION

RECIPE: Final = "1"
GUEST_SITE: Final = "/opt/site"
DOWNLOAD_ATTEMPTS: Final = 3

# Run in the guest, whose Python is the one that has to read the result. Byte code is what makes
# a start fast; a package that ships a file of another Python's syntax is none of our business.
COMPILE: Final = ("python3", "-m", "compileall", "-q", "-j", "0", GUEST_SITE)


def requirements(pyproject: Path) -> tuple[str, ...]:
    """[project] dependencies and those of the `test` extra."""
    try:
        project = tomllib.loads(pyproject.read_text())["project"]
    except (OSError, KeyError, tomllib.TOMLDecodeError) as error:
        raise LabError(
            f"cannot read the dependency lists of {pyproject}: {error}",
            remedy="run the lab of a complete checkout",
        ) from error
    extras = project.get("optional-dependencies", {})
    return tuple(sorted({*project.get("dependencies", ()), *extras.get("test", ())}))


def site_key(wanted: tuple[str, ...]) -> str:
    return digest(RECIPE, PYTHON_VERSION, *wanted)


def cached_site(cache: Cache, wanted: tuple[str, ...]) -> Path | None:
    folder = cache.place("site", site_key(wanted))
    return folder / "packages" if folder.is_dir() else None


def get_site(
    cache: Cache, wanted: tuple[str, ...], *, compile_in_guest: Callable[[Path], int]
) -> Path:
    return cached_site(cache, wanted) or build_site(
        cache, wanted, compile_in_guest=compile_in_guest
    )


def build_site(
    cache: Cache, wanted: tuple[str, ...], *, compile_in_guest: Callable[[Path], int]
) -> Path:
    key = site_key(wanted)
    with cache.building("site", key) as work:
        if found := cached_site(cache, wanted):
            return found
        cache.progress.say(f"python packages {key}: {len(wanted)} and what they need")
        ready = work / "ready"
        packages = ready / "packages"
        remove_tree(ready)
        packages.mkdir(parents=True)
        install(cache, wanted, packages)
        cache.progress.say("python packages: compiling in the guest")
        # Its exit status also counts templates that were never meant to compile.
        compile_in_guest(packages)
        made_from = {"python": PYTHON_VERSION, "requirements": wanted, "recipe": RECIPE}
        (ready / "made-from.json").write_text(json.dumps(made_from, indent=2) + "\n")
        cache.publish(ready, "site", key)
        remove_tree(work)
        cache.progress.say(f"python packages {key}: done")
    return cache.place("site", key) / "packages"


def install(cache: Cache, wanted: tuple[str, ...], target: Path) -> None:
    command = [
        *pip(cache),
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-compile",
        "--only-binary=:all:",
        f"--python-version={PYTHON_VERSION}",
        f"--target={target}",
        *wanted,
    ]
    for attempt in range(1, DOWNLOAD_ATTEMPTS + 1):
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode == 0:
            return
        if attempt < DOWNLOAD_ATTEMPTS:
            cache.progress.say("python packages: pip failed, trying again")
            remove_tree(target)
            target.mkdir()
    raise LabError(
        f"pip failed:\n{done.stderr[-2000:]}",
        remedy="check that this host reaches its package index (pip config list)",
    )


def pip(cache: Cache) -> list[str]:
    """A pip that works: this Python's own or the system's."""
    for python in (sys.executable, "/usr/bin/python3"):
        if has_pip(python):
            return [python, "-m", "pip"]
    need_programs({"/usr/lib/python3/dist-packages/pip": "python3-pip"}, cache.progress)
    return ["/usr/bin/python3", "-m", "pip"]


def has_pip(python: str) -> bool:
    if not Path(python).exists():
        return False
    command = [python, "-c", "import pip"]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0
