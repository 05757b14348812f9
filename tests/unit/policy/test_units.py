"""Spans, sizes, counts, percentages."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunsec.policy.problems import Wrong
from tunsec.policy.units import (
    NO_LIMIT,
    parse_count,
    parse_percent,
    parse_size,
    parse_span,
    size_text,
    span_text,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1h", 3600), ("90s", 90), ("1h30m", 5400), ("500ms", 0.5), ("1.5h", 5400), ("2d", 172_800)],
)
def test_spans(text: str, seconds: float) -> None:
    assert parse_span(text) == seconds


@pytest.mark.parametrize(
    "value",
    ["", "1", "h", "1 h", "1H", "30m1h", "1h1h", "-1h", "1h ", "1 fortnight", "\u0661h", True, []],
)
def test_what_is_no_span(value: object) -> None:
    with pytest.raises(Wrong):
        parse_span(value)


def test_a_number_without_unit_gets_the_unit_as_remedy() -> None:
    with pytest.raises(Wrong) as caught:
        parse_span(90)
    assert caught.value.flaws[0].remedy == "write '90s' for seconds"


@pytest.mark.parametrize(
    ("text", "count"),
    [("256GiB", 2**38), ("1.5KiB", 1536), ("1MB", 10**6), ("7B", 7), ("none", NO_LIMIT)],
)
def test_sizes(text: str, count: int) -> None:
    assert parse_size(text) == count


@pytest.mark.parametrize("value", ["256", "GiB", "1 giB", "0B", "9999999999PiB", 256, True, {}])
def test_what_is_no_size(value: object) -> None:
    with pytest.raises(Wrong):
        parse_size(value)


@pytest.mark.parametrize("value", [0, -1, 2**63, "4G", True, 1.0])
def test_what_is_no_count(value: object) -> None:
    with pytest.raises(Wrong):
        parse_count(value)


def test_percentages() -> None:
    assert parse_percent("10%") == pytest.approx(0.1)
    with pytest.raises(Wrong) as caught:
        parse_percent(0.1)
    assert caught.value.flaws[0].remedy == "write '10%'"


@given(st.integers(1, 400 * 86_400 * 1000))
def test_spans_are_shown_as_they_are_read(milliseconds: int) -> None:
    assert parse_span(span_text(milliseconds / 1000)) == pytest.approx(milliseconds / 1000)


@given(st.integers(1, 2**60))
def test_sizes_are_shown_as_they_are_read(count: int) -> None:
    assert parse_size(size_text(count)) == count
