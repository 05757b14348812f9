"""strongswan.conf(5) as charon reads it."""

from collections.abc import Iterable, Mapping
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunsec.wire.strongswan_conf import MAX_DEPTH, Malformed, Settings, parse_settings


def nothing(pattern: str, name: str) -> Iterable[tuple[str, str]]:
    """No file is there to be included."""
    return ()


def parsed(text: str, files: Mapping[str, str] | None = None) -> Settings:
    """The settings of a text that may include these files by their names."""

    def include(pattern: str, name: str) -> Iterable[tuple[str, str]]:
        return [(pattern, files[pattern])] if files and pattern in files else []

    return parse_settings(text, "conf", include)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("", {}),
        ("# charon { threads = 1 }\n", {}),
        ("charon {\n threads = 32 # enough\n}\n", {"charon.threads": "32"}),
        ("charon{threads=32}", {"charon.threads": "32"}),
        ("charon\n{\n  a = 1\n  b = 2 }", {"charon.a": "1", "charon.b": "2"}),
        ("load = openssl   random\tnonce\r\n", {"load": "openssl random nonce"}),
        ('a = "two  blanks" and more', {"a": "two  blanks and more"}),
        ('a = "# { } \\" \\t \\x"', {"a": '# { } " \t x'}),
        ('a = "one \\\n two"', {"a": "one  two"}),
        ('a = "one\ntwo"', {"a": "one\ntwo"}),
        ("a = x{y", {"a": "x{y"}),
        ("a =\nb = 1", {"a": None, "b": "1"}),
        ("include = yes", {"include": "yes"}),
        ("charon { plugins { vici { load = no } } }", {"charon.plugins.vici.load": "no"}),
        ("a = b = c", {"a": "b = c"}),
    ],
)
def test_values(text: str, values: dict[str, str | None]) -> None:
    assert parsed(text).values == values


def test_what_comes_later_counts() -> None:
    text = "charon { a = 1\n b = 1\n c = 1 }\ncharon { b = 2\n c =\n}"
    settings = parsed(text)
    found = [settings.value(f"charon.{key}") for key in "abc"]
    assert found == ["1", "2", None]


def test_files_are_included_in_their_place() -> None:
    text = 'charon {\n a = 1\n include one.conf\n b = 1\n}\ninclude "with blank"\ninclude none\n'
    files = {"one.conf": "a = 2\nb = 2", "with blank": "charon { c = 3 }"}
    assert parsed(text, files).values == {"charon.a": "2", "charon.b": "1", "charon.c": "3"}
    assert parsed(r"include with\ blank # why", files).values == {"charon.c": "3"}


def test_a_section_may_go_on_in_another_file() -> None:
    assert parsed("include open\na = 1\n}", {"open": "charon {"}).values == {"charon.a": "1"}


def test_references_give_what_a_section_does_not_say() -> None:
    settings = parsed(
        "base { a = 1\n e = 5\n plugins { x { b = 2 } } }\n"
        "more { a = 9\n c = 3 }\n"
        "charon : base, more { e =\n plugins { x { d = 4 } } }\n"
        "loop : loop { }\n"
    )
    assert settings.value("charon.a") == "1"
    assert settings.value("charon.c") == "3"
    assert settings.value("charon.plugins.x.b") == "2"
    assert settings.value("charon.plugins.x.d") == "4"
    assert settings.value("charon.e") is None
    assert settings.value("loop.a") is None


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("charon {\n a = 1\n", "conf: section charon has no end"),
        ("a = 1\n}", "conf:2: unexpected }"),
        ("charon.threads = 1", "conf:1: charon is followed by neither = nor {"),
        ("\n\ncharon", "conf:3: charon is followed by neither = nor {"),
        ('a = "never', "conf:1: a string has no end"),
        ('"a" = 1', 'conf:1: unexpected "'),
        ("= 1", "conf:1: unexpected ="),
    ],
)
def test_what_charon_refuses(text: str, complaint: str) -> None:
    with pytest.raises(Malformed) as caught:
        parsed(text)
    assert str(caught.value) == complaint


def test_the_file_with_the_mistake_is_named() -> None:
    with pytest.raises(Malformed, match=r"^bad\.conf:2: "):
        parsed("\n\n\ninclude bad.conf", {"bad.conf": "a = 1\n,"})


def test_files_that_include_each_other_come_to_an_end() -> None:
    with pytest.raises(Malformed, match=f"included {MAX_DEPTH} files deep"):
        parsed("include a", {"a": "include b", "b": "include a"})


@given(st.text(alphabet='ab{}=:,."#\\ \n\t\rinclude', max_size=60))
def test_any_text_is_settings_or_malformed(text: str) -> None:
    with suppress(Malformed):
        parse_settings(text, "conf", nothing)
