"""Judging what a kernel can do. The attempts themselves are in tests/lab/test_doctor.py."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.namespaces import missing_capability
from tunsec.cli.doctor.finding import Verdict
from tunsec.cli.doctor.kernel import (
    check_esn,
    check_kernel,
    check_overlay,
    check_settings,
    check_sps,
    judge_aeads,
    judge_speed,
    judge_versions,
    probe_sa,
    try_sa,
)
from tunsec.cli.doctor.part import Part
from tunsec.model.aead import Aead, AeadSpeed
from tunsec.model.errors import Refused
from tunsec.model.flow import Kind
from tunsec.model.sa import Replay, Sa, SaId
from tunsec.model.sp import Sp, SpId
from tunsec.model.step import AddSa, RemoveSa, Step
from tunsec.policy.intent import parse_policy

GCM, GCM256, CHACHA20 = Aead.AES_128_GCM, Aead.AES_256_GCM, Aead.CHACHA20_POLY1305
WELL = {(version, aead): "" for version in (4, 6) for aead in Aead}


def part(*, aead: str = "auto", address: str = "192.0.2.11") -> Part:
    """A host with one flow."""
    text = (
        "version: 1\nhosts:\n"
        f"  db1: {{address: {address}}}\n"
        "  db2: {address: [192.0.2.12, 2001:db8::12]}\n"
        f"flows:\n  overlay: {{kind: vxlan, between: all, aead: {aead}}}\n"
    )
    return Part.of(parse_policy(text, "p"), "db1")


def speeds(gcm: float, chacha20: float) -> tuple[AeadSpeed, ...]:
    """In Gbit/s."""
    return (AeadSpeed(GCM, int(gcm * 1e9 / 8)), AeadSpeed(CHACHA20, int(chacha20 * 1e9 / 8)))


class Ignoring:
    """A kernel that takes everything and does without sequence numbers of 64 bits, or that keeps
    what it shall remove."""

    def __init__(self, *, keeps: bool = False) -> None:
        self.keeps = keeps
        self.held: dict[SaId, Sa] = {}

    def apply(self, steps: Sequence[Step]) -> list[Refused | None]:
        for step in steps:
            if isinstance(step, AddSa):
                self.held[step.sa.id] = replace(step.sa, replay=Replay())
        removed = any(isinstance(step, RemoveSa) for step in steps)
        refused = Refused("remove", reason="Device or resource busy")
        return [refused if self.keeps and removed else None for _ in steps]

    def sas(self) -> dict[SaId, Sa]:
        return self.held

    def sps(self) -> dict[SpId, Sp]:
        return {}

    def sa(self, sa_id: SaId) -> Sa | None:
        return self.held.get(sa_id)

    def sp(self, sp_id: SpId) -> Sp | None:
        return None


def test_what_the_kernel_ignores_is_seen() -> None:
    finding = check_esn(Ignoring(), probe_sa(GCM))
    assert finding.verdict is Verdict.PROBLEM
    assert finding.found == (
        "asked for aes-128-gcm, 64-bit, window 1024, the kernel made aes-128-gcm, 32-bit, window 0"
    )
    assert try_sa(Ignoring(), probe_sa(GCM)) == ""
    kept = try_sa(Ignoring(keeps=True), probe_sa(GCM))
    assert kept == "it cannot be removed: Device or resource busy"
    finding = check_sps(Ignoring())
    assert finding.verdict is Verdict.PROBLEM
    assert finding.found.endswith(": the kernel made nothing")


def test_a_key_that_was_tried_is_wiped() -> None:
    sa = probe_sa(CHACHA20)
    try_sa(Ignoring(), sa)
    assert sa.key is not None
    assert sa.key.wiped


def test_an_ip_version_that_the_policy_does_not_use() -> None:
    without = WELL | {(6, aead): "no ESP" for aead in Aead}
    four, six = judge_versions(without, part())
    assert (four.verdict, six.verdict, six.found) == (Verdict.OK, Verdict.WARNING, "no ESP")
    *_, six = judge_versions(without, part(address="2001:db8::11"))
    assert six.verdict is Verdict.PROBLEM
    *_, six = judge_versions(without, None)
    assert six.verdict is Verdict.PROBLEM


def test_an_aead_that_is_lacking() -> None:
    without = WELL | {(4, CHACHA20): "not found", (6, CHACHA20): "not found"}
    found = {finding.check: finding for finding in judge_aeads(without, part())}
    assert found[GCM].verdict is Verdict.OK
    assert (found[CHACHA20].verdict, found[CHACHA20].found) == (Verdict.WARNING, "not found")
    found = {one.check: one for one in judge_aeads(without, part(aead=CHACHA20))}
    assert found[CHACHA20].verdict is Verdict.PROBLEM
    assert "flow overlay has no other" in found[CHACHA20].found
    assert "chacha20poly1305" in found[CHACHA20].remedy


def test_an_aead_counts_if_it_works_over_one_ip_version() -> None:
    half = WELL | {(6, GCM): "no"}
    assert [finding.verdict for finding in judge_aeads(half, part())] == [Verdict.OK] * 3


def test_a_policy_that_insists_on_a_slow_aead() -> None:
    assert judge_speed(part(), speeds(8, 2), has_aes=True).verdict is Verdict.OK
    slow = judge_speed(part(aead=CHACHA20), speeds(8, 2), has_aes=True)
    assert slow.verdict is Verdict.WARNING
    assert "flow overlay must use chacha20-poly1305" in slow.found
    assert "aes-128-gcm 8 Gbit/s, chacha20-poly1305 2 Gbit/s" in slow.found
    near = judge_speed(part(aead=CHACHA20), speeds(8, 7), has_aes=True)
    assert near.verdict is Verdict.OK


def test_aes_instructions_that_lie_idle() -> None:
    assert judge_speed(None, speeds(1, 2), has_aes=False).verdict is Verdict.OK
    idle = judge_speed(None, speeds(1, 2), has_aes=True)
    assert idle.verdict is Verdict.WARNING
    assert "aesni_intel" in idle.remedy


def settings_folder(folder: Path, **values: str) -> Path:
    """Settings of three devices, all off, but for those named `ipv4_DEVICE_NAME`."""
    for device in ("all", "default", "lo", "eth0"):
        for version, names in (
            ("ipv4", ("disable_xfrm", "disable_policy")),
            ("ipv6", ("disable_policy",)),
        ):
            for name in names:
                path = folder / version / "conf" / device / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text("1\n" if device == "lo" else "0\n")
    for setting, value in values.items():
        version, device, name = setting.split("_", maxsplit=2)
        (folder / version / "conf" / device / name).write_text(value)
    return folder


def test_settings_that_switch_ipsec_off(tmp_path: Path) -> None:
    (finding,) = check_settings(settings_folder(tmp_path))
    assert finding.verdict is Verdict.OK
    settings_folder(tmp_path, ipv4_all_disable_xfrm="1")
    (finding,) = check_settings(tmp_path)
    assert finding.verdict is Verdict.PROBLEM
    assert finding.remedy == "sysctl -w net/ipv4/conf/all/disable_xfrm=0"
    settings_folder(tmp_path, ipv4_eth0_disable_policy="1", ipv6_eth0_disable_policy="1")
    four, six = check_settings(tmp_path)
    assert (four.verdict, six.verdict) == (Verdict.WARNING, Verdict.WARNING)
    assert "net/ipv6/conf/eth0/disable_policy = 1" in six.found


@pytest.mark.skipif(missing_capability() is not None, reason=str(missing_capability()))
def test_who_may_not_make_namespaces_is_told_that_nothing_was_tried() -> None:
    os.seteuid(65534)
    try:
        (finding,) = check_kernel(None)
    finally:
        os.seteuid(0)
    assert finding.verdict is Verdict.WARNING
    assert finding.found.endswith("Operation not permitted: what this kernel can do was not tried")
    assert "root" in finding.remedy


@pytest.mark.skipif(missing_capability() is not None, reason=str(missing_capability()))
def test_what_is_tried_leaves_nothing_behind() -> None:
    devices = Path("/proc/thread-self/net/dev")
    before = devices.read_text().count("\n")
    found = check_kernel(part())
    assert devices.read_text().count("\n") == before
    checks = {finding.check: finding for finding in found}
    assert checks["policies"].verdict is Verdict.OK
    assert checks["vxlan"].verdict is Verdict.OK


def test_a_kind_without_devices() -> None:
    assert check_overlay(Kind.ROCEV2).verdict is Verdict.PROBLEM
