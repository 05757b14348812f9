"""`make year`: a year, or so many days of it, of three hosts in virtual time.

Ends non-zero at the first fault, which it tells with its seed and time. `--seed SEED --from DAY`
lives that day again.
"""

import argparse
import sys

from scenarios.year.life import live


def main() -> int:
    """0 if no law was broken and nothing is left over."""
    parser = argparse.ArgumentParser(prog="year", description=__doc__.split("\n\n")[0])
    parser.add_argument("--seed", type=int, default=1, help="what the diary is drawn from")
    parser.add_argument("--days", type=int, default=365, help="how many")
    parser.add_argument("--from", type=int, default=0, dest="first", help="the first of them")
    parser.add_argument("--troubles", type=int, default=2, help="a day, beside what is by the week")
    options = parser.parse_args()

    def tell(text: str) -> None:
        print(text, flush=True)

    life = live(
        options.seed,
        days=options.days,
        first=options.first,
        troubles=options.troubles,
        tell=tell,
    )
    tell(life.story())
    return 1 if life.faults else 0


if __name__ == "__main__":
    sys.exit(main())
