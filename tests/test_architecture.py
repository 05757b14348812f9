"""The house keeps its laws: who imports whom, what nothing is called, what stands in no file.

Read from the sources, imports inside functions and under TYPE_CHECKING included.
"""

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

import pytest

TOP: Final = Path(__file__).resolve().parents[1]
HOUSE: Final = TOP / "tunsec"
LAB: Final = TOP / "netns-lab" / "tunsec_lab"

ROOMS: Final = {
    "model": set[str](),
    "wire": {"model"},
    "keying": {"model"},
    "policy": {"model"},
    "plan": {"model"},
    "ports": {"model"},
    "machines": {"model", "plan", "ports"},
    "adapters": {"model", "wire", "keying", "policy", "plan", "ports", "machines"},
    "daemon": {"model", "wire", "keying", "policy", "plan", "ports", "machines", "adapters"},
    "cli": {"model", "wire", "keying", "policy"},
}
"""Room -> the other rooms it may import. `cli` speaks to the daemon over its socket alone."""

EXCEPTIONS: Final = {
    ("tunsec/cli/ca.py", "adapters"): "writes key files with the modes that the daemon checks",
}

DOCTOR: Final = "tunsec/cli/doctor/"
DOCTOR_ALSO: Final = {"adapters", "plan", "ports"}
"""`tunsec doctor` finds out by trying, also where no daemon runs. Its modules but the first are
imported when it is carried out, and by nobody else."""

PURE_ROOMS: Final = ("model", "policy", "machines", "plan", "wire", "keying")
IMPURE: Final = {
    *("asyncio", "concurrent", "contextvars", "ctypes", "fcntl", "glob", "http", "logging"),
    *("mmap", "multiprocessing", "os", "pathlib", "queue", "random", "sched", "secrets", "select"),
    *("selectors", "shutil", "signal", "socket", "subprocess", "tempfile", "threading", "time"),
    *("urllib", "uuid"),
}
"""I/O, clocks, randomness and waiting: what a decision may not depend on."""
IMPURE_CALLS: Final = {"open", "print", "input", "now", "utcnow", "today", "breakpoint"}

THIRD_PARTY: Final = {
    "model": set[str](),
    "wire": set[str](),
    "keying": {"cryptography"},
    "policy": {"pydantic", "pydantic_core", "yaml"},
    "plan": set[str](),
    "ports": set[str](),
    "machines": set[str](),
    "adapters": {"asyncinotify", "cryptography", "tenacity", "vici"},
    "daemon": {"h11", "prometheus_client"},
    "cli": {"rich"},
}
"""Room -> packages from outside that it may import: each at one door."""

CLI_STARTS_WITH: Final = ("tunsec.cli", "tunsec.wire.control", "tunsec.model")
"""All that the command may import before it knows what it shall do: it answers at once."""

FORBIDDEN_WORDS: Final = {"manager", "helper", "handler", "util", "data", "info"}
FORBIDDEN_WORDS_ALLOWED: Final = {
    "crypto_info": "the kernel's struct tls_crypto_info (include/uapi/linux/tls.h)",
    "service_manager": "systemd's word for itself",
}


class Import(NamedTuple):
    """One imported module; `deferred`: inside a function, or for type checkers alone."""

    module: str
    line: int
    deferred: bool


def sources(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.rglob("*.py") if "__pycache__" not in path.parts)
    assert found, f"no sources in {folder}"
    return found


def room_files(room: str) -> list[Path]:
    file = HOUSE / f"{room}.py"
    return [file] if file.exists() else sources(HOUSE / room)


def named(path: Path) -> str:
    return str(path.relative_to(TOP))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def imports(path: Path) -> list[Import]:
    return list(_imports(path, tree(path), deferred=False))


def _imports(path: Path, node: ast.AST, *, deferred: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        later = (
            deferred
            or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            or (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test))
        )
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(alias.name, child.lineno, later)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"{named(path)}:{child.lineno}: a relative import"
            # `from tunsec import x` may mean a module of that name.
            for alias in child.names:
                yield Import(f"{child.module}.{alias.name}", child.lineno, later)
        else:
            yield from _imports(path, child, deferred=later)


def room_of(module: str) -> str | None:
    """Of a module of ours; the version in tunsec/__init__.py belongs to no room."""
    parts = module.split(".")
    return parts[1] if parts[0] == "tunsec" and len(parts) > 1 and parts[1] in ROOMS else None


# -- who imports whom ---------------------------------------------------------------------------


def test_every_room_is_known() -> None:
    found = {path.stem if path.is_file() else path.name for path in HOUSE.iterdir()}
    assert found - {"__init__", "__pycache__", "py"} == ROOMS.keys()


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_the_rooms_below_it(room: str) -> None:
    allowed = {room, *ROOMS[room]}
    wrong = [
        f"{named(path)}:{found.line}: {found.module}"
        for path in room_files(room)
        for found in imports(path)
        if (target := room_of(found.module)) is not None
        and target not in allowed
        and not (found.deferred and (named(path), target) in EXCEPTIONS)
        and not (named(path).startswith(DOCTOR) and target in DOCTOR_ALSO)
    ]
    assert wrong == []


def test_the_law_has_no_circles() -> None:
    below: set[str] = set()
    left = dict(ROOMS)
    while left:
        free = {room for room, allowed in left.items() if allowed <= below}
        assert free, f"these rooms may import each other: {sorted(left)}"
        below |= free
        left = {room: allowed for room, allowed in left.items() if room not in free}


def test_the_house_knows_nothing_of_its_tests_and_its_lab() -> None:
    outside = {"tests", "tunsec_lab", "scenarios", "pytest", "hypothesis"}
    wrong = [
        f"{named(path)}:{found.line}: {found.module}"
        for path in sources(HOUSE)
        for found in imports(path)
        if found.module.split(".")[0] in outside
    ]
    assert wrong == []


@pytest.mark.parametrize("room", ROOMS)
def test_packages_from_outside_enter_by_one_door(room: str) -> None:
    allowed = {"tunsec", *sys.stdlib_module_names, *THIRD_PARTY[room]}
    wrong = [
        f"{named(path)}:{found.line}: {found.module}"
        for path in room_files(room)
        for found in imports(path)
        if found.module.split(".")[0] not in allowed
    ]
    assert wrong == []


def test_the_command_imports_nothing_heavy_before_it_must() -> None:
    stdlib = sys.stdlib_module_names - {"asyncio", "logging"}
    wrong = [
        f"{named(path)}:{found.line}: {found.module}"
        for path in room_files("cli")
        for found in imports(path)
        if not found.deferred
        and not is_doctors_own(path)
        and found.module.split(".")[0] not in stdlib
        and not found.module.startswith(CLI_STARTS_WITH)
    ]
    assert wrong == []


def is_doctors_own(path: Path) -> bool:
    """Whether it is a module that only `tunsec doctor` imports, when it is carried out."""
    return named(path).startswith(DOCTOR) and path.name != "__init__.py"


def test_the_doctor_is_called_for_and_never_comes_along() -> None:
    wrong = [
        f"{named(path)}:{found.line}: {found.module}"
        for path in sources(HOUSE)
        for found in imports(path)
        if found.module.startswith("tunsec.cli.doctor.")
        and not is_doctors_own(path)
        and not (found.deferred and named(path) == f"{DOCTOR}__init__.py")
    ]
    assert wrong == []


def test_the_lab_builds_with_the_standard_library_alone() -> None:
    """It runs on the host before anything is installed; scenarios run in what it has built."""
    seen: set[str] = set()
    waiting = ["cli"]
    while waiting:
        module = waiting.pop()
        seen.add(module)
        for found in imports(LAB / f"{module}.py"):
            top, *rest = found.module.split(".")
            assert top == "tunsec_lab" or top in sys.stdlib_module_names, f"{module}: {found}"
            if top == "tunsec_lab" and rest[0] not in seen:
                waiting.append(rest[0])
    assert "boot" in seen
    assert not seen & {"host", "topology", "capture", "probe", "cluster"}


# -- the core is silent -------------------------------------------------------------------------


@pytest.mark.parametrize("room", PURE_ROOMS)
def test_pure_rooms_stay_pure(room: str) -> None:
    wrong = [
        f"{named(path)}:{found.line}: {found.module}"
        for path in room_files(room)
        for found in imports(path)
        if found.module.split(".")[0] in IMPURE
    ]
    assert wrong == []


@pytest.mark.parametrize("room", PURE_ROOMS)
def test_pure_rooms_never_wait_nor_look_outside(room: str) -> None:
    waiting = (ast.Await, ast.AsyncFunctionDef, ast.AsyncWith, ast.AsyncFor)
    wrong = [
        f"{named(path)}:{node.lineno}: {ast.unparse(node).splitlines()[0]}"
        for path in room_files(room)
        for node in ast.walk(tree(path))
        if isinstance(node, waiting)
        or (isinstance(node, ast.Call) and called(node) in IMPURE_CALLS)
    ]
    assert wrong == []


def called(call: ast.Call) -> str:
    match call.func:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return ""


# -- words --------------------------------------------------------------------------------------


def words(name: str) -> set[str]:
    """`FlowTable`, `flow_table` -> flow, table; plurals too."""
    found = {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)}
    return found | {word.removesuffix("s") for word in found}


def test_nothing_has_an_empty_name() -> None:
    wrong = []
    for path in [*sources(HOUSE), *sources(TOP / "netns-lab"), *sources(TOP / "tests")]:
        names = [path.stem, path.parent.name]
        names += [
            node.name
            for node in ast.walk(tree(path))
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        ]
        for name in names:
            plain = name
            for allowed in FORBIDDEN_WORDS_ALLOWED:
                plain = plain.replace(allowed, "")
            if words(plain) & FORBIDDEN_WORDS:
                wrong.append(f"{named(path)}: {name}")
    assert wrong == []


# -- what stands in no file ---------------------------------------------------------------------

MADE: Final = {".git", ".venv", "__pycache__", "build", "dist", "bench-results"}
HOME_PATH: Final = re.compile(r"(?<![\w.~])/(?:home|Users|root|work|workspace)/\w")
REGISTRY: Final = re.compile(
    r"\b(?:pypi\.org|pythonhosted\.org|(?:deb|ftp|security|snapshot)\.debian\.org"
    r"|archive\.ubuntu\.com|registry\.npmjs\.org|crates\.io|proxy\.golang\.org|docker\.io|ghcr\.io"
    r"|artifactory|devpi)\b",
    re.IGNORECASE,
)


def texts() -> Iterator[tuple[Path, str]]:
    for path in sorted(TOP.rglob("*")):
        inside = path.relative_to(TOP).parts
        cached = any(part in MADE or part.endswith(("_cache", ".hypothesis")) for part in inside)
        if cached or not path.is_file() or path == Path(__file__).resolve():
            continue
        try:
            yield path, path.read_text()
        except UnicodeDecodeError:
            continue


@pytest.mark.parametrize(
    ("pattern", "what"),
    [
        (REGISTRY, "the host name of a package registry"),
        (HOME_PATH, "a path of somebody's machine"),
    ],
)
def test_no_file_names_a_machine(pattern: re.Pattern[str], what: str) -> None:
    wrong = [
        f"{named(path)}:{number}: {line.strip()}"
        for path, text in texts()
        for number, line in enumerate(text.splitlines(), start=1)
        if pattern.search(line)
    ]
    assert wrong == [], what


# -- shell --------------------------------------------------------------------------------------


def shell_scripts() -> dict[Path, str]:
    """Script -> its shell, by the first line."""
    found = {}
    for path, text in texts():
        first = text.partition("\n")[0]
        if shebang := re.match(r"#!.*?\b(bash|sh)$", first):
            found[path] = shebang[1]
    return found


def test_shell_scripts_are_sound() -> None:
    scripts = shell_scripts()
    assert {".ci/run", ".ci/venv", "netns-lab/guest/init"} <= set(map(named, scripts))
    for path, shell in scripts.items():
        checks = [[shell, "-n", str(path)]]
        if shutil.which("shellcheck"):
            # Busybox's sh is a dash with a few things more.
            dialect = "dash" if "busybox" in path.read_text().partition("\n")[0] else shell
            checks.append(["shellcheck", "--severity=warning", f"--shell={dialect}", str(path)])
        for check in checks:
            done = subprocess.run(check, capture_output=True, text=True, check=False, timeout=60)
            assert done.returncode == 0, f"{check}\n{done.stdout}{done.stderr}"
