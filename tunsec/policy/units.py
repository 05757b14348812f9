"""Spans, sizes, counts and percentages as operators write them."""

import re
from typing import Final

from tunsec.model.clock import Seconds
from tunsec.policy.problems import Wrong, quoted, shown

_SPAN_UNITS: Final = {"d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_SPAN: Final = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?(?:ms|d|h|m|s))+")
_SPAN_PART: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|d|h|m|s)")
_SIZE_UNITS: Final = {
    "B": 1,
    **{f"{letter}iB": 1024 ** (power + 1) for power, letter in enumerate("KMGTP")},
    **{f"{letter}B": 1000 ** (power + 1) for power, letter in enumerate("kMGTP")},
}
_SIZE: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([A-Za-z]+)")
_PERCENT: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?%")

SPAN_PATTERN: Final = r"^([0-9]+(\.[0-9]+)?(ms|d|h|m|s))+$"
SIZE_PATTERN: Final = r"^([0-9]+(\.[0-9]+)? ?(B|KiB|MiB|GiB|TiB|PiB|kB|MB|GB|TB|PB)|none)$"
PERCENT_PATTERN: Final = r"^[0-9]+(\.[0-9]+)? ?%$"

NO_LIMIT: Final = 2**64 - 1
"""What `none` reads as: XFRM_INF of include/uapi/linux/xfrm.h."""
_MAX_COUNT: Final = 2**63 - 1
"""Half of XFRM_INF, so that the sum of two limits stays below it."""
_DIGITS: Final = 24
"""A number with more digits is a mistake, and turning it into an int would cost time."""


def parse_span(value: object) -> Seconds:
    """`1h30m`, `90s`, `500ms`, `1.5h` -> seconds; each unit (d h m s ms) once, largest first."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        raise Wrong(f"{shown(value)} has no unit", f"write '{shown(value)}s' for seconds")
    if not isinstance(value, str) or len(value) > _DIGITS or not _SPAN.fullmatch(value):
        raise Wrong(_is_not(value, "a time span"), "write a number and d, h, m, s or ms: '1h30m'")
    parts = _SPAN_PART.findall(value)
    order = [list(_SPAN_UNITS).index(unit) for _, unit in parts]
    if order != sorted(set(order)):
        raise Wrong(
            f"'{value}' has a unit twice or out of order", "write the largest unit first: '1h30m'"
        )
    return Seconds(round(sum(float(number) * _SPAN_UNITS[unit] for number, unit in parts), 3))


def parse_size(value: object) -> int:
    """`256GiB`, `1.5TB`, `none` -> bytes; `none` is NO_LIMIT."""
    if value == "none":
        return NO_LIMIT
    if isinstance(value, int | float) and not isinstance(value, bool):
        raise Wrong(f"{shown(value)} has no unit", f"write '{shown(value)}B' for bytes")
    found = _SIZE.fullmatch(value) if isinstance(value, str) and len(value) <= _DIGITS else None
    if found is None or found[2] not in _SIZE_UNITS:
        raise Wrong(_is_not(value, "a size"), "write a number and B, KiB, MiB, GiB, TiB: '256GiB'")
    count = float(found[1]) * _SIZE_UNITS[found[2]]
    if not 1 <= count <= _MAX_COUNT:
        raise Wrong(f"'{value}' is out of range", "use at least 1B and at most 8191PiB, or none")
    return int(found[1]) * _SIZE_UNITS[found[2]] if found[1].isdigit() else int(count)


def parse_count(value: object) -> int:
    """A whole number above zero, or `none` (NO_LIMIT)."""
    if value == "none":
        return NO_LIMIT
    if not isinstance(value, int) or isinstance(value, bool):
        raise Wrong(_is_not(value, "a count"), "write a whole number such as 4294967296, or none")
    if not 1 <= value <= _MAX_COUNT:
        raise Wrong(f"{shown(value)} is out of range", f"use 1 to {_MAX_COUNT}, or none")
    return value


def parse_percent(value: object) -> float:
    """`10%` -> 0.1."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        percent = f"{value * 100:g}%" if 0 < value < 1 else f"{value:g}%"
        raise Wrong(f"{shown(value)} has no unit", f"write '{percent}'")
    found = _PERCENT.fullmatch(value) if isinstance(value, str) and len(value) <= _DIGITS else None
    if found is None:
        raise Wrong(_is_not(value, "a percentage"), "write a number and %: '10%'")
    return float(found[1]) / 100


def span_text(span: float) -> str:
    """Seconds as `parse_span` reads them, to the millisecond: 5400 -> `1h30m`."""
    left = round(span * 1000)
    parts = []
    for unit, seconds in _SPAN_UNITS.items():
        count, left = divmod(left, round(seconds * 1000))
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"


def size_text(count: int) -> str:
    """Bytes as `parse_size` reads them, in the largest binary unit that divides them."""
    if count == NO_LIMIT:
        return "none"
    fitting = [unit for unit, size in _SIZE_UNITS.items() if "iB" in unit and count % size == 0]
    return f"{count // _SIZE_UNITS[fitting[-1]]}{fitting[-1]}" if fitting else f"{count}B"


def _is_not(value: object, wanted: str) -> str:
    return f"{quoted(value)} is not {wanted}"
