"""Three hosts live for days: rekeys by the hour, another policy each day, troubles as the diary has
them, reboots and new certificates by the week, the wire watched all along.

For the lab's virtual clock. Every trouble is one of the failover catalogue, and what it may cost is
written there. Between troubles nothing may be lost at all.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from scenarios.failover.aftermath import leftovers
from scenarios.failover.catalogue import SCENARIOS
from scenarios.failover.scenario import NONE, Scenario
from scenarios.failover.stage import Load, Stage
from scenarios.failover.traffic import Ring, Vxlan
from scenarios.failover.trial import (
    AT_REST_WITHIN,
    Outcome,
    start,
    suffer,
    wait_for_rest,
    watched_stage,
)
from scenarios.year.diary import CHANGE_AT, DAY, RENEWAL_AT, Day, Entry, clock, day
from tunsec.model.flow import Keying
from tunsec_lab.pile_up import assert_nothing_piled_up, piled_up

TROUBLED: Final = Ring(rate=20.0)
CALM: Final = Ring(rate=1 / 300)
"""Packets a second of each host: a dozen for each key."""
LOOK_EVERY: Final = 5.0
"""Seconds between two looks whether a trouble is over: each look is half a second of computing."""
IKE: Final = "  {dead_after: 1h}\n"
"""Probes of dead peers once a second, as by default, would take hours of computing."""
DAEMONS_LOOK_EVERY: Final = "2h"
"""With 5 minutes, as by default, three quarters of the computing would be `nft list`."""
LOOKS: Final = 3
"""At midnight a rekey may be under way, and charon still have the socket of our last question."""
MORE_CA_DAYS: Final = 60
CHANCE: Final = ": IKE_SAs"
"""Two hosts that begin at once make one each."""
TROUBLES: Final = tuple(
    replace(each, reauth=NONE) for each in SCENARIOS if Vxlan.name in each.kinds
)
"""Who takes no part in a trouble need not prove who he is."""


@dataclass
class Life:
    """What became of the hosts; `faults` are what should not be, in words."""

    seed: int
    days: int = 0
    sent: int = 0
    lost: int = 0
    """In troubles that may cost something."""
    clear: int = 0
    sas: int = 0
    """Outbound SAs that were seen at work on the wire."""
    happened: Counter[str] = field(default_factory=Counter)
    early: Counter[str] = field(default_factory=Counter)
    late: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def story(self) -> str:
        """For people."""
        lived = (
            f"seed {self.seed}: {self.days} days, {self.happened.total()} troubles, "
            f"{self.sent:,} packets sent, {self.lost:,} lost in troubles that may cost some, "
            f"{self.clear} clear, {self.sas:,} SAs at work"
        )
        happened = ", ".join(f"{name} {count}" for name, count in sorted(self.happened.items()))
        first, last = f"first {dict(self.early)}", f"last {dict(self.late)}"
        return "\n".join([lived, happened, first, last, *self.faults])


class Fault(Exception):
    """A law was broken, or something is left over."""


class House:
    """Where they live, day by day; `when` is the moment of the last thing that happened."""

    def __init__(
        self,
        stage: Stage,
        life: Life,
        known: Sequence[Scenario],
        tell: Callable[[str], None],
    ) -> None:
        self.stage, self.life, self.tell = stage, life, tell
        self.known = {each.name: each for each in (*TROUBLES, *known)}
        self.when = "moving in"
        self.fresh: dict[Keying, Counter[str]] = {}
        self.early: dict[Keying, Counter[str]] = {}
        self.midnight = 0.0

    def move_in(self) -> None:
        """Everything runs, and it is known what there is of it at rest, by each keying."""
        stage = self.stage
        for turn in range(len(stage.hosts)):
            stage.turn = turn
            for trouble in self.known.values():
                trouble.prepare(stage)
        stage.look_every = LOOK_EVERY
        stage.cluster.ike = IKE
        stage.cluster.look_every = DAEMONS_LOOK_EVERY
        stage.cluster.policy_file.write_text(stage.policy())
        start(stage)
        for keying in (stage.keying, *(each for each in Keying if each is not stage.keying)):
            stage.keying = keying
            stage.reload(stage.policy())
            time.sleep(AT_REST_WITHIN)  # what another keying has left goes
            wait_for_rest(stage)
            self.fresh[keying] = leftovers(stage)
        self.midnight = time.monotonic()

    def live(self, today: Day) -> None:
        """One day, from midnight to midnight."""
        self.tell(f"day {today.number}: {today.keying}, {today.policy or 'nothing special'}")
        if today.renewal is not None:
            self.suffers(today, Entry(RENEWAL_AT, "certificate-renewed", today.renewal), RENEWAL)
        change = Scenario("policy-changed", "", lambda stage: adopt(stage, today))
        self.suffers(today, Entry(CHANGE_AT, change.name, 0), change)
        for entry in today.troubles:
            self.suffers(today, entry, self.known[entry.trouble])
        self.calm(today, DAY)
        self.midnight += DAY
        self.look(today)

    def calm(self, today: Day, until: float) -> None:
        """Nothing happens until then, and nothing is lost."""
        load = Load(CALM, self.stage.lab)
        load.begin()
        self.when = f"day {today.number} before {clock(until)}"
        time.sleep(max(0.0, self.midnight + until - time.monotonic()))
        load.end()
        self.life.sent += sum(probe.report.sent for probe in load.parts[0])
        if any(probe.report.lost for probe in load.parts[0]):
            raise Fault(f"packets are lost in the calm: {lacking(load)}")

    def suffers(self, today: Day, entry: Entry, trouble: Scenario) -> None:
        """A trouble at its time."""
        self.calm(today, entry.at)
        stage, life = self.stage, self.life
        stage.turn = entry.turn
        self.when = f"day {today.number} {entry} by {stage.keying}"
        outcome = Outcome(trouble, stage.traffic.name, stage.keying)
        trouble.prepare(stage)
        suffer(trouble, stage, outcome, self.fresh)
        life.happened[trouble.name] += 1
        life.sent += outcome.sent
        life.lost += outcome.lost
        self.tell(f"{self.when}: lost {outcome.lost:,}, gap {outcome.gap_ms:,.0f} ms")
        faults = outcome.missed  # no other work makes virtual time slow
        if clear := stage.watch.report().clear:
            faults.append(f"{clear} clear packets")
        if faults:
            raise Fault("; ".join(faults))

    def look(self, today: Day) -> None:
        """At midnight: the wire, and what has piled up since the first day of this keying."""
        self.when = f"end of day {today.number}"
        stage, life = self.stage, self.life
        stage.watch.assert_closed()
        for patience in reversed(range(LOOKS)):
            found = piled_up(stage.cluster)
            now = Counter({name: n for name, n in found.items() if not name.endswith(CHANCE)})
            life.early = self.early.setdefault(stage.keying, now)
            life.late = now
            try:
                assert_nothing_piled_up(life.early, life.late)
            except AssertionError:
                if not patience:
                    raise
                time.sleep(AT_REST_WITHIN)
            else:
                break
        life.days += 1
        life.sas = len(stage.watch.report().esp_flows)


def adopt(stage: Stage, today: Day) -> None:
    """Every host gets the day's policy. With another keying all flows move to it, under load."""
    stage.keying, stage.today = today.keying, today.policy
    stage.reload(stage.policy())


def renew_certificate(stage: Stage) -> None:
    """One host gets a new key and a new certificate, and shows it."""
    ca = stage.cluster.folder / "ca"
    stage.a.run(["tunsec", "ca", "renew", stage.cluster.identity(stage.a), "--ca", ca])
    stage.cluster.client(stage.a).reload()


RENEWAL: Final = Scenario("certificate-renewed", "", renew_certificate)


def lacking(load: Load) -> str:
    """Which packets did not come."""
    return "; ".join(
        f"{probe.source.name} to {probe.target.name} lacks {probe.report.holes}"
        for part in load.parts
        for probe in part
        if probe.report.lost
    )


def live(
    seed: int,
    *,
    days: int,
    first: int = 0,
    troubles: int,
    known: Sequence[Scenario] = TROUBLES,
    tell: Callable[[str], None] = print,
) -> Life:
    """So many days of the diary of a seed, from the `first`; ends at the first fault."""
    life = Life(seed)
    ca_days = days + MORE_CA_DAYS
    with watched_stage(Keying.IKE, TROUBLED, life, ca_days=ca_days) as stage:
        house = House(stage, life, known, tell)
        hosts = len(stage.hosts)
        try:
            house.move_in()
            for number in range(first, first + days):
                house.live(day(number, seed=seed, hosts=hosts, known=known, troubles=troubles))
        except Exception as error:  # noqa: BLE001 - the seed and the time go with whatever it is
            life.faults.append(f"seed {seed}, {house.when}: {type(error).__name__}: {error}")
    return life
