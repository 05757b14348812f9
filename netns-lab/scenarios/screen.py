"""How a scenario speaks: headlines, commands, figures, claims. Colour only where it is wanted."""

import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from textwrap import wrap
from typing import Final, TextIO

INDENT: Final = "   "
WIDTH: Final = 100


class Style(StrEnum):
    """SGR parameters of ECMA-48."""

    BOLD = "1"
    DIM = "2"
    GOOD = "32"
    BAD = "1;31"


def wants_colour(environment: Mapping[str, str], out: TextIO) -> bool:
    """NO_COLOR and FORCE_COLOR as no-color.org and force-color.org tell, else what `out` is."""
    if environment.get("NO_COLOR"):
        return False
    return bool(environment.get("FORCE_COLOR")) or out.isatty()


@dataclass
class Screen:
    """Prints a scenario as it happens and remembers which claims failed."""

    colour: bool
    started_at: float = field(default_factory=time.monotonic)
    claims: int = 0
    failed: list[str] = field(default_factory=list)

    @classmethod
    def of_process(cls) -> "Screen":
        """On standard output."""
        return cls(wants_colour(os.environ, sys.stdout))

    def elapsed(self) -> float:
        """Seconds since the scenario began."""
        return time.monotonic() - self.started_at

    def headline(self, text: str) -> None:
        """A new part of the story."""
        self._print(f"\n[{self.elapsed():5.1f} s] " + self._styled(text, Style.BOLD))

    def say(self, text: str) -> None:
        """A line of the story."""
        self._print(f"{INDENT}{text}")

    def lines(self, text: str, *, indent: str = INDENT) -> None:
        """What a program said, as it said it."""
        for line in text.rstrip("\n").splitlines():
            self._print(f"{indent}{line}".rstrip())

    def command(self, where: str, argv: str) -> None:
        """A command that is run, as one would type it."""
        for line in wrap(
            f"{where}# {argv}",
            WIDTH - len(INDENT) - 2,
            subsequent_indent=INDENT,
            break_long_words=False,
            break_on_hyphens=False,
        ):
            self._print(INDENT + self._styled(line, Style.DIM))

    def claim(self, text: str, *, holds: bool) -> None:
        """Something this scenario promises; one that does not hold makes it end non-zero."""
        self.claims += 1
        mark = self._styled("ok", Style.GOOD) if holds else self._styled("FAILED", Style.BAD)
        self._print(f"{INDENT}{mark}  {text}")
        if not holds:
            self.failed.append(text)

    def table(self, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Columns two blanks apart; figures to the right, words to the left."""
        body = [tuple(row) for row in rows]
        widths = [max(map(len, column)) for column in zip(heads, *body, strict=True)]
        right = [all(_is_figure(cell) for cell in column) for column in zip(*body, strict=True)]
        for number, row in enumerate([tuple(heads), *body]):
            cells = (
                cell.rjust(width) if figure else cell.ljust(width)
                for cell, width, figure in zip(row, widths, right, strict=True)
            )
            line = "  ".join(cells).rstrip()
            self.say(self._styled(line, Style.BOLD) if number == 0 else line)

    def verdict(self) -> int:
        """The last word; the exit status."""
        held = self.claims - len(self.failed)
        text = f"{held} of {self.claims} claims hold, after {self.elapsed():.1f} s"
        if self.failed:
            self._print("\n" + self._styled(f"FAILED: {text}. What does not:", Style.BAD))
            for claim in self.failed:
                self.say(claim.splitlines()[0])
            return 1
        self._print("\n" + self._styled(f"{text}.", Style.GOOD))
        return 0

    def _styled(self, text: str, style: Style) -> str:
        return f"\x1b[{style}m{text}\x1b[0m" if self.colour else text

    @staticmethod
    def _print(line: str) -> None:
        print(line, flush=True)


def _is_figure(cell: str) -> bool:
    return not cell or cell == "-" or cell.replace(",", "").replace(".", "").isdecimal()
