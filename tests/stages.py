"""Runs the stages of `make test`: all of them whatever happens, then the figures of all.

`stages.py` runs every stage, side by side where they do not disturb each other, and shows the
output of each when it ends. `stages.py NAME...` runs those, one after the other, on the terminal.
Standard library alone. Exit status 1 if anything failed; the last line is the total of all tests,
in which a stage that failed without a failed test counts as one failed.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

CHECKOUT: Final = Path(__file__).resolve().parent.parent
HEARTBEAT_SECONDS: Final = 30.0
ROOM_TO_END_SECONDS: Final = 15.0
COUNT: Final = re.compile(r"(\d+) (passed|failed|errors?|skipped|xfailed|xpassed)\b")
PYTEST_CLOSING: Final = re.compile(r"^=+ .*\bin [\d.]+s.* =+$")
KINDS: Final = {
    "passed": "passed",
    "failed": "failed",
    "error": "failed",
    "errors": "failed",
    "xpassed": "failed",
    "skipped": "skipped",
    "xfailed": "skipped",
}
ELSEWHERE: Final = ("tests/lab", "tests/sim", "tests/contract/test_kernel_xfrm.py")
"""What has a stage of its own, or needs a kernel that few hosts have."""
WITH_CHARON: Final = (
    "tests/lab/ike",
    "tests/lab/test_failover.py",
    "tests/lab/test_ike_refusals.py",
    "tests/lab/test_mixed_keyings.py",
    "tests/lab/test_reconnect.py",
    "tests/lab/test_vxlan_ike.py",
)
OF_KINDS: Final = (
    "tests/lab/test_all_kinds.py",
    "tests/lab/test_explain.py",
    "tests/lab/test_kinds.py",
    "tests/lab/test_offload.py",
    "tests/lab/test_path_mtu.py",
    "tests/lab/test_rds.py",
    "tests/lab/test_revocation.py",
    "tests/lab/test_roce.py",
    "tests/lab/test_service_address.py",
    "tests/lab/test_tenants.py",
    "tests/lab/test_tenants_external.py",
)
"""These and those have guests of their own: a third of the lab's time each."""
FOR_LESSER_KERNELS: Final = "cannot_measure"
"""Tests of what a kernel lacks: the lab's lacks nothing, and skips nothing."""


def python(*words: str) -> tuple[str, ...]:
    """A command of the environment that .ci/venv made."""
    return (os.environ.get("VENV_PYTHON", sys.executable), *words)


def pytest(*words: str) -> tuple[str, ...]:
    return python("-m", "pytest", "--color=no", *words)


def in_lab(*options: str, tests: Sequence[str]) -> tuple[str, ...]:
    """Tests in a freshly booted lab kernel."""
    guest = ("python3", "-m", "pytest", "--color=no", *tests)
    return (sys.executable, "netns-lab/lab", "exec", *options, "--", *guest)


def quick_in_lab(*tests: str) -> tuple[str, ...]:
    """Those of every run of `make test`."""
    return in_lab(
        *("--cpus", "2", "--timeout", "20m"),
        tests=(
            *("-m", "not virtual_time and not long"),
            *("-k", f"not {FOR_LESSER_KERNELS}"),
            *tests,
        ),
    )


@dataclass(frozen=True)
class Stage:
    """Commands that run one after the other. `needs`: not run if that stage failed."""

    name: str
    commands: tuple[tuple[str, ...], ...]
    needs: str = ""


STAGES: Final = {
    stage.name: stage
    for stage in (
        Stage("lint", (python("-m", "ruff", "check"), python("-m", "ruff", "format", "--check"))),
        Stage("types", (python("-m", "mypy"),)),
        Stage("unit", (pytest("tests", *(f"--ignore={path}" for path in ELSEWHERE)),)),
        Stage("sim", (pytest("-n", "2", "tests/sim"),)),
        Stage("build", ((sys.executable, "netns-lab/lab", "build", "--clock", "all"),)),
        Stage(
            "lab-virtual",
            (
                in_lab(
                    *("--clock", "virtual", "--timeout", "20m"),
                    tests=("-m", "virtual_time and not long", "tests/lab"),
                ),
            ),
            needs="build",
        ),
        Stage(
            "lab",
            (
                quick_in_lab(
                    *(f"--ignore={path}" for path in (*WITH_CHARON, *OF_KINDS)),
                    *("tests/lab", "tests/contract", "tests/unit/adapters"),
                ),
            ),
            needs="build",
        ),
        Stage("lab-ike", (quick_in_lab(*WITH_CHARON),), needs="build"),
        Stage("lab-kinds", (quick_in_lab(*OF_KINDS),), needs="build"),
        Stage(
            "lab-long",
            (
                in_lab(
                    *("--cpus", "2", "--timeout", "40m"),
                    tests=("-m", "long and not virtual_time", "tests/lab"),
                ),
                in_lab(
                    *("--clock", "virtual", "--timeout", "40m"),
                    tests=("-m", "long and virtual_time", "tests/lab"),
                ),
            ),
        ),
    )
}

SIDE_BY_SIDE: Final = (("lint", "types", "unit", "sim"), ("build", "lab-virtual"))
AFTERWARDS: Final = (("lab",), ("lab-ike",), ("lab-kinds",))
"""They count lost packets and mostly wait: three guests, and no computing beside them."""


@dataclass
class Outcome:
    """What a stage came to."""

    stage: str
    ok: bool
    seconds: float
    closing: list[str] = field(default_factory=list)
    tests: dict[str, int] = field(default_factory=dict)

    def figures(self) -> dict[str, int]:
        """Tests, and one failure more where a stage failed without a failed test."""
        counts = dict.fromkeys(("passed", "failed", "skipped"), 0) | self.tests
        if not self.ok and not counts["failed"]:
            counts["failed"] = 1
        return counts


class Runner:
    """Runs stages in lanes and prints one report at a time."""

    def __init__(self) -> None:
        self.printing = threading.Lock()
        self.outcomes: dict[str, Outcome] = {}
        self.running: list[subprocess.Popen[bytes]] = []
        self.stopping = False

    def run_all(self) -> None:
        self.run_lanes(SIDE_BY_SIDE)
        self.run_lanes(AFTERWARDS)

    def run_lanes(self, lanes: Sequence[Sequence[str]]) -> None:
        with ThreadPoolExecutor(len(lanes)) as threads:
            try:
                for done in [threads.submit(self.run_lane, lane) for lane in lanes]:
                    done.result()
            except BaseException:
                self.stop()
                raise

    def run_lane(self, names: Iterable[str]) -> None:
        for name in names:
            if not self.stopping:
                self.outcomes[name] = self.run(STAGES[name])

    def run(self, stage: Stage) -> Outcome:
        if stage.needs and not self.outcomes[stage.needs].ok:
            self.say(f"---- {stage.name}: not run, as {stage.needs} failed")
            return Outcome(stage.name, ok=False, seconds=0.0)
        self.say(f"---- {stage.name} starts")
        started_at = time.monotonic()
        with tempfile.TemporaryFile() as output:
            # Every command runs, also after one that failed.
            done = [self.command(argv, stage.name, output) for argv in stage.commands]
            output.seek(0)
            text = output.read().decode(errors="replace")
        ok, seconds = all(done), time.monotonic() - started_at
        verdict = "ok" if ok else "FAILED"
        self.say(f"\n==== {stage.name}: {verdict}, {seconds:.1f} s\n{text.rstrip()}\n")
        return Outcome(stage.name, ok, seconds, *closing_of(text))

    def command(self, argv: tuple[str, ...], name: str, output: IO[bytes]) -> bool:
        """Whether it ended with status 0. Says every half minute that it still runs."""
        output.write(f"$ {shlex.join(argv)}\n".encode())
        output.flush()
        started_at = time.monotonic()
        with subprocess.Popen(
            argv,
            cwd=CHECKOUT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as process:
            self.running.append(process)
            while True:
                try:
                    status = process.wait(HEARTBEAT_SECONDS)
                except subprocess.TimeoutExpired:
                    self.say(f"---- {name} runs since {time.monotonic() - started_at:.0f} s")
                else:
                    break
            self.running.remove(process)
        return status == 0

    def stop(self) -> None:
        """Ends what runs, with all that it started."""
        self.stopping = True
        for process in list(self.running):
            os.killpg(process.pid, signal.SIGTERM)
        for process in list(self.running):
            try:
                process.wait(ROOM_TO_END_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)

    def say(self, text: str) -> None:
        with self.printing:
            print(text, flush=True)

    def conclude(self) -> int:
        """Times, the closing lines of every runner, and the total; the exit status."""
        print("\n==== all stages")
        for outcome in self.outcomes.values():
            verdict = "ok" if outcome.ok else "FAILED"
            print(f"{outcome.stage:<12} {verdict:<6} {outcome.seconds:7.1f} s")
        print()
        for outcome in self.outcomes.values():
            for line in outcome.closing:
                print(line)
        total = {"passed": 0, "failed": 0, "skipped": 0}
        for outcome in self.outcomes.values():
            for kind, count in outcome.figures().items():
                total[kind] += count
        print(", ".join(f"{count} {kind}" for kind, count in total.items()), flush=True)
        return 0 if all(outcome.ok for outcome in self.outcomes.values()) else 1


def closing_of(text: str) -> tuple[list[str], dict[str, int]]:
    """The lines a runner ends with, and its tests by kind."""
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    of_pytest = [line for line in lines if PYTEST_CLOSING.match(line)]
    counts: dict[str, int] = {}
    for line in of_pytest:
        for count, word in COUNT.findall(line):
            counts[KINDS[word]] = counts.get(KINDS[word], 0) + int(count)
    return of_pytest or lines[-1:], counts


def run_here(names: Sequence[str]) -> int:
    """Stages on the terminal, one after the other, without a summary."""
    failed = 0
    for name in names:
        for argv in STAGES[name].commands:
            print(f"$ {shlex.join(argv)}", flush=True)
            failed |= subprocess.run(argv, cwd=CHECKOUT, check=False).returncode
    return 1 if failed else 0


def main(names: Sequence[str]) -> int:
    if unknown := [name for name in names if name not in STAGES]:
        print(f"no such stage: {', '.join(unknown)}; there are {', '.join(STAGES)}")
        return 2
    if names:
        return run_here(names)
    runner = Runner()
    # CI ends a run by SIGTERM: what was started ends with it, as by Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        runner.run_all()
    except KeyboardInterrupt:
        print("interrupted: all stages were ended", flush=True)
        return 130
    return runner.conclude()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
