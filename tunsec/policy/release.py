"""What is valid language but not in this release: one table. A release that brings it deletes rows.

Nothing here is ever ignored: a policy that asks for it is refused, and the flow stays blocked.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from tunsec.model.flow import Mode
from tunsec.policy.problems import Flaw, Path

NOT_IN_RELEASE: Final = "is not in this release"

ANYTHING: Final = "*"


@dataclass(frozen=True, slots=True)
class Later:
    """A value that a later release brings.

    `where` is a path with `*` for any name; `value` is what must stand there, `*` for whatever.
    """

    where: tuple[str, ...]
    value: str
    remedy: str

    @property
    def name(self) -> str:
        """What the operator calls it: `mode ktls`, `on_reconnect`."""
        key = self.where[-1]
        return f"'{key}'" if self.value == ANYTHING else f"'{key}: {self.value}'"


def _everywhere(key: str, value: str, remedy: str) -> tuple[Later, Later]:
    """A key that stands in flows and in defaults."""
    return Later(("defaults", key), value, remedy), Later(("flows", ANYTHING, key), value, remedy)


LATER: Final[tuple[Later, ...]] = (*_everywhere("mode", Mode.KTLS, "use 'mode: esp'"),)


def unreleased(value: object) -> Iterator[Flaw]:
    """Everything in a document that a later release brings."""
    for row in LATER:
        for path, found in _at(value, row.where):
            if row.value in (ANYTHING, found):
                yield Flaw(path, f"{row.name} {NOT_IN_RELEASE}", row.remedy)


def _at(value: object, where: tuple[str, ...], path: Path = ()) -> Iterator[tuple[Path, object]]:
    """Every (path, value) of a document that a starred path meets."""
    if not where:
        yield path, value
    elif isinstance(value, dict):
        for key in value if where[0] == ANYTHING else [where[0]]:
            if key in value:
                yield from _at(value[key], where[1:], (*path, key))
