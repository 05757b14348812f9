"""Connections, credentials and commands as VICI dictionaries.

charon refuses keys that it does not know (`unknown option: NAME`), but truncates and misreads some
values in silence: its parsers take numbers of at most 15 characters, and text with a `%`, a `*` or
a comma means something else to it. So values are checked here.
"""

from collections.abc import Iterable, Sequence
from typing import Final, TypeAlias

from tunsec.model.aead import Aead
from tunsec.model.flow import OffloadWish
from tunsec.model.ike import (
    MAX_NAME,
    MAX_NUMBER,
    Authority,
    CertificateAuth,
    EspProposal,
    IkeChild,
    IkeConnection,
    IkeProposal,
    KeyExchange,
    Limits,
    SharedKind,
    SharedSecret,
    TrafficSelector,
)
from tunsec.model.names import Mark
from tunsec.model.ownership import is_our_reqid
from tunsec.model.secret import Secret
from tunsec.wire.vici.values import U32, Malformed

Value: TypeAlias = "str | bytes | Sequence[str | bytes] | dict[str, Value]"
Message: TypeAlias = dict[str, Value]

MAX_LABEL: Final = 200
MAX_IDENTITY: Final = 253
"""Characters of a DNS name (RFC 1035 section 3.1); parse_id reads into char[512], and charon itself
refuses an owner of a shared secret beyond 250."""
_UNITS: Final = (("g", 1 << 30), ("m", 1 << 20), ("k", 1 << 10))

_CIPHER: Final = {
    Aead.AES_128_GCM: "aes128gcm16",
    Aead.AES_256_GCM: "aes256gcm16",
    Aead.CHACHA20_POLY1305: "chacha20poly1305",
}
_OFFLOAD: Final = {
    OffloadWish.NONE: "no",
    OffloadWish.CRYPTO: "crypto",
    OffloadWish.PACKET: "packet",
    OffloadWish.AUTO: "auto",
}


def encode_connection(connection: IkeConnection) -> Message:
    """The request of load-conn; raises Malformed."""
    where = connection.name
    if not connection.children or not connection.proposals:
        raise Malformed(f"{where}: a connection needs children and proposals")
    if not connection.local or not connection.remote:
        raise Malformed(f"{where}: a connection needs local and remote addresses")
    body: Message = {
        "version": "2",
        "local_addrs": [str(address) for address in connection.local],
        "remote_addrs": [str(address) for address in connection.remote],
        "local_port": _number(connection.port, f"{where}.local_port", most=0xFFFF),
        "remote_port": _number(connection.port, f"{where}.remote_port", most=0xFFFF),
        "proposals": [encode_ike_proposal(proposal) for proposal in connection.proposals],
        "mobike": "no",  # addresses are the policy's; an SA must not wander off with them
        "unique": connection.unique.value,
        "send_cert": "always",
        "keyingtries": "1",  # the daemon decides when to try again
        "dpd_delay": _span(connection.dpd_after or 0.0, f"{where}.dpd_delay"),
        "local": _local(connection),
        "remote": _remote(connection),
        "children": _children(connection),
    }
    seconds = connection.seconds
    body["rekey_time"] = _count(seconds.rekey, f"{where}.rekey_time")
    body["rand_time"] = _count(seconds.jitter, f"{where}.rand_time")
    body["over_time"] = _count(_over(seconds, where), f"{where}.over_time")
    body["reauth_time"] = _span(connection.reauth_after or 0.0, f"{where}.reauth_time")
    if connection.ppk_id is not None:
        body["ppk_id"] = _ppk_id(connection.ppk_id, where)
        body["ppk_required"] = "yes"
    return {_name(connection.name, "connection"): body}


def encode_ike_proposal(proposal: IkeProposal) -> str:
    """In charon's keywords: `aes256gcm16-prfsha384-x25519-ke1_mlkem768`."""
    if not proposal.prfs:
        raise Malformed("an IKE proposal needs a PRF")
    return "-".join(
        (
            _CIPHER[proposal.aead],
            *(prf.value for prf in proposal.prfs),
            *_exchanges(proposal.key_exchanges, proposal.additional),
        )
    )


def encode_esp_proposal(proposal: EspProposal) -> str:
    """In charon's keywords: `aes256gcm16-x25519-esn`."""
    return "-".join(
        (
            _CIPHER[proposal.aead],
            *_exchanges(proposal.key_exchanges, proposal.additional),
            "esn" if proposal.esn else "noesn",
        )
    )


def encode_selector(selector: TrafficSelector) -> str:
    """In charon's writing: `192.0.2.11/32[17/4789]`."""
    if not 0 <= selector.proto <= 0xFF:
        raise Malformed(f"{selector}: a protocol is a number up to 255")
    if not 0 <= selector.first_port <= selector.last_port <= 0xFFFF:
        raise Malformed(f"{selector}: ports go up from 0 to 65535")
    match selector.first_port, selector.last_port:
        case 0, 0xFFFF:
            ports = ""
        case first, last if first == last:
            ports = f"/{first}"
        case first, last:
            ports = f"/{first}-{last}"
    if not selector.proto and not ports:
        return str(selector.network)
    return f"{selector.network}[{selector.proto or 'any'}{ports}]"


def encode_shared(shared: SharedSecret) -> Message:
    """The request of load-shared; raises Malformed. It holds the secret."""
    if not shared.owners:
        raise Malformed(f"{shared.id}: without owners a secret would serve every peer")
    identity = _ppk_id if shared.kind is SharedKind.PPK else _identity
    return {
        "id": _name(shared.id, "shared secret"),
        "type": shared.kind.value,
        "data": shared.secret.reveal(),
        "owners": [identity(owner, shared.id) for owner in shared.owners],
    }


def encode_key(pem: Secret) -> Message:
    """The request of load-key, for a private key as PEM or DER. It holds the key."""
    return {"type": "any", "data": pem.reveal()}


def encode_certificate(der: bytes) -> Message:
    """The request of load-cert for an end entity or an intermediate CA."""
    return {"type": "X509", "flag": "NONE", "data": der}


def encode_crl(der: bytes) -> Message:
    """The request of load-cert for a revocation list: a newer one takes an older one's place."""
    return {"type": "X509_CRL", "data": der}


def encode_authority(authority: Authority) -> Message:
    """The request of load-authority."""
    return {_name(authority.name, "authority"): {"cacert": authority.certificate}}


def encode_initiate(*, ike: str, child: str, timeout_ms: int) -> Message:
    """The request of initiate; `timeout_ms` -1 asks for no result."""
    return {
        "ike": _name(ike, "connection"),
        "child": _name(child, "child"),
        "timeout": str(timeout_ms),
        "loglevel": "1",
    }


def _local(connection: IkeConnection) -> Message:
    body: Message = {"id": _identity(connection.local_identity, connection.name)}
    if isinstance(connection.auth, CertificateAuth):
        if not connection.auth.certificates:
            raise Malformed(f"{connection.name}: no certificate of this host")
        return body | {"auth": "pubkey", "certs": list(connection.auth.certificates)}
    return body | {"auth": "psk"}


def _remote(connection: IkeConnection) -> Message:
    body: Message = {"id": _identity(connection.remote_identity, connection.name)}
    if isinstance(connection.auth, CertificateAuth):
        if not connection.auth.authorities:
            raise Malformed(f"{connection.name}: without an authority any CA would do")
        return body | {
            "auth": "pubkey",
            "cacerts": list(connection.auth.authorities),
            "revocation": connection.auth.revocation.value,
        }
    return body | {"auth": "psk"}


def _children(connection: IkeConnection) -> Message:
    names = [child.name for child in connection.children]
    if len(set(names)) != len(names):
        raise Malformed(f"{connection.name}: two children have one name")
    return {
        _name(child.name, "child"): _child(child, f"{connection.name}.{child.name}")
        for child in connection.children
    }


def _child(child: IkeChild, where: str) -> Message:
    if not is_our_reqid(child.reqid):
        raise Malformed(f"{where}: reqid {child.reqid:#x} is not tunsec's")
    if not child.proposals or not child.local or not child.remote:
        raise Malformed(f"{where}: a child needs proposals and traffic selectors")
    body: Message = {
        "mode": "transport",
        "policies": "no",
        "reqid": str(child.reqid),
        "local_ts": [encode_selector(selector) for selector in child.local],
        "remote_ts": [encode_selector(selector) for selector in child.remote],
        "esp_proposals": [encode_esp_proposal(proposal) for proposal in child.proposals],
        "replay_window": _number(child.replay_window, f"{where}.replay_window", most=4096),
        "hw_offload": _OFFLOAD[child.offload],
        # The daemon decides: nothing starts, comes back or hides behind a trap by itself.
        "start_action": "none",
        "close_action": "none",
        "dpd_action": "clear",
    }
    for kind, limits in (
        ("time", child.seconds),
        ("bytes", child.volume),
        ("packets", child.packets),
    ):
        body |= _limits(limits, kind, where)
    if child.label is not None:
        body |= {"label": _label(child.label, where), "label_mode": "simple"}
    if child.mark_in is not None:
        body |= {"mark_in": _mark(child.mark_in, where), "mark_in_sa": "yes"}
    for key, mark in (
        ("mark_out", child.mark_out),
        ("set_mark_in", child.set_mark_in),
        ("set_mark_out", child.set_mark_out),
    ):
        if mark is not None:
            body[key] = _mark(mark, where)
    return body


def _limits(limits: Limits, kind: str, where: str) -> Message:
    """Always all three: charon makes up what is left out."""
    if limits.rekey is not None and limits.jitter >= limits.rekey:
        raise Malformed(f"{where}: jitter {limits.jitter} leaves nothing of {limits.rekey} {kind}")
    if limits.rekey and limits.life is not None and limits.life <= limits.rekey:
        raise Malformed(f"{where}: the end {limits.life} is not after {limits.rekey} {kind}")
    return {
        f"{name}_{kind}": _count(value, f"{where}.{name}_{kind}", scaled=kind == "bytes")
        for name, value in (
            ("rekey", limits.rekey),
            ("life", limits.life),
            ("rand", limits.jitter if limits.rekey else 0),
        )
    }


def _over(seconds: Limits, where: str) -> int:
    """From the last moment of rekeying to the end."""
    if seconds.life is None:
        return 0
    over = seconds.life - (seconds.rekey or 0)
    if over <= 0:
        raise Malformed(f"{where}: the IKE_SA ends before it is replaced")
    return over


def _exchanges(exchanges: Iterable[KeyExchange], additional: KeyExchange | None) -> tuple[str, ...]:
    first = tuple(exchange.value for exchange in exchanges)
    if not first:
        raise Malformed("a proposal needs a key exchange: without one there is no forward secrecy")
    if KeyExchange.ML_KEM_768 in first:
        raise Malformed("ML-KEM is never the only key exchange")
    return first if additional is None else (*first, f"ke1_{additional.value}")


def _name(name: str, what: str) -> str:
    """A name that charon stores as it is."""
    if not 0 < len(name) <= MAX_NAME or not name.isascii() or not name.isprintable():
        raise Malformed(f"{name!r} cannot be the name of a {what}")
    return name


def _plain(text: str, where: str) -> str:
    """Text in which charon sees no wildcard, prefix or DN."""
    wrong = set(text) & set("*%=,:@# \\\"'")
    if not 0 < len(text) <= MAX_IDENTITY or not text.isascii() or not text.isprintable() or wrong:
        raise Malformed(f"{where}: {text!r} cannot be an identity")
    return text


def _identity(host: str, where: str) -> str:
    """An ID_FQDN, also for a name that looks like something else."""
    return f"fqdn:{_plain(host, where)}"


def _ppk_id(text: str, where: str) -> str:
    """As it is: the responder reads it from the peer's notify in the same way, so a prefix here
    would never match there."""
    return _plain(text, where)


def _label(label: str, where: str) -> str:
    if not 0 < len(label) <= MAX_LABEL or not label.isascii() or not label.isprintable():
        raise Malformed(f"{where}: {label!r} cannot be a label")
    return label


def _mark(mark: Mark, where: str) -> str:
    # 0xffffffff and 0xfffffffe are %unique and %unique-dir to charon (MARK_UNIQUE).
    if not 0 < mark.value < U32 - 1 or not 0 < mark.mask <= U32 or mark.value & ~mark.mask:
        raise Malformed(f"{where}: {mark} cannot be a mark")
    return f"{mark.value:#x}/{mark.mask:#x}"


def _number(value: int, where: str, *, most: int) -> str:
    if not 0 < value <= most:
        raise Malformed(f"{where}: {value} is not a number of 1 to {most}")
    return str(value)


def _span(seconds: float, where: str) -> str:
    """Whole seconds; a part of one counts as one, since 0 means never."""
    whole = int(seconds)
    return _count(whole + (whole < seconds), where)


def _count(value: int | None, where: str, *, scaled: bool = False) -> str:
    """A number, 0 for none."""
    if value is None:
        return "0"
    if value < 0:
        raise Malformed(f"{where}: {value} is below 0")
    text = str(value)
    if value > MAX_NUMBER and scaled:
        unit, factor = next(((u, f) for u, f in _UNITS if value % f == 0), ("", 1))
        text = f"{value // factor}{unit}"
    if len(text) > len(str(MAX_NUMBER)):
        raise Malformed(f"{where}: {value} has more digits than charon reads")
    return text
