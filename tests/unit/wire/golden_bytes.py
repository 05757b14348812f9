"""Bytes that `ip xfrm` sent and a kernel answered, in golden/: two comment lines (the command, the
version and what it is), then hex. Captured on a little-endian machine."""

from pathlib import Path
from typing import Final, NamedTuple

from tunsec.wire.netlink import Message, attributes, messages

_FOLDER: Final = Path(__file__).parent / "golden"


class Golden(NamedTuple):
    """A captured datagram, its first message, and the command that made it."""

    command: str
    raw: bytes
    message: Message


def golden(name: str) -> Golden:
    """The capture of that name."""
    command, _version, *rows = (_FOLDER / f"{name}.hex").read_text().splitlines()
    raw = bytes.fromhex("".join(rows))
    return Golden(command.removeprefix("# "), raw, next(messages(raw)))


def golden_names(prefix: str) -> list[str]:
    """Names of all captures that start so."""
    return sorted(path.stem for path in _FOLDER.glob(f"{prefix}*.hex"))


def parts(payload: bytes, head: int) -> tuple[bytes, list[tuple[int, bytes]]]:
    """A payload's struct and its attributes in the order of their types."""
    found = attributes(payload, head, len(payload))
    return payload[:head], sorted((kind, payload[first:last]) for kind, first, last in found)
