"""Trials for a while, or one again: `python -m tests.sim.soak --seconds 600 [--first N]`, or
`python -m tests.sim.soak --seed N [--tell]`. Prints what failed, and figures."""

import argparse
import logging
import time

from tests.sim.ike_trial import ike_chaos_trial, ike_restless_trial
from tests.sim.laws import Broken
from tests.sim.trial import chaos_trial, restless_trial

TRIALS = {
    "chaos": chaos_trial,
    "restless": restless_trial,
    "ike-chaos": ike_chaos_trial,
    "ike-restless": ike_restless_trial,
}


def main() -> int:
    """Exit status: 0 when every trial went well."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trial", choices=sorted(TRIALS), default="chaos")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--first", type=int, default=1_000_000, help="the first seed")
    parser.add_argument("--seed", type=int, help="this seed alone")
    parser.add_argument("--tell", action="store_true", help="tell the story, and log")
    asked = parser.parse_args()
    trial = TRIALS[asked.trial]
    logging.basicConfig(level=logging.DEBUG if asked.tell else logging.CRITICAL)
    if asked.seed is not None:
        world = trial(asked.seed)
        print(world.tale() if asked.tell else f"seed {asked.seed}: well")
        return 0
    began = time.monotonic()
    seeds = checks = 0
    failed: list[int] = []
    while time.monotonic() - began < asked.seconds:
        seed = asked.first + seeds
        seeds += 1
        try:
            checks += trial(seed).laws.checks
        except Exception as error:  # noqa: BLE001 - whatever it is, it is told and counted
            failed.append(seed)
            law = "" if isinstance(error, Broken) else f"{type(error).__name__}: "
            print(f"seed {seed}: {law}{error}", flush=True)
    span = time.monotonic() - began
    print(
        f"{seeds} seeds in {span:.0f} s ({seeds / span:.1f} a second), {checks} checks of the laws"
    )
    print(f"failed: {failed or 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
