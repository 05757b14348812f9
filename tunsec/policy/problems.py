"""What is wrong with a policy, before it is known on which line: paths, flaws, their text."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Final

from tunsec.model.errors import Problem

Path = tuple[str | int, ...]
"""Keys and indexes from the top of the document down to a value."""

_PLAIN_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True)
class Flaw:
    """One thing wrong at a path; `line` (from 1) where the path alone does not tell it."""

    path: Path
    what: str
    remedy: str
    line: int | None = None


class Wrong(ValueError):
    """A value cannot be read; each flaw's path starts at that value."""

    def __init__(self, what: str = "", remedy: str = "", *, flaws: Sequence[Flaw] = ()) -> None:
        self.flaws = tuple(flaws) or (Flaw((), what, remedy),)
        super().__init__("; ".join(flaw.what for flaw in self.flaws))


def key_path(path: Path) -> str:
    """A path as the operator reads it: `flows.storage.between[2]`; odd keys are quoted."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            key = part if _PLAIN_KEY.fullmatch(part) else f"'{shown(part)}'"
            text += f".{key}" if text else key
    return text or "(whole file)"


def line_of(path: Path, lines: Mapping[Path, int]) -> int:
    """The line of a path, or of the nearest thing around it that stands in the file."""
    while path and path not in lines:
        path = path[:-1]
    return lines.get(path, 1)


def located(flaws: Iterable[Flaw], *, source: str, lines: Mapping[Path, int]) -> list[Problem]:
    """Flaws as problems with `file:line: key.path`, in the order of the file, none twice."""
    placed = {
        (flaw.line or line_of(flaw.path, lines), key_path(flaw.path), flaw.what, flaw.remedy)
        for flaw in flaws
    }
    return [
        Problem(where=f"{source}:{line}: {where}", what=what, remedy=remedy)
        for line, where, what, remedy in sorted(placed)
    ]


def describe(problems: Sequence[Problem]) -> str:
    """Problems for a reader: one line each, as compilers print them, then their number."""
    count = f"{len(problems)} problem{'' if len(problems) == 1 else 's'}"
    return "\n".join([*(str(problem) for problem in problems), count])


def shown(value: object, *, limit: int = 60) -> str:
    """A value of the operator's for a message: on one line, unprintables escaped, cut short."""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    text = text.encode("unicode_escape").decode("ascii") if not text.isprintable() else text
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def suggestion(word: str, known: Iterable[str], *, otherwise: str) -> str:
    """`did you mean 'x'?` when a known word is near, else the advice given."""
    near = get_close_matches(word.lower().replace("_", "-"), _spellings(known), n=1, cutoff=0.6)
    return f"did you mean '{_spellings(known)[near[0]]}'?" if near else otherwise


def _spellings(known: Iterable[str]) -> dict[str, str]:
    return {word.lower().replace("_", "-"): word for word in known}


def listed(words: Iterable[object]) -> str:
    """`a, b or c`."""
    every = [str(word) for word in words]
    return " or ".join(filter(None, [", ".join(every[:-1]), every[-1]])) if every else ""


def quoted(value: object) -> str:
    """A value of the document for a message: texts in quotes, mappings and lists by their kind."""
    match value:
        case dict():
            return "a mapping"
        case list():
            return "a list"
        case str():
            return f"'{shown(value)}'"
    return shown(value)
