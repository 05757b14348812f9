"""Hypothesis strategies for records."""

from hypothesis import strategies as st

from tunsec.keying.records import address_order
from tunsec.model.aead import Aead, AeadSpeed
from tunsec.model.clock import WallTime
from tunsec.model.names import (
    MAX_SPI,
    MIN_SPI,
    Boot,
    ConfirmationSeq,
    FlowName,
    HostName,
    OfferSeq,
    Spi,
    TenantName,
)
from tunsec.model.record import Confirmation, Offer, Receives, Renews, Sends

hosts = st.from_regex(r"[a-z0-9]([a-z0-9_-]{0,8}[a-z0-9])?(\.[a-z]{1,4})?", fullmatch=True).map(
    HostName
)
addresses = st.ip_addresses().filter(lambda address: not getattr(address, "scope_id", None))
sequences = st.integers(1, 2**63 - 1)
words = st.text(
    st.characters(codec="utf-8").filter(lambda letter: letter.isprintable()),
    min_size=1,
    max_size=20,
)
spis = st.integers(MIN_SPI, MAX_SPI).map(Spi)

offers = st.builds(
    Offer,
    host=hosts,
    sequence=sequences.map(OfferSeq),
    boot=st.binary(min_size=16, max_size=16).map(lambda raw: Boot(raw.hex())),
    public=st.binary(min_size=32, max_size=32),
    nonce=st.binary(min_size=32, max_size=32),
    addresses=st.frozensets(addresses, max_size=4).map(
        lambda found: tuple(sorted(found, key=address_order))
    ),
    fencing=st.dictionaries(addresses, st.integers(0, 2**63 - 1), max_size=3).map(
        lambda found: tuple(sorted(found.items(), key=lambda row: address_order(row[0])))
    ),
    aeads=st.dictionaries(st.sampled_from(Aead), st.integers(0, 10**12)).map(
        lambda found: tuple(AeadSpeed(aead, found[aead]) for aead in sorted(found))
    ),
    ppk=st.none() | st.binary(min_size=16, max_size=16).map(bytes.hex),
    not_after=st.integers(0, 2**53).map(lambda seconds: WallTime(float(seconds))),
)


@st.composite
def sent(draw: st.DrawFn) -> Sends:
    family = draw(st.sampled_from((st.ip_addresses(v=4), st.ip_addresses(v=6))))
    ends = [draw(family.filter(lambda end: not getattr(end, "scope_id", None))) for _ in range(2)]
    tenant = draw(st.none() | words.map(TenantName))
    return Sends(FlowName(draw(words)), tenant, ends[0], ends[1], draw(spis))


@st.composite
def received(draw: st.DrawFn) -> Receives:
    row = draw(sent())
    return Receives(
        row.flow,
        row.tenant,
        row.src,
        row.dst,
        row.spi,
        aead=draw(st.sampled_from(Aead)),
        author_offer=OfferSeq(draw(sequences)),
        reader_offer=OfferSeq(draw(sequences)),
        esn=draw(st.booleans()),
    )


@st.composite
def renewed(draw: st.DrawFn) -> Renews:
    row = draw(sent())
    return Renews(
        row.flow,
        row.tenant,
        row.src,
        row.dst,
        author_spent=OfferSeq(draw(st.integers(0, 2**63 - 1))),
        reader_spent=OfferSeq(draw(st.integers(0, 2**63 - 1))),
        proof=draw(st.booleans()),
        done=draw(st.booleans()),
    )


confirmations = st.builds(
    Confirmation,
    author=hosts,
    reader=hosts,
    author_offer=sequences.map(OfferSeq),
    reader_offer=sequences.map(OfferSeq),
    sequence=sequences.map(ConfirmationSeq),
    receives=st.lists(received(), max_size=4).map(tuple),
    sends=st.lists(sent(), max_size=4).map(tuple),
    heard=st.integers(0, 2**63 - 1).map(ConfirmationSeq),
    renews=st.lists(renewed(), max_size=3).map(tuple),
)
