"""YAML text -> plain values, and the line of each.

A strict part of YAML, read from the parser's events so that nothing is built before it is judged:
one document, no tags (so no objects), no merge keys, keys are plain names and stand once, bounded
size, depth and alias expansion. Plain scalars follow the core schema of YAML 1.2 (section 10.3):
only `true` and `false` are truth values, and an IPv6 address is never a number in base 60.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import yaml

from tunsec.policy.problems import Flaw, Path, shown

MAX_BYTES: Final = 1 << 20
"""Room for more than 10,000 hosts; PyYAML reads it in about 3 s."""
MAX_DEPTH: Final = 10
"""The language needs 5."""
MAX_VALUES: Final = 200_000
"""Values after aliases are expanded: as many as fit in MAX_BYTES without aliases."""

_NULL: Final = re.compile(r"|~|null|Null|NULL")
_TRUTH: Final = {"true": True, "True": True, "TRUE": True, "false": False, "False": False}
_INT: Final = re.compile(r"[-+]?[0-9]{1,20}")
_HEX: Final = re.compile(r"0x[0-9a-fA-F]{1,16}")
_FLOAT: Final = re.compile(r"[-+]?(\.[0-9]{1,20}|[0-9]{1,20}\.[0-9]{0,20})([eE][-+]?[0-9]{1,2})?")


@dataclass(frozen=True, slots=True)
class Document:
    """What a file says, and where; `flaws` are of YAML, not of the language."""

    value: object
    """dicts, lists, str, int, float, bool; never None: a key without a value is left out."""
    lines: dict[Path, int]
    flaws: tuple[Flaw, ...]


@dataclass(frozen=True, slots=True)
class _Scalar:
    value: str | int | float | bool | None
    text: str
    line: int


@dataclass(slots=True)
class _Sequence:
    line: int
    items: list["_Node"] = field(default_factory=list)


@dataclass(slots=True)
class _Mapping:
    line: int
    entries: list[tuple["_Node", "_Node"]] = field(default_factory=list)


_Node = _Scalar | _Sequence | _Mapping


class _Unreadable(Exception):
    """The text cannot be read any further."""

    def __init__(self, what: str, remedy: str, *, line: int) -> None:
        self.flaw = Flaw((), what, remedy, line)
        super().__init__(what)


def read_document(text: str) -> Document:
    """Read YAML text. Flaws that end the reading leave the value an empty dict."""
    try:
        if len(text.encode(errors="surrogatepass")) > MAX_BYTES:
            raise _Unreadable(
                f"the file has more than {MAX_BYTES} bytes",
                "a policy of 10,000 hosts needs less: is this the right file?",
                line=1,
            )
        text.encode()
        root = _Composer(text).compose()
        expander = _Expander()
        value = expander.expand(root, path=(), line=root.line)
    except UnicodeEncodeError as error:
        line = text.count("\n", 0, error.start) + 1
        return _unread(Flaw((), "the file is not valid UTF-8 text", "save it as UTF-8", line))
    except _Unreadable as error:
        return _unread(error.flaw)
    return Document(value, expander.lines, tuple(expander.flaws))


def _unread(flaw: Flaw) -> Document:
    return Document({}, {(): 1}, (flaw,))


def _resolve(event: yaml.ScalarEvent) -> str | int | float | bool | None:
    """The value of a scalar under the YAML 1.2 core schema."""
    text: str = event.value
    if event.style is not None:
        return text
    if _NULL.fullmatch(text):
        return None
    if text in _TRUTH:
        return _TRUTH[text]
    if _INT.fullmatch(text):
        return int(text)
    if _HEX.fullmatch(text):
        return int(text, 16)
    return float(text) if _FLOAT.fullmatch(text) else text


class _Composer:
    """Parser events -> nodes. Recursion is bounded by MAX_DEPTH."""

    def __init__(self, text: str) -> None:
        self._events = self._parse(text)
        self._anchors: dict[str, _Node] = {}
        self._open: set[str] = set()

    def compose(self) -> _Node:
        """The only document of the text."""
        root: _Node | None = None
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                if root is not None:
                    raise _Unreadable(
                        "a second document starts here", "keep one document", line=_line(event)
                    )
                root = self._node(next(self._events), depth=0)
        if root is None or (isinstance(root, _Scalar) and root.value is None):
            raise _Unreadable("the file is empty", "start with 'version: 1'", line=1)
        return root

    def _parse(self, text: str) -> Iterator[yaml.Event]:
        """Events, with the parser's errors in the operator's words."""
        try:
            yield from yaml.parse(text, Loader=yaml.SafeLoader)
        except yaml.reader.ReaderError as error:
            line = text.count("\n", 0, max(error.position, 0)) + 1
            raise _Unreadable(
                f"the character U+{ord(text[error.position]):04X} is not allowed in YAML",
                "delete it",
                line=line,
            ) from error
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = mark.line + 1 if mark else 1
            raise _syntax(text, error, line=line) from error
        except ValueError as error:  # PyYAML on '\U00110000' in a quoted text
            raise _Unreadable(f"not YAML: {error}", "correct the escape", line=1) from error

    def _node(self, event: yaml.Event, *, depth: int) -> _Node:
        line = _line(event)
        if depth > MAX_DEPTH:
            raise _too_deep(line)
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event.anchor or "", line=line)
        tag: str | None = getattr(event, "tag", None)
        if tag is not None:
            raise _Unreadable(
                f"the tag '{shown(tag.replace('tag:yaml.org,2002:', '!!'))}' is not part of the "
                "language",
                "delete the tag: the language knows what type each key has",
                line=line,
            )
        anchor: str | None = getattr(event, "anchor", None)
        if anchor is not None:
            self._open.add(anchor)
        node = self._body(event, line=line, depth=depth)
        if anchor is not None:
            self._open.discard(anchor)
            self._anchors[anchor] = node
        return node

    def _body(self, event: yaml.Event, *, line: int, depth: int) -> _Node:
        if isinstance(event, yaml.ScalarEvent):
            return _Scalar(_resolve(event), event.value, line)
        if isinstance(event, yaml.SequenceStartEvent):
            sequence = _Sequence(line)
            while not isinstance(inner := next(self._events), yaml.SequenceEndEvent):
                sequence.items.append(self._node(inner, depth=depth + 1))
            return sequence
        mapping = _Mapping(line)
        while not isinstance(inner := next(self._events), yaml.MappingEndEvent):
            key = self._node(inner, depth=depth + 1)
            mapping.entries.append((key, self._node(next(self._events), depth=depth + 1)))
        return mapping

    def _alias(self, anchor: str, *, line: int) -> _Node:
        if anchor in self._open:
            raise _Unreadable(
                f"'*{shown(anchor)}' stands inside its own anchor", "write it out", line=line
            )
        if anchor not in self._anchors:
            raise _Unreadable(
                f"'*{shown(anchor)}' names no anchor above it",
                f"write '&{shown(anchor)}' at the value it repeats, or quote a leading '*'",
                line=line,
            )
        return self._anchors[anchor]


class _Expander:
    """Nodes -> plain values, with every alias written out, within bounds."""

    def __init__(self) -> None:
        self.lines: dict[Path, int] = {}
        self.flaws: list[Flaw] = []
        self._values = 0

    def expand(self, node: _Node, *, path: Path, line: int) -> object:
        """The value of a node; `line` is that of its key where it has one."""
        self._values += 1
        if self._values > MAX_VALUES:
            raise _Unreadable(
                f"aliases expand to more than {MAX_VALUES} values", "write fewer aliases", line=line
            )
        if len(path) > MAX_DEPTH:
            raise _too_deep(line)
        self.lines[path] = line
        match node:
            case _Scalar():
                return node.value
            case _Sequence():
                return self._items(node, path=path)
            case _Mapping():
                return self._entries(node, path=path)

    def _items(self, node: _Sequence, *, path: Path) -> list[object]:
        values: list[object] = []
        for item in node.items:
            here = (*path, len(values))
            value = self.expand(item, path=here, line=item.line)
            if value is None:
                what = "an item has no value"
                self._flaw(here, what, "give it one or delete it", line=item.line)
            else:
                values.append(value)
        return values

    def _entries(self, node: _Mapping, *, path: Path) -> dict[str, object]:
        values: dict[str, object] = {}
        first: dict[str, int] = {}
        for key, item in node.entries:
            if not isinstance(key, _Scalar):
                raise _Unreadable("a key is a list or mapping", "use a name as key", line=key.line)
            here = (*path, key.text)
            if key.text in first:
                what = f"the key stands twice, first on line {first[key.text]}"
                self._flaw(here, what, "delete one of the two", line=key.line)
                continue
            first[key.text] = key.line
            value = self.expand(item, path=here, line=key.line)
            if key.text == "<<":
                self._flaw(here, "merge keys are not part of the language", "use 'defaults'")
            elif value is None:
                self._flaw(here, "has no value", "give it one or delete the key")
            else:
                values[key.text] = value
        return values

    def _flaw(self, path: Path, what: str, remedy: str, *, line: int | None = None) -> None:
        self.flaws.append(Flaw(path, what, remedy, line))


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 1


def _too_deep(line: int) -> _Unreadable:
    return _Unreadable(
        f"values stand more than {MAX_DEPTH} deep", "the language needs 5: unnest them", line=line
    )


def _syntax(text: str, error: yaml.MarkedYAMLError, *, line: int) -> _Unreadable:
    """A syntax error of PyYAML with a remedy for the common ones."""
    rows = text.splitlines()
    row = rows[line - 1] if line <= len(rows) else ""
    indent = row[: len(row) - len(row.lstrip())]
    if "\t" in indent or "\\t" in str(error.problem):
        return _Unreadable("a tab stands where YAML wants spaces", "indent by spaces", line=line)
    what = ", ".join(filter(None, [error.problem, error.context]))
    return _Unreadable(
        f"not YAML: {shown(what, limit=200)}",
        "check indentation, quotes and brackets here",
        line=line,
    )
