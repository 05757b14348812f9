"""One value, one byte string, and no other is read."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.keying.strategies import addresses
from tunsec.keying.canonical import (
    Fields,
    Json,
    decode_canonical,
    encode_canonical,
    from_base64,
    parse_address,
    to_base64,
)

values: st.SearchStrategy[Json] = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**18), 10**18) | st.text(),
    lambda inside: st.lists(inside, max_size=4) | st.dictionaries(st.text(), inside, max_size=4),
    max_leaves=12,
)


@given(values)
def test_what_is_encoded_is_read_back(value: Json) -> None:
    body = encode_canonical(value)
    assert decode_canonical(body) == value
    assert encode_canonical(decode_canonical(body)) == body


@given(values)
def test_other_spellings_of_a_value_are_refused(value: Json) -> None:
    body = encode_canonical(value)
    for other in (json.dumps(value).encode(), json.dumps(value, ensure_ascii=False).encode()):
        if other != body:
            with pytest.raises(ValueError):
                decode_canonical(other)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_value_or_a_value_error(body: bytes) -> None:
    try:
        value = decode_canonical(body)
    except ValueError:
        return
    assert encode_canonical(value) == body


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b'{"a":1,"a":1}', "twice"),
        (b"1.0", "integer"),
        (b"1e3", "integer"),
        (b"NaN", "integer"),
        (b"-Infinity", "integer"),
        (b"9" * 5000, "digits"),
        (b"[" * 60_000, ""),
        (b"[" * 60_000 + b"]" * 60_000, "nested"),
        (b'{"a":' * 60_000 + b"1" + b"}" * 60_000, "nested"),
        ('"ä"'.encode(), "ASCII"),
        (b'"\\u0061"', "canonical"),
        (b"-0", "canonical"),
        (b" 1", "canonical"),
        (b"1\n", "canonical"),
        (b'{"b":1,"a":1}', "canonical"),
        (b"", ""),
        (b"{", ""),
    ],
)
def test_what_is_refused(body: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why or None):
        decode_canonical(body)


@given(st.binary(max_size=40))
def test_base64_round_trip(raw: bytes) -> None:
    assert from_base64(to_base64(raw)) == raw


@pytest.mark.parametrize("text", ["QQ", "QQ=", "QR==", "QQ==\n", "Q Q==", "QQ==QQ==", "Q-_=", "é"])
def test_other_base64_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="base64"):
        from_base64(text)


@given(addresses)
def test_an_address_is_read_in_its_own_form(address: object) -> None:
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    "text",
    ["192.0.2.01", "192.0.2.1/32", "2001:DB8::1", "2001:db8:0::1", "fe80::1%eth0", "1", "", "x"],
)
def test_other_spellings_of_addresses_are_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_address(text)


def test_fields_check_types_and_bounds_and_leave_nothing() -> None:
    assert Fields({"n": 5}, "x").number("n", low=5, high=5) == 5
    for value, why in ((True, "integer"), ("5", "integer"), (6, r"5\.\.5"), (None, "integer")):
        with pytest.raises(ValueError, match=why):
            Fields({"n": value}, "x").number("n", low=5, high=5)
    texts: tuple[Json, ...] = ("", "a\nb", "x" * 300, 3, None, ["a"])
    for text in texts:
        with pytest.raises(ValueError):
            Fields({"t": text}, "x").text("t")
    with pytest.raises(ValueError, match="lacks"):
        Fields({}, "x").text("t")
    with pytest.raises(ValueError, match="unknown field"):
        Fields({"t": "a"}, "x").done()
    with pytest.raises(ValueError, match="no object"):
        Fields([1], "x")
