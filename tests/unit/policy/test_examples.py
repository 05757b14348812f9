"""The JSON Schema and the example policies: each must keep up with the language."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from jsonschema import Draft202012Validator

from tests.unit.policy.written import documents, flow_problems, problems_of
from tunsec.model.flow import Keying, Kind
from tunsec.policy.desired import desired
from tunsec.policy.document import read_document
from tunsec.policy.intent import parse_policy
from tunsec.policy.schema import json_schema, schema_text

FOLDER = Path(__file__).parents[3] / "policies"
EXAMPLES = sorted(FOLDER.glob("*.yaml"))


def schema_errors(value: object) -> list[str]:
    """What the schema has against a document."""
    return [error.message for error in Draft202012Validator(json_schema()).iter_errors(value)]


def test_the_committed_schema_is_up_to_date() -> None:
    committed = (FOLDER / "schema.json").read_text()
    assert committed == schema_text(), (
        "make it anew: python3 -m tunsec.policy.schema > policies/schema.json"
    )


def test_the_schema_is_a_schema() -> None:
    Draft202012Validator.check_schema(json.loads(schema_text()))


def test_there_are_examples() -> None:
    assert {
        "vxlan-directory.yaml",
        "vxlan-cluster.yaml",
        "vxlan-ike.yaml",
        "mixed-keying.yaml",
        "service-address.yaml",
        "rds.yaml",
        "rocev2.yaml",
        "geneve.yaml",
        "ports.yaml",
        "tenants.yaml",
        "mixed-cluster.yaml",
        "offload.yaml",
    } <= {path.name for path in EXAMPLES}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_tells_editors_its_schema(path: Path) -> None:
    assert path.read_text().startswith("# yaml-language-server: $schema=schema.json\n")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_fits_the_schema(path: Path) -> None:
    assert schema_errors(read_document(path.read_text()).value) == []


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_loads_and_every_host_has_a_part_of_it(path: Path) -> None:
    intent = parse_policy(path.read_text(), path.name)
    for host in intent.hosts:
        assert desired(intent, host.name).children, host.name


def test_every_kind_has_an_example_and_every_keying() -> None:
    flows = [flow for path in EXAMPLES for flow in parse_policy(path.read_text(), "p").flows]
    assert {flow.kind for flow in flows} == set(Kind)
    assert {flow.keying for flow in flows} == set(Keying)


@given(documents())
def test_the_schema_takes_what_the_language_takes(document: dict[str, Any]) -> None:
    assert schema_errors(document) == []


@pytest.mark.parametrize(
    ("ike", "good"),
    [
        ("{}", True),
        ("{auth: psk, psk_file: /etc/tunsec/psk}", True),
        ("{rekey: 1h, reauth: 24h, dead_after: 10s, revocation: strict}", True),
        ("{reauth: never, dead_after: never}", True),
        ("{auth: pks}", False),
        ("{auth: psk, psk_file: psk}", False),
        ("{dead_after: 5}", False),
        ("{rekey: never}", False),
        ("{reauth: often}", False),
        ("{revocation: ifuri}", False),
        ("{dpd: 5s}", False),
    ],
)
def test_the_schema_and_the_language_agree_on_ike(ike: str, good: bool) -> None:
    text = (
        "version: 1\nhosts: {db1: {address: 192.0.2.11}, db2: {address: 192.0.2.12}}\n"
        f"ike: {ike}\nflows: {{x: {{kind: vxlan, keying: ike, between: all}}}}\n"
    )
    assert (schema_errors(read_document(text).value) == []) is good
    assert (problems_of(text) == []) is good


@pytest.mark.parametrize(
    "flow",
    [
        "{kind: vxlam, between: all}",
        "{kind: vxlan}",
        "{kind: vxlan, between: [db1]}",
        "{kind: vxlan, between: db1}",
        "{kind: vxlan, between: [db1, db2], prot: 4789}",
        "{kind: vxlan, between: [db1, db2], port: 70000}",
        "{kind: vxlan, between: [db1, db2], tenants: {Red: 1}}",
        "{kind: vxlan, between: [db1, db2], tenants: {red: 16777216}}",
        "{kind: vxlan, between: [db1, db2], rekey: {after: 60}}",
        "{kind: vxlan, between: [db1, db2], rekey: {bytes: 256}}",
        "{kind: vxlan, between: [db1, db2], rekey: {packets: 4G}}",
        "{kind: vxlan, between: [db1, db2], rekey: {jitter: 0.1}}",
    ],
)
def test_the_schema_refuses_what_the_language_refuses(flow: str) -> None:
    document = read_document(
        f"version: 1\nhosts: {{db1: {{address: 192.0.2.11}}}}\nflows: {{x: {flow}}}"
    )
    assert schema_errors(document.value) != []
    assert flow_problems(flow) != []
