"""Measuring AEADs on whatever this kernel offers, and remembering it for one boot."""

import json
from pathlib import Path

import pytest

from tunsec.adapters import aead_af_alg, aead_ktls
from tunsec.adapters.aead_af_alg import AfAlg
from tunsec.adapters.aead_ktls import KernelTls
from tunsec.adapters.aead_speed import CACHE_NAME, Meter, aead_speeds, measure
from tunsec.adapters.boot_file import BOOT_ID
from tunsec.model.aead import Aead, AeadSpeed
from tunsec.model.clock import Seconds
from tunsec.model.errors import Unavailable

WAYS = {"AF_ALG": aead_af_alg.why_not(), "kernel TLS": aead_ktls.why_not()}
NO_WAY = all(WAYS.values())
WHY = "; ".join(reason for reason in WAYS.values() if reason)

FIGURES = {"aes-128-gcm": 2_000, "chacha20-poly1305": 1_000}


def remembered(folder: Path, document: object) -> None:
    (folder / CACHE_NAME).write_text(json.dumps(document))


def test_the_figures_of_this_boot_are_taken_as_they_are(tmp_path: Path) -> None:
    boot = BOOT_ID.read_text().strip()
    remembered(tmp_path, {"boot_id": boot, "bytes_per_second": FIGURES})
    assert aead_speeds(tmp_path) == (
        AeadSpeed(Aead.AES_128_GCM, 2_000),
        AeadSpeed(Aead.CHACHA20_POLY1305, 1_000),
    )


@pytest.mark.parametrize(
    "document",
    [
        {"boot_id": "another", "bytes_per_second": FIGURES},
        {"boot_id": BOOT_ID.read_text().strip(), "bytes_per_second": {"rot13": 1}},
        {"boot_id": BOOT_ID.read_text().strip(), "bytes_per_second": {}},
        {"boot_id": BOOT_ID.read_text().strip(), "bytes_per_second": {"aes-128-gcm": 0}},
        {"boot_id": BOOT_ID.read_text().strip(), "bytes_per_second": [1]},
        {"bytes_per_second": FIGURES},
        [],
    ],
)
def test_other_figures_are_measured_anew(tmp_path: Path, document: object) -> None:
    remembered(tmp_path, document)
    if NO_WAY:
        with pytest.raises(Unavailable):
            aead_speeds(tmp_path)
        return
    speeds = aead_speeds(tmp_path)
    assert all(speed.bytes_per_second > 10_000 for speed in speeds)
    assert aead_speeds(tmp_path) == speeds, "and kept"


@pytest.mark.skipif(not NO_WAY, reason="this kernel can measure")
def test_a_kernel_that_cannot_measure_says_why_and_what_to_do() -> None:
    with pytest.raises(Unavailable) as caught:
        measure(Aead)
    for reason in (*WAYS.values(), "modprobe tls", "name the AEAD in the policy"):
        assert reason is not None
        assert reason in str(caught.value)


@pytest.mark.skipif(NO_WAY, reason=WHY)
def test_every_aead_of_this_kernel_has_a_plausible_speed() -> None:
    speeds = {speed.aead: speed.bytes_per_second for speed in measure(Aead)}
    assert speeds
    for speed in speeds.values():
        assert 1_000_000 < speed < 10**12


@pytest.mark.skipif(bool(WAYS["AF_ALG"]), reason=WAYS["AF_ALG"] or "")
def test_af_alg() -> None:
    check(AfAlg(Aead.AES_128_GCM, 16_384))


@pytest.mark.skipif(bool(WAYS["kernel TLS"]), reason=WAYS["kernel TLS"] or "")
@pytest.mark.parametrize("aead", list(Aead))
def test_kernel_tls(aead: Aead) -> None:
    check(KernelTls(aead, 16_384))


def check(meter: Meter) -> None:
    meter.turn(Seconds(0.002))
    meter.turn(Seconds(0.002))
    assert meter.best() > 100_000
    meter.close()
