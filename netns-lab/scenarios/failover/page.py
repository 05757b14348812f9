"""The tables of docs/failover.md: marked parts of the page, which each full run replaces."""

from collections.abc import Sequence
from typing import Final

from scenarios.failover.scenario import Scenario
from scenarios.failover.trial import Outcome

HEADS: Final = (
    *("scenario", "keying", "may cost", "sent", "lost", "longest gap, ms", "back after, ms"),
    *("clear", "re-authenticated after, s", "orphans", ""),
)
BEGIN: Final = "<!-- made by make failover: {name} -->\n"
END: Final = "<!-- end of {name} -->\n"


def row(outcome: Outcome) -> tuple[str, ...]:
    """The figures of a trial."""
    return (
        outcome.scenario.name,
        str(outcome.keying),
        str(outcome.scenario.cost(outcome.keying)),
        f"{outcome.sent:,}",
        f"{outcome.lost:,}",
        f"{outcome.gap_ms:,.0f}" if outcome.gap_ms else "-",
        f"{outcome.back_ms:,.0f}",
        str(outcome.clear),
        "-" if outcome.reauth_s is None else f"{outcome.reauth_s:.1f}",
        str(outcome.orphans),
        "**not reached**" if outcome.faults else "ok",
    )


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """In Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def results(outcomes: Sequence[Outcome], *, where: str) -> str:
    """The table of a run, and what was not reached."""
    text = table(HEADS, [row(outcome) for outcome in outcomes])
    missed = [f"- {outcome.name}: {fault}\n" for outcome in outcomes for fault in outcome.faults]
    text += f"\n{where}\n"
    return text + ("\nNot reached:\n\n" + "".join(missed) if missed else "")


def stories(scenarios: Sequence[Scenario]) -> str:
    """What each scenario does."""
    return table(("scenario", "what happens"), [(each.name, each.story) for each in scenarios])


def replaced(page: str, name: str, text: str) -> str:
    """The page with another text between the marks of that name."""
    begin, end = BEGIN.format(name=name), END.format(name=name)
    head, found, rest = page.partition(begin)
    _, closed, tail = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"the page has no part {name!r}")
    return f"{head}{begin}\n{text}\n{end}{tail}"
