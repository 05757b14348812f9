"""Small kernels and small wishes: few addresses, SPIs and ports, so that they meet."""

import ipaddress
from collections.abc import Iterable
from dataclasses import replace

from hypothesis import strategies as st

from tests.sim.kernel import FakeKernel
from tunsec.model.aead import Aead
from tunsec.model.clock import Instant
from tunsec.model.names import Address, Reqid, Spi
from tunsec.model.ownership import PRIORITY_BLOCK, PRIORITY_PROTECT, REQID_FIRST, is_our_sp
from tunsec.model.sa import Lifetimes, Replay, Sa, SaDirection, SaId
from tunsec.model.secret import Secret
from tunsec.model.selector import UDP, PortMatch, Selector, any_network
from tunsec.model.sp import Sp, SpAction, SpDirection, SpId, Template
from tunsec.model.step import AddSa, AddSp, Step
from tunsec.plan.image import Image, Wanted, WantedSa, wanted

ADDRESSES: tuple[Address, ...] = (
    ipaddress.IPv4Address("192.0.2.1"),
    ipaddress.IPv4Address("192.0.2.2"),
    ipaddress.IPv6Address("2001:db8::1"),
)
OUR_REQIDS = st.sampled_from([Reqid(REQID_FIRST), Reqid(REQID_FIRST + 1)])
FOREIGN_REQIDS = st.sampled_from([Reqid(0), Reqid(REQID_FIRST - 1)])
DIRECTIONS = st.sampled_from([SpDirection.IN, SpDirection.OUT])
SPIS = st.integers(0x1000, 0x1004).map(Spi)


def sas(reqids: st.SearchStrategy[Reqid]) -> st.SearchStrategy[Sa]:
    """SAs without keys, as dumps show them."""
    return st.builds(
        lambda dst, spi, reqid, aead, soft: Sa(
            SaId(dst, spi),
            ADDRESSES[0] if dst.version == 4 else ADDRESSES[2],
            reqid,
            aead,
            lifetimes=Lifetimes(soft_seconds=soft),
            replay=Replay(1024, esn=True),
        ),
        st.sampled_from(ADDRESSES),
        SPIS,
        reqids,
        st.sampled_from([Aead.AES_128_GCM, Aead.CHACHA20_POLY1305]),
        st.sampled_from([None, 60]),
    )


@st.composite
def sp_ids(draw: st.DrawFn) -> SpId:
    """Ids of SPs, some from anywhere."""
    dst = draw(st.sampled_from(ADDRESSES))
    src = any_network(dst.version) if draw(st.booleans()) else ipaddress.ip_network(dst)
    port = PortMatch(draw(st.sampled_from([4789, 4790])))
    return SpId(Selector(src, ipaddress.ip_network(dst), UDP, dport=port), draw(DIRECTIONS))


@st.composite
def our_sps(draw: st.DrawFn) -> Sp:
    """Block SPs and protect SPs of ours."""
    sp_id = draw(sp_ids())
    if draw(st.booleans()):
        return Sp(sp_id, PRIORITY_BLOCK, SpAction.BLOCK)
    pinned = draw(SPIS) if sp_id.direction is SpDirection.OUT else None
    template = Template(ADDRESSES[0], ADDRESSES[1], draw(OUR_REQIDS), pinned)
    return Sp(sp_id, PRIORITY_PROTECT, SpAction.ALLOW, (template,))


@st.composite
def foreign_sps(draw: st.DrawFn) -> Sp:
    """SPs of other programs, perhaps under an id of ours."""
    sp_id = draw(sp_ids())
    template = Template(ADDRESSES[0], ADDRESSES[1], draw(FOREIGN_REQIDS))
    return draw(
        st.sampled_from(
            [
                Sp(sp_id, 0, SpAction.ALLOW),
                Sp(sp_id, PRIORITY_PROTECT, SpAction.ALLOW, (template,)),
                Sp(sp_id, PRIORITY_BLOCK - 1, SpAction.BLOCK),
            ]
        )
    )


@st.composite
def images(draw: st.DrawFn) -> Image:
    """What a kernel holds, ours and others'."""
    held = draw(st.lists(st.one_of(sas(OUR_REQIDS), sas(FOREIGN_REQIDS)), max_size=6))
    sps = draw(st.lists(st.one_of(our_sps(), foreign_sps()), max_size=8))
    return Image({sa.id: sa for sa in held}, {sp.id: sp for sp in sps})


@st.composite
def wishes(draw: st.DrawFn, *, keys: bool = True) -> Wanted:
    """What it should hold of ours; SAs with a key at hand, or without."""
    chosen = [
        WantedSa(
            replace(sa, key=Secret(bytes(20)) if keys and draw(st.booleans()) else None),
            draw(st.sampled_from(SaDirection)),
        )
        for sa in draw(st.lists(sas(OUR_REQIDS), max_size=6))
    ]
    return wanted(chosen, draw(st.lists(our_sps(), max_size=8)))


def kernel_of(image: Image) -> FakeKernel:
    """A kernel that holds just this."""
    kernel = FakeKernel(lambda: Instant(1000.0))
    steps: list[Step] = [
        *(
            AddSa(replace(sa, key=Secret(bytes(20))), SaDirection.INBOUND)
            for sa in image.sas.values()
        ),
        *(AddSp(sp) for sp in image.sps.values()),
    ]
    assert kernel.apply(steps) == [None] * len(steps)
    return kernel


def image_of(kernel: FakeKernel) -> Image:
    """What a kernel holds now."""
    return Image(kernel.sas(), kernel.sps())


def blocks(sps: Iterable[Sp]) -> set[Sp]:
    """The block SPs of ours among them."""
    return {sp for sp in sps if is_our_sp(sp) and sp.action is SpAction.BLOCK}
