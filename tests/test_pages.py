"""README and docs stay true: links lead somewhere, commands and policies of the README are real."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import tunsec
from tunsec.cli.__main__ import DAEMON, OFFLINE
from tunsec.policy.intent import parse_policy
from tunsec.policy.release import ANYTHING, LATER

TOP = Path(__file__).parents[1]
PAGES = [*sorted(TOP.glob("*.md")), *sorted((TOP / "docs").glob("*.md"))]
README = (TOP / "README.md").read_text()
LINK = re.compile(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)")


def prose(text: str) -> str:
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Of its headings, as forges make them."""
    heads = re.findall(r"^#+ (.*)$", prose(page.read_text()), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head).lower().replace(" ", "-") for head in heads}


def blocks(language: str) -> Iterator[str]:
    yield from re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for where, anchor in LINK.findall(prose(page.read_text())):
        target = (page.parent / where).resolve() if where else page
        assert target.exists(), f"{page.name}: {where}"
        if anchor:
            assert anchor in anchors(target), f"{page.name}: {where}#{anchor}"


def test_files_named_by_the_map_are_there() -> None:
    page = (TOP / "docs" / "architecture.md").read_text()
    for name in re.findall(r"`((?:\w+/)+(?:\w+\.py)?)`", page):
        places = [TOP / name, TOP / "tunsec" / name]
        assert any(place.exists() for place in places), name


def test_the_first_policy_is_good() -> None:
    (text,) = blocks("yaml")
    assert [flow.name for flow in parse_policy(text, "README.md").flows] == ["overlay"]


def test_commands_of_the_readme_exist() -> None:
    shown = "\n".join([*blocks("sh"), *blocks("console")])
    named = set(re.findall(r"(?:^|# |&& )tunsec ([a-z]+)\b", shown, flags=re.MULTILINE))
    assert named, "no commands found"
    assert named <= DAEMON.keys() | OFFLINE.keys()
    listed = README[README.index("The command has") :].partition(".")[0]
    assert set(re.findall(r"`(\w+)`", listed)) == DAEMON.keys() | OFFLINE.keys()


def test_targets_of_make_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (TOP / "Makefile").read_text(), flags=re.MULTILINE))
    pages = "\n".join(page.read_text() for page in PAGES)
    assert set(re.findall(r"^\$ make ([a-z-]+)", pages, flags=re.MULTILINE)) <= targets


def test_what_is_later_is_named_in_the_readme_and_nothing_else() -> None:
    start = README.index("refused by name until they come")
    named = set(re.findall(r"`([^`]+)`", README[start:].partition("\n\n")[0]))
    later = {
        f"{row.where[-1]}: {row.value}" if row.where[-1] in ("mode", "keying") else row.value
        for row in LATER
        if row.value != ANYTHING
    }
    later |= {row.where[-1] for row in LATER if row.value == ANYTHING}
    assert named == later


def test_the_version_is_one() -> None:
    project = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
    assert project["version"] == tunsec.__version__
