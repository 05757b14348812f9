"""One scenario by one keying: a fresh cluster, the trouble under load, and what it came to."""

import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, Protocol

from scenarios.failover.aftermath import Credentials, idle, leftovers, orphans, restless
from scenarios.failover.scenario import BACK_WITHIN, STUCK, Cost, Scenario
from scenarios.failover.stage import Load, Stage
from scenarios.failover.traffic import Traffic
from tunsec.model.flow import Keying
from tunsec_lab.capture import LeakFound, LeakWatch
from tunsec_lab.drops import drops
from tunsec_lab.errors import LabError
from tunsec_lab.host import Lab
from tunsec_lab.probe import ProbeReport

AT_REST_WITHIN: Final = 60.0
"""Seconds, for everything that was superseded to go."""
SILENCE: Final = 0.1
"""Seconds without a packet before the last one was sent: it did not come."""
TAIL: Final = 0.5
"""Seconds of packets before the trouble, and after the cluster is at rest."""


class Watched(Protocol):
    """What the watch over a wire tells at its end."""

    clear: int
    faults: list[str]


@dataclass
class Outcome:
    """The figures of a trial; `faults` are what should not be, in words, and `slow` what took
    longer than it should: that is also what a machine with other work makes of it."""

    scenario: Scenario
    kind: str
    keying: Keying
    sent: int = 0
    lost: int = 0
    gap_ms: float = 0.0
    """The longest, both ways."""
    back_ms: float = 0.0
    """From the end of the trouble until packets came again, and came without a gap from then on."""
    clear: int = 0
    must_reauth: bool = False
    """Whether who was away, or connected anew, must prove who he is."""
    reauth_s: float | None = None
    """From the end of the trouble until both ends had proven anew who they are, and nothing of the
    old keys was left; None when they did not."""
    orphans: int = 0
    faults: list[str] = field(default_factory=list)
    slow: list[str] = field(default_factory=list)

    @property
    def missed(self) -> list[str]:
        """Everything that keeps it from its figures."""
        return [*self.faults, *self.slow]

    @property
    def name(self) -> str:
        """Of the trial."""
        return f"{self.scenario.name} on {self.kind} by {self.keying}"


def run(scenario: Scenario, kind: str, keying: Keying, *, pace: float = 1.0) -> Outcome:
    """On hosts of its own. Whatever goes wrong is in the outcome."""
    outcome = Outcome(scenario, kind, keying)
    try:
        with watched_stage(keying, scenario.kinds[kind], outcome, pace=pace) as stage:
            scenario.prepare(stage)
            start(stage)
            suffer(scenario, stage, outcome, {keying: leftovers(stage)})
    except Exception as error:  # noqa: BLE001 - the other scenarios are still to be run
        frame = traceback.extract_tb(error.__traceback__)[-1]
        outcome.faults.append(f"{type(error).__name__}: {error} ({frame.name})")
    return outcome


@contextmanager
def watched_stage(
    keying: Keying, traffic: Traffic, watched: Watched, *, pace: float = 1.0, ca_days: int = 60
) -> Iterator[Stage]:
    """A cluster whose wire is watched from before its first daemon to after its last."""
    with (
        Lab(traffic.topology, overlays_up=False) as lab,
        LeakWatch(lab, protected=traffic.protected) as watch,
    ):
        watch.prove_sees(lambda: traffic.speak_in_clear(lab))
        stage = Stage(lab, traffic, keying, watch, pace=pace, ca_days=ca_days)
        with stage.undo:
            try:
                yield stage
            finally:
                lab.destroy(*stage.hosts)
                watched.clear = watch.report().clear
                try:
                    watch.assert_closed()
                except LeakFound as error:
                    watched.faults.append(str(error))


def start(stage: Stage) -> None:
    """Returns when all is protected, and at rest."""
    stage.start()
    wait_for_rest(stage)


def suffer(
    scenario: Scenario,
    stage: Stage,
    outcome: Outcome,
    fresh: Mapping[Keying, Counter[str]],
) -> None:
    """The trouble under load, until the cluster is at rest again. `fresh` is what a cluster at rest
    has of everything, by its keying."""
    stage.dropped_by_wire = 0
    stage.ended_at.clear()
    stage.load = Load(stage.traffic, stage.lab)
    if scenario.defaults:
        stage.reload(stage.policy(scenario.defaults))
    before = Credentials.of(stage, time.monotonic())
    stage.load.begin()
    time.sleep(TAIL)
    scenario.trouble(stage)
    stage.over()
    ended_at = stage.ended_at[-1]
    if scenario.defaults:
        stage.reload(stage.policy())
    outcome.must_reauth = stage.keying in scenario.reauth or (
        scenario.reconnects and stage.reauthenticates
    )
    left: list[str] = []
    outlasting = ""
    until = ended_at + AT_REST_WITHIN
    while True:
        now = time.monotonic()
        if outcome.reauth_s is None and not (outlasting := before.outlasting(stage, now)):
            outcome.reauth_s = now - ended_at
        left = waits(stage) or orphans(fresh[stage.keying], leftovers(stage))
        done = not left and (outcome.reauth_s is not None or not outcome.must_reauth)
        if done or now > until:
            break
        time.sleep(stage.look_every)
    time.sleep(TAIL)
    stage.load.end()
    measure(outcome, stage)
    judge(outcome, left, outlasting, refusals(stage))


def waits(stage: Stage) -> list[str]:
    """What a host still waits for, as a list of at most one."""
    found = restless(stage)
    return [found] if found else []


def wait_for_rest(stage: Stage) -> None:
    """Returns when a fresh cluster is at rest."""
    until = time.monotonic() + AT_REST_WITHIN
    while found := restless(stage) or idle(leftovers(stage)):
        if time.monotonic() > until:
            raise LabError(f"a fresh cluster is not at rest: {found}")
        time.sleep(stage.look_every)


# -- figures --------------------------------------------------------------------------------------


def measure(outcome: Outcome, stage: Stage) -> None:
    """What the packets tell."""
    reports = [probe.report for part in stage.load.parts for probe in part]
    outcome.sent = sum(report.sent for report in reports)
    lost = sum(report.lost for report in reports)
    by_wire = 0 if stage.traffic.reliable else stage.dropped_by_wire
    outcome.lost = max(0, lost - by_wire)
    lives = zip(*stage.load.parts, strict=True)
    gaps = [gap for life in lives for gap in gaps_of([probe.report for probe in life])]
    outcome.gap_ms = max((1e3 * (end - begin) for begin, end in gaps), default=0.0)
    outcome.back_ms = 1e3 * max(
        (back_after(gap, stage.ended_at, reliable=stage.traffic.reliable) for gap in gaps),
        default=0.0,
    )


def back_after(gap: tuple[float, float], ended_at: Sequence[float], *, reliable: bool) -> float:
    """Seconds from the end of the last trouble before it to the end of a gap.

    What is reliable loses nothing in a gap, so that a slow machine makes some, too: a short one
    that begins after a trouble is none.
    """
    begin, end = gap
    over = [at for at in ended_at if at <= end]
    if not over or (reliable and begin > over[-1] and end - begin < BACK_WITHIN):
        return 0.0
    return end - over[-1]


def gaps_of(parts: Sequence[ProbeReport]) -> Iterable[tuple[float, float]]:
    """Of one probe that ran in parts: also from the last packet of a part to the first of the
    next, and to the end when nothing came any more."""
    last_at = parts[0].began_at
    for number, part in enumerate(parts):
        yield from part.gaps
        if part.received and number:
            yield last_at, part.first_at
        last_at = part.last_at or last_at
    end = parts[-1].ended_at
    if end - last_at > SILENCE:
        yield last_at, end


def refusals(stage: Stage) -> str:
    """Which packets are missing, and what hosts count that they did not take or send."""
    missing = [
        f"{probe.source.name} to {probe.target.name} lacks {probe.report.holes}, "
        f"{probe.report.duplicated} came twice, {probe.report.reordered} out of order"
        for part in stage.load.parts
        for probe in part
        if probe.report.lost
    ]
    return "; ".join([*missing, *drops(stage.cluster)])


def judge(outcome: Outcome, left: Sequence[str], outlasting: str, seen: str) -> None:
    """Holds the figures against what the scenario may cost. `left` is what there is too much of at
    the end, `outlasting` what there is of before, `seen` which packets are missing."""
    say = outcome.faults.append
    match outcome.scenario.cost(outcome.keying):
        case Cost.NOTHING if outcome.lost:
            say(f"{outcome.lost} packets lost, gap {outcome.gap_ms:.0f} ms: {seen}")
        case Cost.NOTHING if outcome.gap_ms > 1e3 * STUCK:
            outcome.slow.append(f"nothing came for {outcome.gap_ms:.0f} ms: {seen}")
        case Cost.GAP if outcome.back_ms > 1e3 * BACK_WITHIN:
            outcome.slow.append(
                f"packets come again {outcome.back_ms:.0f} ms after the trouble has ended"
            )
        case _:
            pass
    if outcome.must_reauth and outcome.reauth_s is None:
        say(f"what was before is not superseded: {outlasting}")
    outcome.orphans = len(left)
    if left:
        say(f"after {AT_REST_WITHIN:g} s not as a fresh cluster: {'; '.join(left)}")
