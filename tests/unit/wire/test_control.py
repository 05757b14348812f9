"""The control API's codec: everything it says comes back, everything else is refused by path."""

import contextlib
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunsec.model.errors import Problem
from tunsec.wire.control import (
    ApplyReport,
    DirectoryStatus,
    DriftStatus,
    ErrorBody,
    FlowDrops,
    FlowStatus,
    GuardStatus,
    Malformed,
    PlanReport,
    PolicyBody,
    PolicyStatus,
    ReleaseBody,
    ReleaseReport,
    Status,
    WaitBody,
    WaitReport,
    decode,
    encode,
)
from tunsec.wire.control_explain import EspBody, ExplainBody, Explanation, PacketBody, SpReport

SHAPES = (
    ApplyReport,
    ErrorBody,
    ExplainBody,
    Explanation,
    PlanReport,
    PolicyBody,
    ReleaseBody,
    ReleaseReport,
    Status,
    WaitBody,
    WaitReport,
)

text = st.text(max_size=8)
counts = st.integers(0, 2**64 - 1)
spans = st.floats(0, 1e9)
drops = st.builds(FlowDrops, counts, counts, counts, counts)
flow = st.builds(FlowStatus, *[text] * 3, st.none() | text, *[text] * 6, st.booleans())
bodies: dict[type, st.SearchStrategy[object]] = {
    Status: st.builds(
        Status,
        host=text,
        version=text,
        uptime=spans,
        flows=st.lists(flow, max_size=3).map(tuple),
        policy=st.builds(PolicyStatus, text, text, spans, text),
        directory=st.none() | st.builds(DirectoryStatus, text, st.booleans(), text, counts, counts),
        guard=st.builds(GuardStatus, st.booleans(), text, st.dictionaries(text, drops, max_size=3)),
        drift=st.builds(DriftStatus, counts, counts, counts),
        warnings=st.lists(text, max_size=2).map(tuple),
    ),
    ErrorBody: st.builds(
        ErrorBody, text, text, st.lists(st.builds(Problem, text, text, text)).map(tuple)
    ),
    ExplainBody: st.builds(
        ExplainBody,
        st.none() | text,
        st.none() | text,
        st.none() | st.builds(PacketBody, text, text, text, st.none() | counts, st.none() | counts),
        st.none() | st.builds(EspBody, text, st.none() | text),
    ),
    Explanation: st.builds(
        Explanation,
        *[text] * 3,
        st.lists(text, max_size=2).map(tuple),
        st.lists(
            st.builds(SpReport, *[text] * 3, counts, counts, text, used=st.none() | spans),
            max_size=2,
        ).map(tuple),
    ),
    WaitBody: st.builds(WaitBody, st.none() | text, spans),
    ReleaseBody: st.builds(ReleaseBody, st.none() | text),
}


@pytest.mark.parametrize("shape", bodies, ids=lambda shape: shape.__name__)
@settings(deadline=None)
@given(data=st.data())
def test_what_is_said_is_understood(shape: type, data: st.DataObject) -> None:
    body = data.draw(bodies[shape])
    assert decode(shape, encode(body)) == body


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.__name__)
@given(
    raw=st.binary(max_size=64)
    | st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | text,
        lambda inner: st.lists(inner) | st.dictionaries(text, inner),
        max_leaves=8,
    ).map(lambda value: json.dumps(value).encode())
)
def test_anything_else_is_malformed_and_nothing_worse(shape: type, raw: bytes) -> None:
    with contextlib.suppress(Malformed):
        assert isinstance(decode(shape, raw), shape)


@pytest.mark.parametrize(
    ("raw", "complaint"),
    [
        ('{"flow": 5}', "WaitBody.flow: int given, str wanted"),
        ('{"timeout": true}', "WaitBody.timeout: bool given, float wanted"),
        ('{"timeout": NaN}', "NaN is no number"),
        ('{"timeout": 1e999}', "WaitBody.timeout: inf is no number"),
        ('{"time": 5}', "WaitBody: there is no key 'time'"),
        ('{"timeout": 1, "timeout": 2}', "a key stands twice"),
        ("[]", "WaitBody: list given, dict wanted"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_the_complaint_names_the_place(raw: str, complaint: str) -> None:
    with pytest.raises(Malformed, match=re.escape(complaint)):
        decode(WaitBody, raw.encode())


def test_a_missing_key_is_named() -> None:
    with pytest.raises(Malformed, match=r"Status: the key 'host' is missing"):
        decode(Status, b"{}")


def test_whole_seconds_may_be_written_without_a_point() -> None:
    assert decode(WaitBody, b'{"timeout": 5}') == WaitBody(timeout=5.0)
