"""One line per event, whatever is in it."""

import io
import logging

from hypothesis import given
from hypothesis import strategies as st

from tunsec.daemon.journal import LineFormatter, fields, start_logging


def line(values: dict[str, object], *, journal: bool = False) -> str:
    """A record with these fields as it is written."""
    record = logging.LogRecord("tunsec", logging.WARNING, "", 0, "it happened", None, None)
    record.__dict__.update(fields(values))
    return LineFormatter(journal=journal).format(record)


def test_values_are_quoted_when_they_must_be() -> None:
    shown = line({"peer": "db2", "reason": 'no "offer" yet', "spi": 7, "empty": ""})
    assert shown.endswith('it happened peer=db2 reason="no \\"offer\\" yet" spi=7 empty=""')
    assert " warning " in shown


def test_the_journal_gets_a_priority() -> None:
    assert line({}, journal=True) == "<4>it happened"


@given(st.text())
def test_nothing_makes_a_second_line(text: str) -> None:
    shown = line({"value": text})
    assert len(shown.splitlines()) == 1
    assert shown.isprintable()


def test_only_tunsec_is_logged_and_each_line_once() -> None:
    stream = io.StringIO()
    for _ in range(2):
        start_logging(level="info", journal=True, stream=stream)
    logging.getLogger("tunsec.engine").info("here")
    logging.getLogger("tunsec.engine").debug("not here")
    assert stream.getvalue() == "<6>here\n"
