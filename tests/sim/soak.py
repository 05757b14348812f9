"""Trials of every kind for a while, or one again:

    python -m tests.sim.soak --for 10m [--trial NAME] [--first N]
    python -m tests.sim.soak --trial NAME --seed N [--hosts N] [--span S] [--strikes N,N] [--tell]

Prints how many seeds were played and how fast, and of the first that failed the shortest story.
"""

import argparse
import logging
import os
import random
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait

from tests.sim.repertoire import SHARES, TRIALS, Failure, story, tried
from tests.sim.script import Script
from tunsec.policy.units import parse_span

HEARTBEAT = 60.0
"""Seconds between two lines that say how far it is."""


class Soak:
    """Plays seeds on all processors until the time is over."""

    def __init__(self, kinds: dict[str, int], first: int) -> None:
        self._turns = _turns(kinds, first)
        self._began = time.monotonic()
        self._running: dict[Future[Failure | None], tuple[str, int]] = {}
        self.seeds = 0
        self.failed: list[str] = []

    def play(self, seconds: float) -> None:
        """Tells the first failure as soon as it is there, and goes on."""
        processes, said = os.cpu_count() or 1, self._began
        with ProcessPoolExecutor(processes, initializer=_quiet) as pool:
            while self._running or self._span() < seconds:
                while len(self._running) < 2 * processes and self._span() < seconds:
                    name, seed = next(self._turns)
                    self._running[pool.submit(_one, name, seed)] = name, seed
                self._take(wait(self._running, HEARTBEAT, FIRST_COMPLETED).done)
                if time.monotonic() - said >= HEARTBEAT:
                    said = time.monotonic()
                    print(self.figures(), flush=True)

    def _take(self, done: set[Future[Failure | None]]) -> None:
        for future in done:
            name, seed = self._running.pop(future)
            self.seeds += 1
            failure = future.result()
            if failure is None:
                continue
            first = not self.failed
            self.failed.append(f"{name} {seed}")
            print(f"FAILED: {name}, seed {seed}: {failure.kind}", flush=True)
            if first:
                print(story(name, Script(seed), failure), flush=True)

    def _span(self) -> float:
        return time.monotonic() - self._began

    def figures(self) -> str:
        """Seeds, rate, failures."""
        rate = self.seeds / max(self._span(), 1e-9)
        failed = ", ".join(self.failed) or "none"
        return f"{self.seeds} seeds in {self._span():.0f} s ({rate:.1f} a second), failed: {failed}"


def _turns(kinds: dict[str, int], first: int) -> Iterator[tuple[str, int]]:
    """Kinds of trials in their shares, one among the others, each with one seed after the other."""
    dice = random.Random(first)
    seeds = dict.fromkeys(kinds, first)
    while True:
        [name] = dice.choices(list(kinds), list(kinds.values()))
        yield name, seeds[name]
        seeds[name] += 1


def _one(name: str, seed: int) -> Failure | None:
    return tried(TRIALS[name], Script(seed))


def _quiet() -> None:
    logging.disable(logging.CRITICAL)


def _replay(asked: argparse.Namespace) -> int:
    strikes = asked.strikes
    if strikes is not None:
        strikes = frozenset(int(one) for one in strikes.split(",") if one != "none")
    script = Script(asked.seed, asked.hosts, asked.span, strikes, asked.plain)
    world = TRIALS[asked.trial or "chaos"](script)
    print(world.tale() if asked.tell else f"seed {asked.seed}: well")
    return 0


def main(words: Sequence[str] | None = None) -> int:
    """Exit status: 0 when every trial went well."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--trial", choices=sorted(TRIALS), help="of this kind alone")
    parser.add_argument("--for", dest="span_of_all", type=parse_span, default=60.0, metavar="10m")
    parser.add_argument("--first", type=int, help="where seeds begin; by default, at the clock")
    parser.add_argument("--seed", type=int, help="this seed alone")
    parser.add_argument("--hosts", type=int, help="at most so many")
    parser.add_argument("--span", type=float, help="at most so many seconds of trouble")
    parser.add_argument("--strikes", help="these strikes alone, by number; or none")
    parser.add_argument("--plain", action="store_true", help="one flow and no other programs")
    parser.add_argument("--tell", action="store_true", help="tell the story, and log")
    asked = parser.parse_args(words)
    logging.basicConfig(level=logging.DEBUG if asked.tell else logging.CRITICAL)
    if asked.seed is not None:
        return _replay(asked)
    _quiet()
    # Not what was played before: a soak looks for what no run has seen yet.
    first = int(time.time() * 1000) if asked.first is None else asked.first
    kinds = SHARES if asked.trial is None else {asked.trial: 1}
    print(f"seeds from --first {first}", flush=True)
    soak = Soak(kinds, first)
    soak.play(asked.span_of_all)
    print(soak.figures())
    return 1 if soak.failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
