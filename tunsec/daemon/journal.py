"""Structured logs: one line per event, `message key=value ...`, ready for the journal."""

import logging
import sys
from collections.abc import Mapping
from typing import Final, TextIO

from tunsec.model.flow import ChildId

_PRIORITY: Final = {
    logging.DEBUG: 7,
    logging.INFO: 6,
    logging.WARNING: 4,
    logging.ERROR: 3,
    logging.CRITICAL: 2,
}
"""syslog levels, as sd-daemon(3) reads them from the start of a line."""


def fields(values: Mapping[str, object]) -> dict[str, object]:
    """The `extra` of a log call: what the line is about, as key=value pairs."""
    return {"fields": values}


class LineFormatter(logging.Formatter):
    """`message key=value ...`, always one line; values with spaces are quoted."""

    def __init__(self, *, journal: bool) -> None:
        super().__init__()
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        """One line; under systemd with a syslog priority in front."""
        values: Mapping[str, object] = getattr(record, "fields", {})
        parts = [record.getMessage(), *(f"{key}={_quoted(value)}" for key, value in values.items())]
        if record.exc_info:
            parts.append(_quoted(self.formatException(record.exc_info)))
        line = " ".join(parts)
        if self._journal:
            return f"<{_PRIORITY.get(record.levelno, 6)}>{line}"
        stamp = self.formatTime(record, "%Y-%m-%dT%H:%M:%S")
        return f"{stamp}.{int(record.msecs):03d} {record.levelname.lower():7} {line}"


def _quoted(value: object) -> str:
    text = str(value)
    if text and not any(char.isspace() or char in '"=' for char in text) and text.isprintable():
        return text
    escaped = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
    return '"' + escaped.replace('"', '\\"') + '"'


def log_transition(
    log: logging.Logger, child: ChildId, *, was: str, phase: str, reason: str
) -> None:
    """One line for a flow that went from one phase to another; `reason` where there is one."""
    about: dict[str, object] = {"peer": child.peer, "flow": child.flow}
    if child.tenant is not None:
        about["tenant"] = child.tenant
    about["local"] = child.local
    if reason:
        about["reason"] = reason
    log.info(f"{was} -> {phase}", extra=fields(about))


def start_logging(*, level: str, journal: bool, stream: TextIO = sys.stderr) -> None:
    """Send tunsec's logs to a stream."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(LineFormatter(journal=journal))
    root = logging.getLogger("tunsec")
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    root.propagate = False
