"""A strict part of YAML: what is read, on which line, and what is refused."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tunsec.policy.document import MAX_BYTES, MAX_VALUES, read_document
from tunsec.policy.problems import line_of


def flaw_of(text: str) -> tuple[int, str]:
    """Line and text of the only flaw."""
    document = read_document(text)
    (flaw,) = document.flaws
    return flaw.line or line_of(flaw.path, document.lines), flaw.what


def test_values_follow_the_core_schema_of_yaml_1_2() -> None:
    text = "no: on\nv6: 1:2:3:4:5:6:7:8\nhex: 0x10\nint: -7\nfloat: 1.5\nday: 2001-01-01\nyes: true"
    assert read_document(text).value == {
        "no": "on",
        "v6": "1:2:3:4:5:6:7:8",
        "hex": 16,
        "int": -7,
        "float": 1.5,
        "day": "2001-01-01",
        "yes": True,
    }


def test_quoted_scalars_are_texts() -> None:
    assert read_document("a: '1'\nb: \"true\"\nc: |\n  5\n").value == {
        "a": "1",
        "b": "true",
        "c": "5\n",
    }


def test_each_value_has_the_line_of_its_key() -> None:
    lines = read_document("a:\n  b: 1\n  c:\n    - x\n    - {d: 2}\n").lines
    assert lines[("a",)] == 1
    assert lines[("a", "b")] == 2
    assert lines[("a", "c")] == 3
    assert lines[("a", "c", 1, "d")] == 5


def test_aliases_are_written_out() -> None:
    document = read_document("a: &hosts [db1, db2]\nb: *hosts\n")
    assert document.value == {"a": ["db1", "db2"], "b": ["db1", "db2"]}
    assert document.flaws == ()


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("", 1, "the file is empty"),
        ("# nothing\n", 1, "the file is empty"),
        ("a: 1\nb: 2\na: 3\n", 3, "the key stands twice, first on line 1"),
        ("a: 1\nb:\n", 2, "has no value"),
        ("a: [1,\n  ~]\n", 2, "an item has no value"),
        ("a: 1\n\tb: 2\n", 2, "a tab stands where YAML wants spaces"),
        ("a:\n  b: 1\n c: 2\n", 3, "not YAML"),
        ("a: 'x\n", 2, "not YAML"),
        ("a: 1\n---\nb: 2\n", 2, "a second document starts here"),
        ("a: !!python/object/apply:os.system [id]\n", 1, "the tag '!!python/object/apply:os.sys"),
        ("a: !!str 5\n", 1, "the tag '!!str'"),
        ("a: 1\nb: {<<: {c: 1}}\n", 2, "merge keys are not part"),
        ("a: &x [*x]\n", 1, "'*x' stands inside its own anchor"),
        ("a: 1\nb: *y\n", 2, "'*y' names no anchor above it"),
        ("? [a]\n: b\n", 1, "a key is a list or mapping"),
        ("a: 1\nb: \x07\n", 2, "the character U+0007 is not allowed"),
        ("a: 1\nb: \udc80\n", 2, "the file is not valid UTF-8 text"),
        (f"a: {'[' * 12}{']' * 12}\n", 1, "values stand more than 10 deep"),
    ],
)
def test_what_is_not_of_the_language_is_named_with_its_line(
    text: str, line: int, what: str
) -> None:
    found = flaw_of(text)
    assert found[0] == line
    assert found[1].startswith(what)


def test_depth_does_not_reach_the_recursion_limit() -> None:
    assert flaw_of("[" * 500_000)[1].startswith("values stand more than 10 deep")


def test_depth_through_aliases_is_bounded_too() -> None:
    text = "a: &a [x]\n" + "".join(
        f"{here}: &{here} [[[[*{before}]]]]\n" for before, here in zip("abc", "bcd", strict=True)
    )
    assert flaw_of(text)[1].startswith("values stand more than 10 deep")


def test_an_alias_bomb_is_not_expanded() -> None:
    text = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{here}: &{here} [{','.join(['*' + before] * 9)}]\n"
        for before, here in zip("abcdefg", "bcdefgh", strict=True)
    )
    assert flaw_of(text)[1] == f"aliases expand to more than {MAX_VALUES} values"


def test_a_file_that_is_too_large_is_not_read() -> None:
    assert flaw_of("a" * (MAX_BYTES + 1))[1] == f"the file has more than {MAX_BYTES} bytes"


@given(st.text(alphabet=st.sampled_from("ab:-[]{}&*!|>'\"#%@?,~ \n\t\\x0\ud800\x00é"), max_size=60))
def test_no_text_makes_it_raise(text: str) -> None:
    document = read_document(text)
    assert document.flaws or document.value is not None


@given(
    st.recursive(
        st.integers(-(10**9), 10**9)
        | st.booleans()
        | st.from_regex(r"[a-z]{2,5}x", fullmatch=True),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.from_regex(r"[a-z]{1,5}", fullmatch=True), inner, max_size=3)
        ),
        max_leaves=12,
    ).filter(lambda value: isinstance(value, dict) and value)
)
def test_reading_is_the_inverse_of_writing(value: object) -> None:
    document = read_document(yaml.safe_dump(value, default_flow_style=None))
    if not document.flaws:  # deeper than the language goes
        assert document.value == value
