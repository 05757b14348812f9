"""What charon ignored, told from the kernel's SAs."""

import ipaddress
from dataclasses import replace

import pytest

from tunsec.model.aead import Aead
from tunsec.model.flow import OffloadWish
from tunsec.model.ike import EspProposal, IkeChild, KeyExchange, Limits, TrafficSelector
from tunsec.model.ike_sa import ChildSa, ChildSaKeyed, ChildState, IkeSa, IkeState, Traffic
from tunsec.model.names import Mark, Reqid, Spi
from tunsec.model.ownership import REQID_FIRST
from tunsec.model.sa import IpsecMode, Lifetimes, Offload, OffloadKind, Replay, Sa, SaId
from tunsec.model.selector import PortMatch, Selector
from tunsec.plan.ike_options import ignored_options, orphaned_sas

LOCAL, REMOTE = ipaddress.ip_address("192.0.2.11"), ipaddress.ip_address("192.0.2.12")
REQID = Reqid(REQID_FIRST + 4)
IN, OUT = Spi(0xC0000001), Spi(0xC0000002)
NETS = (ipaddress.ip_network(LOCAL), ipaddress.ip_network(REMOTE))
ASKED = IkeChild(
    name="overlay.0",
    reqid=REQID,
    local=(TrafficSelector(NETS[0], 17),),
    remote=(TrafficSelector(NETS[1], 17),),
    proposals=(EspProposal(Aead.AES_256_GCM, (KeyExchange.X25519,)),),
    replay_window=1024,
    seconds=Limits(3600, 5400, 360),
    mark_out=Mark(0x141, 0xFFFFFF),
    set_mark_in=Mark(0x241, 0xFFFFFF),
)
CHILD = ChildSa(
    name="overlay.0",
    id=1,
    reqid=REQID,
    state=ChildState.INSTALLED,
    mode="TRANSPORT",
    label=None,
    local=(),
    remote=(),
    keyed=ChildSaKeyed(
        spi_in=IN,
        spi_out=OUT,
        aead=Aead.AES_256_GCM,
        esn=True,
        udp_encapsulated=False,
        key_exchanges=(),
        mark_in=None,
        mark_out=None,
        inbound=Traffic(0, 0, None),
        outbound=Traffic(0, 0, None),
        installed_for=0,
        rekey_in=None,
        ends_in=None,
    ),
)
LIFETIMES = Lifetimes(soft_seconds=3400, hard_seconds=5400)
INBOUND = Sa(
    SaId(LOCAL, IN),
    REMOTE,
    REQID,
    Aead.AES_256_GCM,
    selector=Selector(NETS[1], NETS[0]),
    lifetimes=LIFETIMES,
    replay=Replay(window=1024, esn=True),
    output_mark=ASKED.set_mark_in,
)
OUTBOUND = Sa(
    SaId(REMOTE, OUT, mark=ASKED.mark_out),
    LOCAL,
    REQID,
    Aead.AES_256_GCM,
    selector=Selector(NETS[0], NETS[1]),
    lifetimes=LIFETIMES,
    replay=Replay(window=0, esn=True),
)


def ignored(*kernel: Sa, asked: IkeChild = ASKED, child: ChildSa = CHILD) -> list[str]:
    sad = {sa.id: sa for sa in kernel}
    found = ignored_options(asked, child, sad, local=LOCAL, remote=REMOTE)
    assert all(str(one) for one in found)
    return [one.option for one in found]


def test_all_as_asked() -> None:
    assert ignored(INBOUND, OUTBOUND) == []
    assert ignored(replace(INBOUND, selector=None), OUTBOUND) == []
    assert ignored(replace(INBOUND, replay=Replay(4096, esn=True)), OUTBOUND) == []


@pytest.mark.parametrize(
    ("inbound", "options"),
    [
        (replace(INBOUND, mode=IpsecMode.TUNNEL), ["mode (inbound)"]),
        (replace(INBOUND, reqid=Reqid(1)), ["reqid (inbound)"]),
        (replace(INBOUND, aead=Aead.AES_128_GCM), ["esp_proposals (inbound)"]),
        (replace(INBOUND, aead=None), ["esp_proposals (inbound)"]),
        (replace(INBOUND, replay=Replay(1024, esn=False)), ["esp_proposals (inbound)"]),
        (replace(INBOUND, replay=Replay(32, esn=True)), ["replay_window"]),
        (replace(INBOUND, output_mark=None), ["set_mark_in"]),
        (replace(INBOUND, larval=True), ["inbound SA"]),
        (replace(INBOUND, src=LOCAL), ["inbound address"]),
        (
            replace(INBOUND, lifetimes=replace(LIFETIMES, hard_seconds=None)),
            ["life_time (inbound)"],
        ),
        (
            replace(INBOUND, lifetimes=replace(LIFETIMES, soft_seconds=3601)),
            ["rekey_time (inbound)"],
        ),
        (
            replace(INBOUND, lifetimes=replace(LIFETIMES, soft_bytes=9, hard_bytes=10)),
            ["life_bytes (inbound)", "rekey_bytes (inbound)"],
        ),
        (
            replace(INBOUND, selector=Selector(NETS[1], NETS[0], 6)),
            ["traffic selectors (inbound)"],
        ),
        (
            replace(INBOUND, selector=Selector(NETS[1], NETS[0], 17, dport=PortMatch(4789))),
            ["traffic selectors (inbound)"],
        ),
        (
            replace(INBOUND, offload=Offload(OffloadKind.CRYPTO, 2, inbound=True)),
            ["hw_offload (inbound)"],
        ),
    ],
)
def test_one_thing_ignored(inbound: Sa, options: list[str]) -> None:
    assert ignored(inbound, OUTBOUND) == options


def test_a_mark_that_did_not_arrive() -> None:
    assert ignored(INBOUND, replace(OUTBOUND, id=SaId(REMOTE, OUT))) == ["mark_out"]
    marked = replace(INBOUND, id=SaId(LOCAL, IN, mark=Mark(5)))
    assert ignored(marked, OUTBOUND) == ["mark_in"]


def test_missing_sas() -> None:
    assert ignored(OUTBOUND) == ["inbound SA"]
    assert ignored(INBOUND) == ["outbound SA"]
    assert ignored(INBOUND, OUTBOUND, child=replace(CHILD, keyed=None)) == ["SAs"]


def test_offload_and_ports_that_were_asked_for() -> None:
    asked = replace(
        ASKED,
        offload=OffloadWish.PACKET,
        remote=(TrafficSelector(NETS[1], 17, 4789, 4789),),
    )
    narrow = replace(OUTBOUND, selector=Selector(NETS[0], NETS[1], 17, dport=PortMatch(4789)))
    assert ignored(INBOUND, narrow, asked=asked) == [
        "hw_offload (inbound)",
        "hw_offload (outbound)",
    ]
    auto = replace(asked, offload=OffloadWish.AUTO)
    assert ignored(INBOUND, narrow, asked=auto) == []


def test_without_jitter_one_sa_has_no_soft_limit() -> None:
    asked = replace(ASKED, seconds=Limits(3600, 5400))
    soft = replace(LIFETIMES, soft_seconds=3600)
    none = replace(LIFETIMES, soft_seconds=None)
    assert (
        ignored(replace(INBOUND, lifetimes=soft), replace(OUTBOUND, lifetimes=none), asked=asked)
        == []
    )


def test_orphans() -> None:
    ike = IkeSa(
        name="tunsec-b",
        id=1,
        state=IkeState.ESTABLISHED,
        version=2,
        initiator=True,
        local=LOCAL,
        remote=REMOTE,
        local_identity="a",
        remote_identity="b",
        initiator_spi=1,
        responder_spi=2,
        algorithms=(),
        ppk=False,
        established_for=1,
        rekey_in=None,
        reauth_in=None,
        tasks=(),
        children=(CHILD,),
    )
    left = replace(INBOUND, id=SaId(LOCAL, Spi(0xC0000009)))
    larval = replace(left, id=SaId(LOCAL, Spi(0xC000000A)), larval=True)
    foreign = replace(left, id=SaId(LOCAL, Spi(0xC000000B)), reqid=Reqid(7))
    kernel = [INBOUND, OUTBOUND, left, larval, foreign]
    assert orphaned_sas(kernel, [ike], reqids={REQID}) == (left.id,)
    assert orphaned_sas(kernel, [], reqids={REQID}) == (INBOUND.id, OUTBOUND.id, left.id)
    assert orphaned_sas(kernel, [], reqids=set()) == ()
    busy = replace(ike, children=(CHILD, replace(CHILD, id=2, keyed=None)))
    assert orphaned_sas(kernel, [busy], reqids={REQID}) == ()
