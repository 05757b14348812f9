"""`make failover`: runs the scenarios, tells the figures of each, and writes them into the page.

Ends non-zero when a figure is not reached. The page gets the rows of what was run, at full pace.
"""

import argparse
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from scenarios.failover import page
from scenarios.failover.catalogue import SCENARIOS
from scenarios.failover.scenario import Scenario
from scenarios.failover.traffic import KINDS
from scenarios.failover.trial import Outcome, run
from tunsec.model.flow import Keying
from tunsec_lab.charon import CHARON


def tell(outcome: Outcome, took: float) -> None:
    """One line of figures, one of each thing that should not be."""
    reauth = "-" if outcome.reauth_s is None else f"{outcome.reauth_s:.1f} s"
    verdict = "FAILED" if outcome.missed else "ok"
    print(
        f"{verdict:<6} {outcome.name:<48} lost {outcome.lost:>6,} of {outcome.sent:>7,}  "
        f"gap {outcome.gap_ms:>7,.0f} ms  back after {outcome.back_ms:>6,.0f} ms  "
        f"clear {outcome.clear}  re-authenticated after {reauth:>6}  orphans {outcome.orphans}  "
        f"[{took:.0f} s]",
        flush=True,
    )
    for fault in outcome.missed:
        print(f"       {fault}", flush=True)


def where() -> str:
    """What it ran on."""
    said = subprocess.run([CHARON, "--version"], check=True, capture_output=True, text=True).stdout
    charon = said.split()[-1]
    return f"Linux {platform.release()}, charon {charon}, {os.cpu_count()} CPUs."


def write(path: Path, outcomes: Sequence[Outcome]) -> None:
    """Replaces in the page what was run."""
    text = page.replaced(path.read_text(), "scenarios", page.stories(SCENARIOS))
    figures = page.results(outcomes, where=where(), before=page.part(text, "results"))
    path.write_text(page.replaced(text, "results", figures))


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="failover", description=__doc__.split("\n\n")[0])
    names = [scenario.name for scenario in SCENARIOS]
    keyings = [str(keying) for keying in Keying]
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", default=names)
    parser.add_argument("--keying", choices=keyings, help="not both of them")
    parser.add_argument("--kind", choices=list(KINDS), help="not both of them")
    parser.add_argument("--pace", type=float, default=1.0, help="0.2: troubles last a fifth")
    parser.add_argument("--page", type=Path, help="whose rows are replaced")
    parser.add_argument("--list", action="store_true", help="tell what there is")
    return parser.parse_args(arguments)


def trials(options: argparse.Namespace) -> Iterator[tuple[Scenario, str, Keying]]:
    """What is to be run, in the order of the page."""
    for scenario in SCENARIOS:
        for kind in scenario.kinds:
            for keying in Keying:
                if (
                    scenario.name in options.only
                    and kind == (options.kind or kind)
                    and keying in scenario.keyings
                    and keying == (options.keying or keying)
                ):
                    yield scenario, kind, keying


def main() -> int:
    """0 if every figure is reached."""
    options = parse()
    if options.list:
        for scenario in SCENARIOS:
            on = f"{', '.join(scenario.kinds):<16} {', '.join(sorted(scenario.keyings)):<16}"
            print(f"{scenario.name:<20} {on} {scenario.story}")
        return 0
    outcomes: list[Outcome] = []
    for scenario, kind, keying in trials(options):
        began = time.monotonic()
        outcome = run(scenario, kind, keying, pace=options.pace)
        tell(outcome, time.monotonic() - began)
        outcomes.append(outcome)
        if options.page and options.pace == 1.0:
            write(options.page, outcomes)
    missed = sum(bool(outcome.missed) for outcome in outcomes)
    print(f"{len(outcomes) - missed} of {len(outcomes)} reach their figures")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
