"""docs/policy.md keeps up with the language: its keys, transcripts, list of what is later."""

import argparse
import re
from pathlib import Path

import pytest

from tunsec.cli.check import add_parser
from tunsec.policy.intent import parse_policy
from tunsec.policy.release import ANYTHING, LATER
from tunsec.policy.schema import json_schema

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "policy.md").read_text()
ERRORS = PAGE[PAGE.index("\n## Errors\n") :]


def blocks(language: str, *, of: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", of, flags=re.DOTALL)


def keys_of_the_language() -> set[str]:
    schema = json_schema()
    entries = [schema, *schema["$defs"].values()]
    return {key for entry in entries for key in entry.get("properties", {})}


@pytest.mark.parametrize("key", sorted(keys_of_the_language()))
def test_every_key_is_explained(key: str) -> None:
    assert re.search(rf"^\| `{key}` \||^### {key}$", PAGE, flags=re.MULTILINE)


@pytest.mark.parametrize("transcript", blocks("console", of=ERRORS))
def test_transcripts_are_real(
    transcript: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command, _, output = transcript.partition("\n")
    monkeypatch.chdir(ROOT)
    if "storage.yaml" in command:
        (tmp_path / "storage.yaml").write_text(blocks("yaml", of=ERRORS)[0])
        monkeypatch.chdir(tmp_path)
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    args = parser.parse_args(command.removeprefix("$ tunsec ").split())
    args.run(args)
    assert capsys.readouterr().out == output


def test_what_is_later_is_listed_and_nothing_else() -> None:
    page = PAGE[PAGE.index("\n## Not in this release\n") :]
    shown = {
        word.rpartition(": ")[2]
        for line in re.findall(r"^- (.*)$", page, flags=re.MULTILINE)
        for word in re.findall(r"`([^`]+)`", line)
    }
    keyed = {row.where[-1] for row in LATER if row.value == ANYTHING}
    valued = {row.value for row in LATER if row.value != ANYTHING}
    assert shown == keyed | valued


def test_the_first_policy_is_good() -> None:
    assert parse_policy(blocks("yaml", of=PAGE)[0], "docs/policy.md").flows
