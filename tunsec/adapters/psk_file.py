"""The pre-shared key of IKE, from the file that the policy names."""

from pathlib import Path
from typing import Final

from tunsec.adapters.key_files import problem, read_private
from tunsec.model.secret import Secret

MAX_PSK: Final = 4096
MIN_PSK: Final = 32
"""Bytes. Who answers in a peer's place once can try guesses at leisure (RFC 7296 section 2.15)."""
MIN_SYMBOLS: Final = 8
"""32 random hex digits have about 14 different ones."""


def read_psk(path: Path) -> Secret:
    """The secret of a private file, without the newline at its end; raises PolicyError."""
    remedy = f"openssl rand -hex 32 > {path}, the same on every host, mode 0600 of tunsecd's user"
    body = read_private(path, most=MAX_PSK, remedy=remedy).rstrip(b"\r\n")
    if len(body) < MIN_PSK or len(set(body)) < MIN_SYMBOLS:
        found = f"has {len(body)} bytes and {len(set(body))} different ones: too weak"
        raise problem(path, found, remedy)
    return Secret(body)
