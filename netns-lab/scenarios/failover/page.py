"""The tables of docs/failover.md: marked parts of the page, in which a run replaces its rows."""

from collections.abc import Sequence
from typing import Final

from scenarios.failover.catalogue import SCENARIOS
from scenarios.failover.scenario import Scenario
from scenarios.failover.traffic import KINDS
from scenarios.failover.trial import Outcome
from tunsec.model.flow import Keying

HEADS: Final = (
    *(
        "scenario",
        "kind",
        "keying",
        "may cost",
        "sent",
        "lost",
        "longest gap, ms",
        "back after, ms",
    ),
    *("clear", "re-authenticated after, s", "orphans", "figures"),
)
BEGIN: Final = "<!-- made by make failover: {name} -->\n"
END: Final = "<!-- end of {name} -->\n"


def row(outcome: Outcome) -> tuple[str, ...]:
    """The figures of a trial."""
    return (
        outcome.scenario.name,
        outcome.kind,
        str(outcome.keying),
        str(outcome.scenario.cost(outcome.keying)),
        f"{outcome.sent:,}",
        f"{outcome.lost:,}",
        f"{outcome.gap_ms:,.0f}" if outcome.gap_ms else "-",
        f"{outcome.back_ms:,.0f}",
        str(outcome.clear),
        "-" if outcome.reauth_s is None else f"{outcome.reauth_s:.1f}",
        str(outcome.orphans),
        "not reached" if outcome.missed else "ok",
    )


def key(outcome: Outcome) -> tuple[str, ...]:
    """Which trial it was: what its row begins with."""
    return row(outcome)[:3]


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """In Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def results(outcomes: Sequence[Outcome], *, where: str, before: str = "") -> str:
    """The table of a run, and what was not reached. What was not run stays as it was `before`."""
    ran = {key(outcome) for outcome in outcomes}
    rows = {
        cells[:3]: cells
        for cells in (
            tuple(line.strip("| ").split(" | ")) for line in before.splitlines() if line[:1] == "|"
        )
        if len(cells) == len(HEADS)
    }
    rows |= {cells[:3]: cells for cells in map(row, outcomes)}
    known: list[tuple[str, ...]] = [
        (each.name, kind, str(keying)) for each in SCENARIOS for kind in KINDS for keying in Keying
    ]
    missed = {
        trial: [
            line
            for line in before.splitlines()
            if line.startswith("- {} on {} by {}: ".format(*trial))
        ]
        for trial in known
        if trial not in ran
    }
    for outcome in outcomes:
        missed[key(outcome)] = [f"- {outcome.name}: {fault}" for fault in outcome.missed]
    text = table(HEADS, [rows[trial] for trial in known if trial in rows]) + f"\n{where}\n"
    told = [line for trial in known for line in missed.get(trial, [])]
    return text + ("\nNot reached:\n\n" + "\n".join(told) + "\n" if told else "")


def stories(scenarios: Sequence[Scenario]) -> str:
    """What each scenario does."""
    return table(("scenario", "what happens"), [(each.name, each.story) for each in scenarios])


def part(page: str, name: str) -> str:
    """What stands between the marks of that name."""
    return page.partition(BEGIN.format(name=name))[2].partition(END.format(name=name))[0]


def replaced(page: str, name: str, text: str) -> str:
    """The page with another text between the marks of that name."""
    begin, end = BEGIN.format(name=name), END.format(name=name)
    head, found, rest = page.partition(begin)
    _, closed, tail = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"the page has no part {name!r}")
    return f"{head}{begin}\n{text}\n{end}{tail}"
