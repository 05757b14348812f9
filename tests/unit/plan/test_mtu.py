"""Room for ESP, against the figures that the kernel's own formula gives and as a property."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunsec.model.aead import Aead
from tunsec.model.flow import Kind
from tunsec.plan.mtu import (
    mtu_warning,
    overlay_mtu,
    overlay_overhead,
    protected_size,
    roce_mtu,
    roce_size,
)

VERSIONS = st.sampled_from([4, 6])
AEADS = st.sampled_from(Aead)


@pytest.mark.parametrize(
    ("version", "underlay_mtu", "expected"),
    [(4, 1500, 1416), (6, 1500, 1396), (4, 9000, 8916), (6, 9000, 8896), (4, 1503, 1416)],
)
@pytest.mark.parametrize("kind", [Kind.VXLAN, Kind.GENEVE])
def test_the_figures_to_know_by_heart(
    kind: Kind, version: int, underlay_mtu: int, expected: int
) -> None:
    for aead in Aead:
        found = overlay_mtu(kind, version=version, aead=aead, underlay_mtu=underlay_mtu)
        assert found == expected


@given(st.integers(600, 65535), VERSIONS, AEADS)
def test_the_answer_fits_and_one_more_does_not(underlay: int, version: int, aead: Aead) -> None:
    mtu = overlay_mtu(Kind.VXLAN, version=version, aead=aead, underlay_mtu=underlay)
    overhead = overlay_overhead(Kind.VXLAN)
    assert mtu is not None
    assert overhead is not None
    assert protected_size(mtu + overhead, version=version, aead=aead) <= underlay
    assert protected_size(mtu + 1 + overhead, version=version, aead=aead) > underlay


@given(st.integers(1280, 9000), st.integers(600, 9000), VERSIONS, AEADS)
def test_a_warning_comes_exactly_when_packets_do_not_fit(
    mtu: int, underlay: int, version: int, aead: Aead
) -> None:
    fits = overlay_mtu(Kind.GENEVE, version=version, aead=aead, underlay_mtu=underlay)
    warning = mtu_warning(
        "g0", Kind.GENEVE, mtu=mtu, version=version, aead=aead, underlay_mtu=underlay
    )
    assert fits is not None
    assert (warning is not None) == (mtu > fits)


def test_the_warning_says_the_right_numbers() -> None:
    assert mtu_warning(
        "vx0", Kind.VXLAN, mtu=1450, version=4, aead=Aead.AES_128_GCM, underlay_mtu=1500
    ) == (
        "vx0: MTU 1450 leaves no room for ESP: full-size packets take 1536 bytes of an underlay "
        "MTU of 1500 and are fragmented; set `ip link set vx0 mtu 1416`, or the underlay's MTU to "
        "1536"
    )


def test_advice_never_goes_below_what_ipv6_needs() -> None:
    warning = mtu_warning(
        "vx0", Kind.VXLAN, mtu=1450, version=6, aead=Aead.AES_128_GCM, underlay_mtu=1280
    )
    assert warning is not None
    assert "ip link set" not in warning
    assert warning.endswith("raise the underlay's MTU to 1556")


def test_kinds_without_a_device_have_no_number() -> None:
    assert overlay_mtu(Kind.RDS_TCP, version=4, aead=Aead.AES_128_GCM, underlay_mtu=1500) is None


def test_geneve_options_take_their_room() -> None:
    assert (
        overlay_mtu(
            Kind.GENEVE, version=4, aead=Aead.AES_256_GCM, underlay_mtu=1500, options_bytes=8
        )
        == 1408
    )


@pytest.mark.parametrize(
    ("underlay", "offered"),
    [(335, None), (336, 256), (1500, 1024), (2127, 1024), (2128, 2048), (4176, 4096), (9000, 4096)],
)
def test_soft_roce_offers_what_fits_with_its_own_headers(
    underlay: int, offered: int | None
) -> None:
    assert roce_mtu(underlay) == offered


@pytest.mark.parametrize(("version", "size"), [(4, 1124), (6, 1144)])
def test_a_full_size_write_in_esp(version: int, size: int) -> None:
    assert roce_size(1024, version=version, aead=Aead.AES_128_GCM) == size
