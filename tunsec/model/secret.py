"""Key material in a type of its own: it cannot be printed, compared or logged by mistake."""

from typing import Self


class Secret:
    """Key bytes. Compares by identity, prints its length only, can be wiped once.

    Wiping is best effort: Python may have copied the bytes on their way in or out.
    """

    __slots__ = ("_raw", "_wiped")

    def __init__(self, raw: bytes | bytearray) -> None:
        self._raw = bytearray(raw)
        self._wiped = False

    def __repr__(self) -> str:
        return f"Secret({len(self._raw)} bytes{', wiped' if self._wiped else ''})"

    def __len__(self) -> int:
        return len(self._raw)

    def __reduce__(self) -> str | tuple[object, ...]:
        raise TypeError("a Secret is never pickled or copied")

    @property
    def wiped(self) -> bool:
        """Whether the bytes are gone."""
        return self._wiped

    def reveal(self) -> bytes:
        """The bytes themselves, for `wire/`, `keying/` and `adapters/` only.

        Raises ValueError once wiped: zeros must never reach the kernel as a key.
        """
        if self._wiped:
            raise ValueError("this secret was wiped")
        return bytes(self._raw)

    def wipe(self) -> None:
        """Overwrite the bytes with zeros."""
        self._raw[:] = bytes(len(self._raw))
        self._wiped = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.wipe()
