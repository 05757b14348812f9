"""What a check has found, and how it is shown: one line."""

import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Final

from tunsec.model.errors import Problem


class Verdict(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARNING = "warning"
    """tunsec works, but worse than it could, or not for long; or it was not found out."""
    PROBLEM = "problem"
    """Flows stay blocked, or tunsecd does not start."""


class Group(StrEnum):
    """What a check is about."""

    HOST = "host"
    KERNEL = "kernel"
    DAEMON = "daemon"
    CHARON = "charon"


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one check. What is not ok has a remedy."""

    group: Group
    check: str
    verdict: Verdict
    found: str
    remedy: str = ""


_COLOURS: Final = {Verdict.OK: "green", Verdict.WARNING: "yellow", Verdict.PROBLEM: "red"}


def ok(group: Group, check: str, found: str) -> Finding:
    """All is well."""
    return Finding(group, check, Verdict.OK, found)


def warning(group: Group, check: str, found: str, remedy: str) -> Finding:
    """It could be better."""
    return Finding(group, check, Verdict.WARNING, found, remedy)


def problem(group: Group, check: str, found: str, remedy: str) -> Finding:
    """It does not work."""
    return Finding(group, check, Verdict.PROBLEM, found, remedy)


def told(group: Group, check: str, problems: Iterable[Problem], verdict: Verdict) -> list[Finding]:
    """Problems that were told by who found them."""
    return [
        Finding(group, check, verdict, f"{one.where}: {one.what}", one.remedy) for one in problems
    ]


def as_json(finding: Finding) -> dict[str, Any]:
    """For json.dumps."""
    return asdict(finding)


def show(finding: Finding) -> None:
    """Print a line; with colour on a terminal."""
    place = f"{finding.group:7} {finding.check:18}"
    remedy = f" ({finding.remedy})" if finding.remedy else ""
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.text import Text

        verdict = (f"{finding.verdict:8}", f"bold {_COLOURS[finding.verdict]}")
        line = Text.assemble(verdict, f" {place} {finding.found}", (remedy, "cyan"))
        Console(highlight=False, soft_wrap=True).print(line)
    else:
        print(f"{finding.verdict:8} {place} {finding.found}{remedy}", flush=True)


def counted(findings: Iterable[Finding]) -> str:
    """The last line: `1 problem, 2 warnings, 17 ok`."""
    verdicts = [finding.verdict for finding in findings]
    problems, warnings = verdicts.count(Verdict.PROBLEM), verdicts.count(Verdict.WARNING)
    return (
        f"{problems} problem{'' if problems == 1 else 's'}, "
        f"{warnings} warning{'' if warnings == 1 else 's'}, {verdicts.count(Verdict.OK)} ok"
    )
