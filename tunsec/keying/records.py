"""Offers, claims and confirmations as bytes: canonical JSON in signed or authenticated envelopes.

An envelope is canonical JSON too: `{"body", "chain", "signature", "type"}` for offers and claims,
`{"body", "mac", "type"}` for a confirmation; `body` is base64 of the exact bytes that were signed,
`chain` a list of base64 DER certificates, the leaf first. What is signed is prefixed with a name of
its kind, so that no signature or MAC can be passed off as one of another kind.

Decoding believes nothing: a size is checked before anything is parsed, and every mistake becomes a
RecordRefused. Whether the signature or MAC is right is not decided here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from tunsec.keying.canonical import (
    Fields,
    Json,
    ascending,
    decode_canonical,
    encode_canonical,
    to_base64,
)
from tunsec.keying.paths import CLAIM_LIMIT, CONFIRMATION_LIMIT, OFFER_LIMIT, is_host_name
from tunsec.keying.refusals import RecordRefused, RefusalReason
from tunsec.model.aead import Aead, AeadSpeed
from tunsec.model.clock import WallTime
from tunsec.model.names import (
    MAX_SPI,
    MIN_SPI,
    Address,
    Boot,
    ConfirmationSeq,
    FlowName,
    HostName,
    OfferSeq,
    Spi,
    TenantName,
)
from tunsec.model.record import (
    NONCE_BYTES,
    PUBLIC_BYTES,
    Claim,
    Confirmation,
    Offer,
    Receives,
    Renews,
    Sends,
)

OFFER_TYPE: Final = "tunsec-offer-1"
CONFIRMATION_TYPE: Final = "tunsec-confirmation-1"
RENEWING_TYPE: Final = "tunsec-confirmation-2"
"""One with `renews`. What has none is written as before, so that hosts of an earlier release read
it: they refuse only what they could not act on."""
CLAIM_TYPE: Final = "tunsec-claim-1"
OFFER_DOMAIN: Final = b"tunsec 1 offer\0"
CONFIRMATION_DOMAIN: Final = b"tunsec 1 confirmation\0"

CLAIM_DOMAIN: Final = b"tunsec 1 claim\0"

MAC_BYTES: Final = 32
MAX_SIGNATURE: Final = 80
"""Ed25519 takes 64 bytes, a DER ECDSA P-256 signature at most 72."""
MAX_CERTIFICATE: Final = 8 * 1024
MAX_CHAIN: Final = 3
"""The leaf and two intermediates; the root is each host's own."""
MAX_ADDRESSES: Final = 256
MAX_ROWS: Final = 65_536
BOOT_DIGITS: Final = frozenset("0123456789abcdef")

SHORT_BITS: Final = 32
"""Said of an SA without ESN; nothing is said of the others."""

_RECEIVES: Final = ("flow", "tenant", "src", "dst", "spi", "aead", "author_offer", "reader_offer")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SignedOffer:
    """An offer as it came, with what is needed to judge it."""

    offer: Offer
    body: bytes
    signature: bytes
    chain: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class SignedClaim:
    """A claim as it came, with what is needed to judge it."""

    claim: Claim
    body: bytes
    signature: bytes
    chain: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class SealedConfirmation:
    """A confirmation as it came, with what is needed to judge it."""

    confirmation: Confirmation
    body: bytes
    mac: bytes


def encode_offer(offer: Offer) -> bytes:
    """The body that is signed, and that the salt of every pair is made from."""
    return encode_canonical(
        {
            "host": offer.host,
            "sequence": offer.sequence,
            "boot": offer.boot,
            "public": to_base64(offer.public),
            "nonce": to_base64(offer.nonce),
            "addresses": [str(address) for address in offer.addresses],
            "fencing": [[str(address), token] for address, token in offer.fencing],
            "aeads": [[speed.aead.value, speed.bytes_per_second] for speed in offer.aeads],
            "ppk": offer.ppk,
            "not_after": int(offer.not_after),
        }
    )


def encode_signed_offer(body: bytes, *, signature: bytes, chain: tuple[bytes, ...]) -> bytes:
    """The record of an offer."""
    return _encode_signed(OFFER_TYPE, body, signature=signature, chain=chain)


def _encode_signed(kind: str, body: bytes, *, signature: bytes, chain: tuple[bytes, ...]) -> bytes:
    return encode_canonical(
        {
            "type": kind,
            "body": to_base64(body),
            "signature": to_base64(signature),
            "chain": [to_base64(certificate) for certificate in chain],
        }
    )


def decode_signed_offer(record: bytes, *, path: str) -> SignedOffer:
    """The offer of a record; raises RecordRefused."""
    return _decoded(record, path, limit=OFFER_LIMIT, parse=_parse_signed_offer)


def encode_claim(claim: Claim) -> bytes:
    """The body that is signed."""
    return encode_canonical(
        {
            "service": claim.service,
            "owner": claim.owner,
            "token": claim.token,
            "boot": claim.boot,
            "held": claim.held,
        }
    )


def encode_signed_claim(body: bytes, *, signature: bytes, chain: tuple[bytes, ...]) -> bytes:
    """The record of a claim."""
    return _encode_signed(CLAIM_TYPE, body, signature=signature, chain=chain)


def decode_signed_claim(record: bytes, *, path: str) -> SignedClaim:
    """The claim of a record; raises RecordRefused."""
    return _decoded(record, path, limit=CLAIM_LIMIT, parse=_parse_signed_claim)


def encode_confirmation(confirmation: Confirmation) -> bytes:
    """The body that is authenticated."""
    return encode_canonical(
        _renews(confirmation)
        | {
            "author": confirmation.author,
            "reader": confirmation.reader,
            "author_offer": confirmation.author_offer,
            "reader_offer": confirmation.reader_offer,
            "sequence": confirmation.sequence,
            "receives": [
                [
                    row.flow,
                    row.tenant,
                    str(row.src),
                    str(row.dst),
                    row.spi,
                    row.aead.value,
                    row.author_offer,
                    row.reader_offer,
                    *(() if row.esn else (SHORT_BITS,)),
                ]
                for row in confirmation.receives
            ],
            "sends": [
                [row.flow, row.tenant, str(row.src), str(row.dst), row.spi]
                for row in confirmation.sends
            ],
            "heard": confirmation.heard,
        }
    )


def _renews(confirmation: Confirmation) -> dict[str, Json]:
    if not confirmation.renews:
        return {}
    return {
        "renews": [
            [
                row.flow,
                row.tenant,
                str(row.src),
                str(row.dst),
                row.author_spent,
                row.reader_spent,
                int(row.proof),
                int(row.done),
            ]
            for row in confirmation.renews
        ]
    }


def encode_sealed_confirmation(body: bytes, *, mac: bytes, renewing: bool = False) -> bytes:
    """The record of a confirmation; `renewing` says that its body has `renews`."""
    kind = RENEWING_TYPE if renewing else CONFIRMATION_TYPE
    return encode_canonical({"type": kind, "body": to_base64(body), "mac": to_base64(mac)})


def decode_sealed_confirmation(record: bytes, *, path: str) -> SealedConfirmation:
    """The confirmation of a record; raises RecordRefused."""
    return _decoded(record, path, limit=CONFIRMATION_LIMIT, parse=_parse_sealed_confirmation)


def _decoded(record: bytes, path: str, *, limit: int, parse: Callable[[Json, int], T]) -> T:
    """Size first, then shape; ValueErrors become refusals."""
    if len(record) > limit:
        raise RecordRefused(RefusalReason.OVERSIZED, path, f"more than {limit} bytes")
    if not record.endswith(b"}"):
        raise RecordRefused(
            RefusalReason.TRUNCATED, path, f"{len(record)} bytes that do not end a record"
        )
    try:
        return parse(decode_canonical(record), limit)
    except _UnknownType as error:
        raise RecordRefused(RefusalReason.UNKNOWN_TYPE, path, str(error)) from None
    except ValueError as error:
        raise RecordRefused(RefusalReason.MALFORMED, path, str(error)) from None


class _UnknownType(ValueError):
    """The record is of a kind that is not expected here."""


def _envelope(value: Json, *kinds: str) -> tuple[Fields, str]:
    fields = Fields(value, "record")
    found = fields.text("type")
    if found not in kinds:
        raise _UnknownType(f"{found[:60]!r} where {kinds[0]!r} is expected")
    return fields, found


def _parse_signed_offer(value: Json, limit: int) -> SignedOffer:
    body, signature, chain = _parse_signed(value, OFFER_TYPE, limit)
    return SignedOffer(_parse_offer(decode_canonical(body)), body, signature, chain)


def _parse_signed_claim(value: Json, limit: int) -> SignedClaim:
    body, signature, chain = _parse_signed(value, CLAIM_TYPE, limit)
    return SignedClaim(_parse_claim(decode_canonical(body)), body, signature, chain)


def _parse_signed(value: Json, kind: str, limit: int) -> tuple[bytes, bytes, tuple[bytes, ...]]:
    """Body, signature and chain of an envelope."""
    fields, _ = _envelope(value, kind)
    body = fields.raw("body", limit=limit)
    signature = fields.raw("signature", limit=MAX_SIGNATURE)
    chain = fields.rows("chain", _parse_certificate, limit=MAX_CHAIN)
    fields.done()
    if not chain:
        raise ValueError("record.chain is empty")
    return body, signature, chain


def _parse_certificate(value: Json, where: str) -> bytes:
    return Fields({"der": value}, where).raw("der", limit=MAX_CERTIFICATE)


def _parse_offer(value: Json) -> Offer:
    fields = Fields(value, "offer")
    offer = Offer(
        host=_host(fields, "host"),
        sequence=OfferSeq(fields.number("sequence", low=1)),
        boot=_boot(fields.text("boot")),
        public=fields.raw("public", limit=PUBLIC_BYTES, exact=True),
        nonce=fields.raw("nonce", limit=NONCE_BYTES, exact=True),
        addresses=fields.rows("addresses", _parse_address, limit=MAX_ADDRESSES),
        fencing=fields.rows("fencing", _parse_token, limit=MAX_ADDRESSES),
        aeads=fields.rows("aeads", _parse_speed, limit=len(Aead)),
        ppk=fields.text_or_none("ppk"),
        not_after=WallTime(float(fields.number("not_after", high=2**53))),
    )
    fields.done()
    ascending(offer.addresses, key=address_order, what="offer.addresses")
    ascending(offer.fencing, key=lambda row: address_order(row[0]), what="offer.fencing")
    ascending(offer.aeads, key=lambda speed: (speed.aead.value,), what="offer.aeads")
    return offer


def _parse_claim(value: Json) -> Claim:
    fields = Fields(value, "claim")
    claim = Claim(
        service=_host(fields, "service"),
        owner=_host(fields, "owner"),
        token=fields.number("token", low=1),
        boot=_boot(fields.text("boot")),
        held=fields.flag("held"),
    )
    fields.done()
    return claim


def _parse_sealed_confirmation(value: Json, limit: int) -> SealedConfirmation:
    fields, kind = _envelope(value, CONFIRMATION_TYPE, RENEWING_TYPE)
    body = fields.raw("body", limit=limit)
    mac = fields.raw("mac", limit=MAC_BYTES, exact=True)
    fields.done()
    confirmation = _parse_confirmation(decode_canonical(body), renewing=kind == RENEWING_TYPE)
    return SealedConfirmation(confirmation, body, mac)


def _parse_confirmation(value: Json, *, renewing: bool) -> Confirmation:
    fields = Fields(value, "confirmation")
    confirmation = Confirmation(
        author=_host(fields, "author"),
        reader=_host(fields, "reader"),
        author_offer=OfferSeq(fields.number("author_offer", low=1)),
        reader_offer=OfferSeq(fields.number("reader_offer", low=1)),
        sequence=ConfirmationSeq(fields.number("sequence", low=1)),
        receives=fields.rows("receives", _parse_receives, limit=MAX_ROWS),
        sends=fields.rows("sends", _parse_sends, limit=MAX_ROWS),
        heard=ConfirmationSeq(fields.number("heard")),
        renews=fields.rows("renews", _parse_renews, limit=MAX_ROWS) if renewing else (),
    )
    fields.done()
    if renewing and not confirmation.renews:
        raise ValueError("confirmation.renews is empty")
    return confirmation


def _row(value: Json, where: str, names: tuple[str, ...]) -> Fields:
    """A list with one value per name, as fields."""
    if isinstance(value, str) or not isinstance(value, list) or len(value) != len(names):
        raise ValueError(f"{where} is no list of {len(names)} values")
    return Fields(dict(zip(names, value, strict=True)), where)


def _parse_receives(value: Json, where: str) -> Receives:
    short = isinstance(value, list) and len(value) == len(_RECEIVES) + 1
    fields = _row(value, where, (*_RECEIVES, "sequence_bits") if short else _RECEIVES)
    if short:
        fields.number("sequence_bits", low=SHORT_BITS, high=SHORT_BITS)
    row = _parse_sends_fields(fields)
    return Receives(
        row.flow,
        row.tenant,
        row.src,
        row.dst,
        row.spi,
        aead=_aead(fields.text("aead"), where),
        author_offer=OfferSeq(fields.number("author_offer", low=1)),
        reader_offer=OfferSeq(fields.number("reader_offer", low=1)),
        esn=not short,
    )


def _parse_sends(value: Json, where: str) -> Sends:
    return _parse_sends_fields(_row(value, where, ("flow", "tenant", "src", "dst", "spi")))


def _parse_renews(value: Json, where: str) -> Renews:
    fields = _row(
        value,
        where,
        ("flow", "tenant", "src", "dst", "author_spent", "reader_spent", "proof", "done"),
    )
    row = Renews(
        flow=FlowName(fields.text("flow")),
        tenant=_tenant(fields.text_or_none("tenant")),
        src=fields.address("src"),
        dst=fields.address("dst"),
        author_spent=OfferSeq(fields.number("author_spent")),
        reader_spent=OfferSeq(fields.number("reader_spent")),
        proof=bool(fields.number("proof", high=1)),
        done=bool(fields.number("done", high=1)),
    )
    if row.src.version != row.dst.version:
        raise ValueError(f"{row.src} and {row.dst} are of two families")
    return row


def _parse_sends_fields(fields: Fields) -> Sends:
    row = Sends(
        flow=FlowName(fields.text("flow")),
        tenant=_tenant(fields.text_or_none("tenant")),
        src=fields.address("src"),
        dst=fields.address("dst"),
        spi=Spi(fields.number("spi", low=MIN_SPI, high=MAX_SPI)),
    )
    if row.src.version != row.dst.version:
        raise ValueError(f"{row.src} and {row.dst} are of two families")
    return row


def _parse_address(value: Json, where: str) -> Address:
    return Fields({"address": value}, where).address("address")


def _parse_token(value: Json, where: str) -> tuple[Address, int]:
    fields = _row(value, where, ("address", "token"))
    return fields.address("address"), fields.number("token")


def _parse_speed(value: Json, where: str) -> AeadSpeed:
    fields = _row(value, where, ("aead", "bytes_per_second"))
    return AeadSpeed(_aead(fields.text("aead"), where), fields.number("bytes_per_second"))


def _aead(name: str, where: str) -> Aead:
    try:
        return Aead(name)
    except ValueError:
        raise ValueError(f"{where} names an unknown AEAD, {name[:60]!r}") from None


def _host(fields: Fields, name: str) -> HostName:
    host = fields.text(name)
    if not is_host_name(host):
        raise ValueError(f"{name} {host[:60]!r} is no host name")
    return HostName(host)


def _boot(text: str) -> Boot:
    if len(text) != 32 or not BOOT_DIGITS.issuperset(text):
        raise ValueError("boot is not 32 hex digits")
    return Boot(text)


def _tenant(text: str | None) -> TenantName | None:
    return None if text is None else TenantName(text)


def address_order(address: Address) -> tuple[int, int]:
    """Sort key: IPv4 before IPv6, then by number."""
    return address.version, int(address)
