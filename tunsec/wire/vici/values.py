"""Typed values out of a VICI dictionary; every error names the path of the value."""

import ipaddress
from collections.abc import Iterator, Mapping
from typing import Final

from tunsec.model.errors import TunsecError
from tunsec.model.names import Address, Mark

U32: Final = 0xFFFF_FFFF
U64: Final = 0xFFFF_FFFF_FFFF_FFFF
_SHOWN: Final = 60


class Malformed(TunsecError):
    """A value that is not what VICI promises, or that has no place in a request."""


class Section:
    """A VICI dictionary, read strictly. Keys that nobody asks for are passed over."""

    __slots__ = ("_path", "_raw")

    def __init__(self, raw: object, path: str) -> None:
        """Raises Malformed when `raw` is no dictionary."""
        if not isinstance(raw, Mapping):
            raise Malformed(f"{path}: a section was expected, not {_shown(raw)}")
        self._raw = raw
        self._path = path

    def __contains__(self, key: str) -> bool:
        return key in self._raw

    def text(self, key: str) -> str:
        """Printable UTF-8."""
        return self._text(self._get(key), key)

    def maybe_text(self, key: str) -> str | None:
        """Printable UTF-8, or None when the key is not there."""
        return self.text(key) if key in self._raw else None

    def words(self, key: str) -> str:
        """Text for people: what cannot be printed becomes a question mark."""
        raw = self._bytes(self._get(key), key).decode("utf-8", "replace")
        return "".join(letter if letter.isprintable() else "?" for letter in raw)

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of printable UTF-8; empty when the key is not there."""
        raw = self._raw.get(key, [])
        if not isinstance(raw, list):
            raise self._wrong(key, "a list", raw)
        return tuple(self._text(item, key) for item in raw)

    def flag(self, key: str) -> bool:
        """Whether the key is there and says yes; charon leaves out what is not."""
        if key not in self._raw:
            return False
        said = self.text(key)
        if said not in ("yes", "no", "1", "0"):
            raise self._wrong(key, "yes or no", self._raw[key])
        return said in ("yes", "1")

    def number(self, key: str, *, most: int = U32) -> int:
        """A decimal number of 0 to `most`."""
        found = self.signed(key, most=most)
        if found < 0:
            raise self._wrong(key, f"a number up to {most}", self._raw[key])
        return found

    def maybe_number(self, key: str, *, most: int = U32) -> int | None:
        """A decimal number, or None when the key is not there."""
        return self.number(key, most=most) if key in self._raw else None

    def signed(self, key: str, *, most: int = U32) -> int:
        """A decimal number of -most to most: a deadline may have passed."""
        text = self.text(key)
        digits = text.removeprefix("-")
        if not (digits.isascii() and digits.isdecimal()) or len(digits) > 20 or int(digits) > most:
            raise self._wrong(key, f"a number up to {most}", self._raw[key])
        return int(text)

    def maybe_signed(self, key: str) -> int | None:
        """A decimal number that may be negative, or None when the key is not there."""
        return self.signed(key) if key in self._raw else None

    def hexadecimal(self, key: str, *, most: int = U32) -> int:
        """A hexadecimal number without prefix."""
        text = self.text(key)
        try:
            found = int.from_bytes(bytes.fromhex(text.rjust(len(text) + len(text) % 2, "0")))
        except ValueError:
            found = -1
        if not text or not text.isalnum() or not 0 <= found <= most:
            raise self._wrong(key, f"a hexadecimal number up to {most:x}", self._raw[key])
        return found

    def maybe_mark(self, key: str, mask_key: str) -> Mark | None:
        """A mark; its mask is left out when all bits count."""
        if key not in self._raw:
            return None
        mask = self.hexadecimal(mask_key) if mask_key in self._raw else U32
        return Mark(self.hexadecimal(key), mask)

    def maybe_address(self, key: str) -> Address | None:
        """An IP address; None for `%any` and when the key is not there."""
        text = self.maybe_text(key)
        if text is None or text in ("%any", "%any6", "0.0.0.0", "::"):  # noqa: S104 - compared only
            return None
        try:
            return ipaddress.ip_address(text)
        except ValueError:
            raise self._wrong(key, "an IP address", self._raw[key]) from None

    def section(self, key: str) -> "Section":
        """A section; Malformed when it is not there."""
        return Section(self._get(key), f"{self._path}.{key}")

    def maybe_section(self, key: str) -> "Section | None":
        """A section, or None when it is not there."""
        return self.section(key) if key in self._raw else None

    def sections(self) -> Iterator[tuple[str, "Section"]]:
        """The sections in it by name; values beside them are passed over."""
        for key, value in self._raw.items():
            if isinstance(value, Mapping):
                yield self._text(str(key).encode(), "a section's name"), self.section(key)

    def keys(self) -> frozenset[str]:
        """All keys."""
        return frozenset(self._raw)

    def only_section(self) -> tuple[str, "Section"]:
        """The one section in it; Malformed when there are none or several."""
        found = list(self.sections())
        if len(found) != 1:
            raise Malformed(f"{self._path}: one section was expected, not {len(found)}")
        return found[0]

    def _get(self, key: str) -> object:
        try:
            found: object = self._raw[key]
        except KeyError:
            raise Malformed(f"{self._path}.{key}: is not there") from None
        return found

    def _bytes(self, value: object, key: str) -> bytes:
        if not isinstance(value, bytes):
            raise self._wrong(key, "a value", value)
        return value

    def _text(self, value: object, key: str) -> str:
        try:
            text = self._bytes(value, key).decode()
        except UnicodeDecodeError:
            raise self._wrong(key, "UTF-8 text", value) from None
        if not text.isprintable():
            raise self._wrong(key, "printable text", value)
        return text

    def _wrong(self, key: str, wanted: str, found: object) -> Malformed:
        return Malformed(f"{self._path}.{key}: {_shown(found)} is not {wanted}")


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return "a section"
    if isinstance(value, list):
        return "a list"
    text = ascii(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
