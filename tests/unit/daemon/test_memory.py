"""What outlives the daemon: kept whole, read back equal, and never in the way."""

import logging
from pathlib import Path

import pytest

from tunsec.daemon.memory import (
    CHARON,
    FLOWS,
    POLICY,
    SEQUENCES,
    KnownCharon,
    KnownFlows,
    KnownPolicy,
    Memory,
)
from tunsec.daemon.scope import Scope
from tunsec.keying.newest import Newest, NewestOffer
from tunsec.keying.revocation import CertificateId
from tunsec.model.clock import WallTime
from tunsec.model.names import Boot, FlowName, HostName, OfferSeq
from tunsec.policy.intent import parse_policy

POLICY_TEXT = """\
version: 1
hosts:
  db1: {address: [192.0.2.11, 2001:db8::11]}
  db2: {address: [192.0.2.12, 2001:db8::12]}
flows:
  overlay: {kind: vxlan, between: [db1, db2]}
"""
WITHOUT = POLICY_TEXT.replace("overlay", "other").replace("[db1, db2]}", "all, port: 4790}")
SIGNER = CertificateId(b"\2" * 32, 0xABCDEF)
NEWEST = Newest(
    7,
    (
        NewestOffer(
            HostName("db2"), OfferSeq(9), Boot("0" * 32), WallTime(1e9), b"\1" * 32, (SIGNER,)
        ),
    ),
)


def retired() -> KnownFlows:
    """A flow that a later policy dropped, and one that was released."""
    first = Scope(HostName("db1"), parse_policy(POLICY_TEXT, "one"), "one")
    then = first.with_policy(parse_policy(WITHOUT, "two"), "two")
    return KnownFlows(frozenset([FlowName("gone")]), then.retired)


def test_all_of_it_is_read_back_equal(tmp_path: Path) -> None:
    policy = KnownPolicy("# a comment\n\nversion: 1\udcff\n", "some where.yaml", "abc")
    memory = Memory(tmp_path)
    memory.remember_newest(NEWEST)
    memory.remember_policy(policy)
    memory.remember_flows(retired())
    memory.remember_charon(KnownCharon("5f3e"))
    again = Memory(tmp_path)
    assert again.newest() == NEWEST
    assert again.charon() == KnownCharon("5f3e")
    assert again.policy() == policy
    assert again.flows() == retired()
    assert again.flows().retired[0].blocks
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}


def test_an_empty_folder_knows_nothing(tmp_path: Path) -> None:
    memory = Memory(tmp_path)
    assert memory.newest() == Newest()
    assert memory.policy() is None
    assert memory.flows() == KnownFlows()
    assert memory.charon() is None
    assert not memory.trouble


def test_what_was_taken_back_from_charon_is_known_no_more(tmp_path: Path) -> None:
    memory = Memory(tmp_path)
    for known in (KnownCharon(), KnownCharon("5f3e")):
        memory.remember_charon(known)
        assert Memory(tmp_path).charon() == known
        memory.remember_charon(None)
        assert Memory(tmp_path).charon() is None
    memory.remember_charon(None)
    assert not memory.trouble


@pytest.mark.parametrize("name", [POLICY, FLOWS, SEQUENCES, CHARON])
@pytest.mark.parametrize("body", [b"", b"\xff\x00", b'{"released": 1}', b"# {}\n", b"[1]"])
def test_what_cannot_be_read_is_set_aside(
    tmp_path: Path, name: str, body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / name).write_bytes(body)
    memory = Memory(tmp_path)
    with caplog.at_level(logging.ERROR):
        assert memory.policy() is None
        assert memory.flows() == KnownFlows()
        assert memory.newest() == Newest()
        assert memory.charon() is None
    assert (tmp_path / f"{name}.bad").read_bytes() == body
    assert [record.getMessage() for record in caplog.records] == ["state file set aside"]


def test_a_folder_that_is_gone_is_told_once_and_forgiven(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "state"
    memory = Memory(folder)
    with caplog.at_level(logging.INFO):
        memory.remember_newest(NEWEST)
        memory.remember_newest(NEWEST)
    assert "cannot be written" in memory.trouble
    assert len(caplog.records) == 1
    folder.mkdir()
    memory.remember_newest(NEWEST)
    assert memory.trouble == ""
    assert Memory(folder).newest() == NEWEST


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    memory = Memory(tmp_path)
    memory.remember_newest(Newest(1))
    (tmp_path / f".{SEQUENCES}.new").mkdir()  # nothing can be written there
    memory.remember_newest(NEWEST)
    assert memory.trouble
    assert Memory(tmp_path).newest() == Newest(1)


def test_a_flow_kept_before_strangers_could_be_blocked_is_read(tmp_path: Path) -> None:
    memory = Memory(tmp_path)
    memory.remember_flows(retired())
    kept = tmp_path / FLOWS
    old = kept.read_text().replace('"strangers_blocked": true,', "")
    assert old != kept.read_text()
    kept.write_text(old)
    [flow] = Memory(tmp_path).flows().retired
    assert not flow.guarded.strangers_blocked
    assert flow.blocks == retired().retired[0].blocks
