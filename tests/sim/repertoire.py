"""The trials there are, and what they say when they fail: the shortest story found, and how to play
it again."""

import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from tests.sim.ike_trial import ike_chaos_trial, ike_restless_trial
from tests.sim.large_trial import large_trial
from tests.sim.laws import Broken
from tests.sim.script import Script
from tests.sim.trial import chaos_trial, restless_trial
from tests.sim.vip_trial import vip_trial
from tests.sim.world import World

Trial = Callable[[Script], World]

TRIALS: dict[str, Trial] = {
    "chaos": chaos_trial,
    "restless": restless_trial,
    "ike-chaos": ike_chaos_trial,
    "ike-restless": ike_restless_trial,
    "vip": vip_trial,
    "large": large_trial,
}

SHARES = {
    "chaos": 850,
    "ike-chaos": 90,
    "vip": 25,
    "restless": 22,
    "ike-restless": 11,
    "large": 2,
}
"""How many seeds of a thousand each kind of trial gets: by what one costs and finds."""

SHRINKING = 30.0
"""Seconds for making a story shorter: tests end after some minutes whatever they do."""
FEW_HOSTS = (2, 3, 4, 6, 10, 20)


@dataclass(frozen=True, slots=True)
class Failure:
    """What went wrong in a trial."""

    kind: str
    """Which law, or which of our own promises: shorter stories must offend the same."""
    told: str


def tried(trial: Trial, script: Script) -> Failure | None:
    """What goes wrong in a trial, if anything does."""
    try:
        trial(script)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is told
        what = "" if isinstance(error, Broken) else f"{type(error).__name__}: "
        first = str(error).partition("\n")[0]
        # Names of hosts and numbers differ from one story to the next of the same fault.
        words = re.sub(r"h?\d[\w.:]*", "", first.partition(":")[0])
        return Failure(f"{what}{words if what else _law(first)}", f"{what}{error}")
    return None


def _law(said: str) -> str:
    """'law 2', 'tenants', or, of what is said of a host, what is said."""
    head, _, rest = said.partition(":")
    return head if not re.fullmatch(r"h\d+", head) else re.sub(r"\W*\d.*", "", rest).strip()


def shrunk(trial: Trial, script: Script, failure: Failure) -> tuple[Script, Failure, int]:
    """The least that still fails in the same way, as far as there is time to look; and how many
    trials that took."""
    end, tries = time.monotonic() + SHRINKING, 0
    candidates = smaller(script)
    while time.monotonic() < end:
        less = next(candidates, None)
        if less is None:
            break
        tries += 1
        found = tried(trial, less)
        if found is not None and found.kind == failure.kind:
            script, failure, candidates = less, found, smaller(less)
    return script, failure, tries


def smaller(script: Script) -> Iterator[Script]:
    """Scripts with less in them, the boldest cuts first."""
    for few in FEW_HOSTS:
        if script.hosts is None or few < script.hosts:
            yield replace(script, hosts=few)
    if not script.plain:
        yield replace(script, plain=True)
    struck = sorted(script.struck)
    if script.strikes is None or struck:
        yield replace(script, strikes=frozenset())
    size = len(struck) // 2
    while size:
        for at in range(0, len(struck), size):
            yield replace(script, strikes=frozenset(struck[:at] + struck[at + size :]))
        size //= 2
    last = max(script.struck.values(), default=0.0)
    for span in (round(last + 0.1, 1), round(script.trouble / 2, 1)):
        if span < script.trouble:
            yield replace(script, span=span)


def story(name: str, script: Script, failure: Failure) -> str:
    """What failed: shrunk, told, and how to play it again."""
    least, told, tries = shrunk(TRIALS[name], script, failure)
    spans = f"{least.trouble:g} of {script.trouble:g} s of trouble"
    strikes = f"{len(least.struck)} of {len(script.struck)} strikes"
    again = " ".join(["python -m tests.sim.soak --tell --trial", name, *least.options])
    return (
        f"{name}, seed {script.seed}: {told.told}\n"
        f"the shortest story that was found in {tries} trials: {spans}, {strikes}\n"
        f"play it again: {again}"
    )


def play_all(name: str, seeds: Iterable[int]) -> None:
    """One trial after the other; raises Broken with the first one's shrunk story."""
    for seed in seeds:
        failure = tried(TRIALS[name], Script(seed))
        if failure is not None:
            raise Broken(story(name, Script(seed), failure))
