"""charon's configuration files as it reads them: sections, includes, references.

Written after strongswan.conf(5) and charon's own scanner (src/libstrongswan/settings). Reading
files is the caller's part: `include` gets a pattern and the name of the file in which it stands.
charon refuses a configuration with a mistake in it as a whole; here that is Malformed with file
and line.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from tunsec.model.errors import TunsecError

MAX_DEPTH: Final = 32
"""Files that include each other without end never get charon anywhere either."""

_BLANK: Final = re.compile(r"(?:[ \t\r\n]|#[^\n]*)+")
_NAME: Final = re.compile(r'[^#{}:.,="\r\n\t ]+')
_REFERENCE: Final = re.compile(r'[^#{}:.,="\r\n\t ]+(?:\.[^#{}:.,="\r\n\t ]+)*')
_INCLUDE: Final = re.compile(r"include[\t ]+(?=[^=])")
_PATTERN: Final = re.compile(r'(?:\\["#} ]|[^"#}\r\n\t ])+')
_GAP: Final = re.compile(r"[ \t\r]+")
_WORD: Final = re.compile(r'[^#}"\r\n\t ]+')
_STRING: Final = re.compile(r'"((?:\\.|[^\\"])*)"', re.DOTALL)
_ESCAPE: Final = re.compile(r"\\(\r?\n|.)|\r", re.DOTALL)
_ESCAPED: Final = {"n": "\n", "r": "\r", "t": "\t"}

Include = Callable[[str, str], Iterable[tuple[str, str]]]
"""Pattern and the file in which it stands -> names and texts of the files, in order."""


class Malformed(TunsecError):
    """Text that charon refuses; says where."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that the files say, by full name: `charon.plugins.kernel-netlink.timeout`.

    None is a key without a value: charon's default. `references` are sections from which another
    takes what it does not say itself.
    """

    values: Mapping[str, str | None]
    references: Mapping[str, tuple[str, ...]]

    def value(self, name: str) -> str | None:
        """A value, or None when charon's default holds."""
        return self._value(name, frozenset())

    def _value(self, name: str, seen: frozenset[str]) -> str | None:
        if name in seen:
            return None
        if name in self.values:
            return self.values[name]
        parts = name.split(".")
        for depth in range(len(parts) - 1, 0, -1):
            section, rest = ".".join(parts[:depth]), ".".join(parts[depth:])
            for reference in self.references.get(section, ()):
                found = self._value(f"{reference}.{rest}", seen | {name})
                if found is not None:
                    return found
        return None


class _Token(NamedTuple):
    """`kind` is a sign of the grammar, or `name`, `value`, `references`."""

    kind: str
    where: str
    text: str = ""
    texts: tuple[str, ...] = ()
    """The parts of a value, or the referenced sections."""


def parse_settings(text: str, name: str, include: Include) -> Settings:
    """The settings of a file and all that it includes; raises Malformed."""
    values: dict[str, str | None] = {}
    references: dict[str, tuple[str, ...]] = {}
    path: list[str] = []
    tokens = _tokens(text, name, include, depth=0)
    for token in tokens:
        if token.kind == "}" and path:
            path.pop()
            continue
        if token.kind != "name":
            raise Malformed(f"{token.where}: unexpected {token.text or token.kind}")
        key = ".".join((*path, token.text))
        following = next(tokens, None)
        if following is not None and following.kind == "references":
            references[key] = references.get(key, ()) + following.texts
            following = next(tokens, None)
        elif following is not None and following.kind == "value":
            values[key] = " ".join(following.texts) if following.texts else None
            continue
        if following is None or following.kind != "{":
            raise Malformed(f"{token.where}: {token.text} is followed by neither = nor {{")
        path.append(token.text)
    if path:
        raise Malformed(f"{name}: section {'.'.join(path)} has no end")
    return Settings(values, references)


def _tokens(text: str, name: str, include: Include, *, depth: int) -> Iterator[_Token]:
    """The tokens of a file, those of included files in their place."""
    if depth > MAX_DEPTH:
        raise Malformed(f"{name}: included {MAX_DEPTH} files deep")
    place = 0
    while place < len(text):
        where = f"{name}:{text.count(chr(10), 0, place) + 1}"
        if blank := _BLANK.match(text, place):
            place = blank.end()
        elif started := _INCLUDE.match(text, place):
            pattern, place = _pattern(text, started.end(), where)
            for file, body in include(pattern, name) if pattern else ():
                yield from _tokens(body, file, include, depth=depth + 1)
        elif found := _NAME.match(text, place):
            yield _Token("name", where, found.group())
            place = found.end()
        elif text[place] == "=":
            texts, place = _value(text, place + 1, where)
            yield _Token("value", where, "=", texts)
        elif text[place] == ":":
            texts, place = _references(text, place + 1)
            yield _Token("references", where, ":", texts)
        else:
            yield _Token(text[place], where)
            place += 1


def _value(text: str, place: int, where: str) -> tuple[tuple[str, ...], int]:
    """The parts of a value up to the end of the line, a comment or the section's end."""
    parts: list[str] = []
    while place < len(text) and text[place] not in "#}\n":
        if gap := _GAP.match(text, place):
            place = gap.end()
        elif text[place] == '"':
            part, place = _string(text, place, where)
            parts.append(part)
        elif word := _WORD.match(text, place):
            parts.append(word.group())
            place = word.end()
    return tuple(parts), place


def _references(text: str, place: int) -> tuple[tuple[str, ...], int]:
    """Names of sections, with commas between them."""
    names: list[str] = []
    while True:
        if blank := _BLANK.match(text, place):
            place = blank.end()
        elif text.startswith(",", place):
            place += 1
        elif found := _REFERENCE.match(text, place):
            names.append(found.group())
            place = found.end()
        else:
            return tuple(names), place


def _pattern(text: str, place: int, where: str) -> tuple[str, int]:
    """What to include: a string, or all up to a blank; blanks and signs may be escaped."""
    if text.startswith('"', place):
        return _string(text, place, where)
    found = _PATTERN.match(text, place)
    if found is None:
        return "", place
    return re.sub(r'\\(["#} ])', r"\1", found.group()), found.end()


def _string(text: str, place: int, where: str) -> tuple[str, int]:
    """A string in quotes; it may go over several lines."""
    found = _STRING.match(text, place)
    if found is None:
        raise Malformed(f"{where}: a string has no end")
    return _ESCAPE.sub(_unescaped, found.group(1)), found.end()


def _unescaped(escape: re.Match[str]) -> str:
    """An escaped end of line joins two lines; carriage returns do not count."""
    what = escape.group(1) or "\n"
    return "" if what.endswith("\n") else _ESCAPED.get(what, what)
