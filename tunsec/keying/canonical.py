"""Canonical JSON: one byte string for one value, and nothing but that byte string accepted.

ASCII, sorted keys, no white space, no floats, no duplicate keys; bytes travel as base64 (RFC 4648
section 4, padded). `Fields` reads a decoded object field by field, and refuses what it did not
expect. Everything here raises ValueError with what is wrong; the caller knows the path.
"""

import base64
import binascii
import functools
import ipaddress
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NoReturn, TypeVar

from tunsec.model.names import Address

Json = None | bool | int | str | Sequence["Json"] | Mapping[str, "Json"]
T = TypeVar("T")

MAX_INT_DIGITS: Final = 20
"""2**64 has 20 digits; Python's own limit of 4,300 would let a record burn CPU."""
MAX_INT: Final = 2**63 - 1
MAX_TEXT: Final = 255


def encode_canonical(value: Json) -> bytes:
    """The one byte string of a value."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    ).encode("ascii")


def decode_canonical(body: bytes) -> Json:
    """The value of a canonical byte string; ValueError for every other byte string."""
    try:
        text = body.decode("ascii")
        value: Json = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_int=_small_int,
            parse_float=_no_float,
            parse_constant=_no_float,
        )
        again = encode_canonical(value)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except UnicodeError:
        raise ValueError("not ASCII") from None
    if again != body:
        raise ValueError("not in canonical form")
    return value


def _unique(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a key appears twice")
    return fields


def _small_int(digits: str) -> int:
    if len(digits) > MAX_INT_DIGITS:
        raise ValueError(f"an integer of {len(digits)} digits")
    return int(digits)


def _no_float(text: str) -> NoReturn:
    raise ValueError(f"{text[:20]} is not an integer")


def to_base64(raw: bytes) -> str:
    """Padded base64, one line."""
    return base64.b64encode(raw).decode("ascii")


def from_base64(text: str) -> bytes:
    """The bytes of padded base64; no other alphabet, no white space, no spare bits."""
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("not base64") from None
    if to_base64(raw) != text:
        raise ValueError("not the canonical base64 of its bytes")
    return raw


@functools.lru_cache(maxsize=4096)
def parse_address(text: str) -> Address:
    """An IP address in its one shortest form (RFC 5952), without a zone. Kept: the same ones are in
    every record."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise ValueError(f"{text[:60]!r} is no IP address") from None
    if str(address) != text or getattr(address, "scope_id", None):
        raise ValueError(f"{text[:60]!r} is not in canonical form")
    return address


class Fields:
    """The fields of one decoded object, each taken once, with its type and bounds checked."""

    def __init__(self, value: Json, where: str) -> None:
        if not isinstance(value, Mapping):
            raise ValueError(f"{where} is no object")
        self._left = dict(value)
        self._where = where

    def _take(self, name: str) -> Json:
        if name not in self._left:
            raise ValueError(f"{self._where} lacks {name}")
        return self._left.pop(name)

    def text(self, name: str, *, limit: int = MAX_TEXT) -> str:
        """A string of 1..`limit` printable characters."""
        value = self._take(name)
        if not isinstance(value, str):
            raise ValueError(f"{self._where}.{name} is no string")
        if not 0 < len(value) <= limit or not value.isprintable():
            raise ValueError(f"{self._where}.{name} is empty, too long or not printable")
        return value

    def text_or_none(self, name: str) -> str | None:
        """Such a string, or null."""
        if self._left.get(name, "") is None:
            del self._left[name]
            return None
        return self.text(name)

    def flag(self, name: str) -> bool:
        """True or false."""
        value = self._take(name)
        if not isinstance(value, bool):
            raise ValueError(f"{self._where}.{name} is neither true nor false")
        return value

    def number(self, name: str, *, low: int = 0, high: int = MAX_INT) -> int:
        """An integer in `low`..`high`."""
        value = self._take(name)
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValueError(f"{self._where}.{name} is no integer")
        if not low <= value <= high:
            raise ValueError(f"{self._where}.{name} is not in {low}..{high}")
        return value

    def raw(self, name: str, *, limit: int, exact: bool = False) -> bytes:
        """Base64 of at most (or exactly) `limit` bytes."""
        value = self._take(name)
        if not isinstance(value, str):
            raise ValueError(f"{self._where}.{name} is no string")
        raw = from_base64(value)
        if len(raw) > limit or (exact and len(raw) != limit):
            raise ValueError(f"{self._where}.{name} has {len(raw)} bytes, not {limit}")
        return raw

    def address(self, name: str) -> Address:
        """An IP address."""
        return parse_address(self.text(name))

    def rows(self, name: str, parse: Callable[[Json, str], T], *, limit: int) -> tuple[T, ...]:
        """A list of at most `limit` entries, each parsed with its place."""
        value = self._take(name)
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise ValueError(f"{self._where}.{name} is no list")
        if len(value) > limit:
            raise ValueError(f"{self._where}.{name} has {len(value)} entries, above {limit}")
        return tuple(
            parse(entry, f"{self._where}.{name}[{place}]") for place, entry in enumerate(value)
        )

    def done(self) -> None:
        """Nothing may be left over: a field that is not known is not ignored."""
        if self._left:
            raise ValueError(f"{self._where} has unknown field {min(self._left)[:60]!r}")


def ascending(values: Sequence[T], *, key: Callable[[T], tuple[int | str, ...]], what: str) -> None:
    """ValueError unless the keys rise strictly: one order, and no entry twice."""
    for before, after in itertools.pairwise(values):
        if not key(before) < key(after):
            raise ValueError(f"{what} are not in ascending order, or one appears twice")
