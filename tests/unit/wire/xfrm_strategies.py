"""Hypothesis strategies for everything that the XFRM codec codes."""

import ipaddress

from hypothesis import settings
from hypothesis import strategies as st

from tunsec.model.aead import Aead
from tunsec.model.names import Address, IfId, Mark, Network, Proto, Reqid, Spi
from tunsec.model.sa import (
    IpsecMode,
    Lifetimes,
    Offload,
    OffloadKind,
    Replay,
    Sa,
    SaDirection,
    SaDrops,
    SaId,
    Usage,
)
from tunsec.model.secret import Secret
from tunsec.model.selector import ANY_PORT, PortMatch, Selector, any_network
from tunsec.model.sp import Sp, SpAction, SpDirection, SpId, Template

patient = settings(max_examples=60)
"""For a busy machine: a slow example is no failure."""

u16 = st.integers(0, 0xFFFF)
u32 = st.integers(0, 0xFFFF_FFFF)
u64 = st.integers(0, 0xFFFF_FFFF_FFFF_FFFF)
versions = st.sampled_from([4, 6])
ports = st.just(ANY_PORT) | st.builds(PortMatch, u16, st.integers(1, 0xFFFF))
directions = st.none() | st.sampled_from(SaDirection)
spis = st.builds(Spi, st.integers(1, 0xFFFF_FFFF))


def addresses(version: int) -> st.SearchStrategy[Address]:
    """Addresses of one IP version."""
    if version == 4:
        return u32.map(ipaddress.IPv4Address)
    return st.integers(0, (1 << 128) - 1).map(ipaddress.IPv6Address)


def ip_of_version(version: int) -> Address:
    """An address of an IP version."""
    return ipaddress.ip_address("192.0.2.77" if version == 4 else "2001:db8::77")


def network_of_version(version: int) -> Network:
    """A network of an IP version."""
    return ipaddress.ip_network(ip_of_version(version))


@st.composite
def networks(draw: st.DrawFn, version: int) -> Network:
    """Networks of one IP version, host networks more often than not."""
    whole = 32 if version == 4 else 128
    bits = draw(st.just(whole) | st.integers(0, whole))
    number = int(draw(addresses(version)))
    if version == 4:
        return ipaddress.IPv4Network((number, bits), strict=False)
    return ipaddress.IPv6Network((number, bits), strict=False)


@st.composite
def selectors(draw: st.DrawFn, version: int) -> Selector:
    """Selectors of one IP version."""
    return Selector(
        draw(networks(version)),
        draw(networks(version)),
        draw(st.sampled_from([0, 6, 17, 132])),
        draw(ports),
        draw(ports),
        draw(st.sampled_from([0, 3])),
        draw(st.sampled_from([0, 1000])),
    )


@st.composite
def marks(draw: st.DrawFn) -> Mark | None:
    """Marks that can match, or none."""
    mask = draw(st.integers(0, 0xFFFF_FFFF))
    return Mark(draw(u32) & mask, mask) if mask else None


@st.composite
def lifetimes(draw: st.DrawFn) -> Lifetimes:
    """Limits, or none, in every field; 0 is no limit of time and so never drawn."""
    count = st.none() | st.integers(0, 0xFFFF_FFFF_FFFF_FFFE)
    span = st.none() | st.integers(1, 0xFFFF_FFFF_FFFF_FFFF)
    return Lifetimes(*(draw(count) for _ in range(4)), *(draw(span) for _ in range(4)))


@st.composite
def replays(draw: st.DrawFn, direction: SaDirection | None) -> Replay:
    """Replay states as a kernel might hold them."""
    esn = draw(st.booleans())
    number = u64 if esn else u32
    window = 0 if direction is SaDirection.OUTBOUND else draw(st.integers(0, 4096))
    return Replay(window, esn, draw(number), draw(number))


offloads = st.none() | st.builds(
    Offload, st.sampled_from(OffloadKind), st.integers(1, 9), st.booleans()
)
usages = st.builds(Usage, u64, u64, u64, u64)


@st.composite
def sas(draw: st.DrawFn) -> Sa:
    """SAs with AEAD and key, fit to install."""
    version = draw(versions)
    aead = draw(st.sampled_from(Aead))
    direction = draw(directions)
    selector = draw(st.none() | selectors(version))
    if selector == Selector(any_network(version), any_network(version)):
        selector = None
    size = aead.key_bytes + aead.salt_bytes
    return Sa(
        SaId(draw(addresses(version)), draw(spis), Proto.ESP, draw(marks())),
        draw(addresses(version)),
        Reqid(draw(u32)),
        aead,
        Secret(draw(st.binary(min_size=size, max_size=size))),
        draw(st.sampled_from([IpsecMode.TRANSPORT, IpsecMode.TUNNEL, IpsecMode.BEET])),
        selector,
        draw(lifetimes()),
        draw(replays(direction)),
        draw(st.sampled_from([0, 1, 4, 0x45])),
        draw(st.none() | st.builds(Mark, u32, u32)),
        draw(st.none() | st.builds(IfId, u32)),
        draw(offloads),
        direction,
        draw(st.none() | u32),
        draw(usages),
        draw(st.builds(SaDrops, u32, u32, u32)),
    )


@st.composite
def templates(draw: st.DrawFn) -> Template:
    """Templates of any protocol and mode."""
    version = draw(versions)
    return Template(
        draw(addresses(version)),
        draw(addresses(version)),
        Reqid(draw(u32)),
        draw(st.none() | spis),
        draw(st.sampled_from(Proto)),
        draw(st.sampled_from(IpsecMode)),
        draw(st.booleans()),
    )


@st.composite
def sps(draw: st.DrawFn) -> Sp:
    """SPs with up to six templates, most often one."""
    count = draw(st.just(1) | st.integers(0, 6))
    return Sp(
        SpId(
            draw(selectors(draw(versions))),
            draw(st.sampled_from(SpDirection)),
            draw(marks()),
            draw(st.none() | st.builds(IfId, u32)),
        ),
        draw(u32),
        draw(st.sampled_from(SpAction)),
        tuple(draw(templates()) for _ in range(count)),
        draw(st.just(Lifetimes()) | lifetimes()),
        draw(st.sampled_from([0, 1, 2])),
        draw(offloads),
        draw(u32),
        draw(usages),
    )
