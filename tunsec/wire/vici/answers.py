"""charon's answers and lists as model types."""

from collections.abc import Mapping
from typing import Final

from tunsec.model.aead import Aead
from tunsec.model.ike_sa import (
    Algorithms,
    CharonStats,
    CharonVersion,
    ChildSa,
    ChildSaKeyed,
    ChildState,
    IkeSa,
    IkeState,
    LoadedConnection,
    Traffic,
)
from tunsec.model.names import Reqid, Spi
from tunsec.wire.vici.values import U64, Section

_AEADS: Final = {
    ("AES_GCM_16", 128): Aead.AES_128_GCM,
    ("AES_GCM_16", 256): Aead.AES_256_GCM,
    ("CHACHA20_POLY1305", 256): Aead.CHACHA20_POLY1305,
    ("CHACHA20_POLY1305", None): Aead.CHACHA20_POLY1305,
}
_EXCHANGES: Final = ("dh-group", *(f"ake{number}" for number in range(1, 8)))


def decode_list_sa(raw: Mapping[str, object]) -> IkeSa:
    """One list-sa event: an IKE_SA and its CHILD_SAs; raises Malformed."""
    return decode_ike_sa(*Section(raw, "list-sa").only_section())


def decode_ike_sa(name: str, ike: Section) -> IkeSa:
    """An IKE_SA from its section. `child-sas` may be missing; entries with `old` and `new`, as
    child-rekey has them, are not its own."""
    children = ike.maybe_section("child-sas")
    return IkeSa(
        name=name,
        id=ike.number("uniqueid"),
        state=_ike_state(ike.text("state")),
        version=ike.number("version"),
        initiator=ike.flag("initiator"),
        local=ike.maybe_address("local-host"),
        remote=ike.maybe_address("remote-host"),
        local_identity=ike.words("local-id"),
        remote_identity=ike.words("remote-id"),
        initiator_spi=ike.hexadecimal("initiator-spi", most=U64),
        responder_spi=ike.hexadecimal("responder-spi", most=U64),
        algorithms=tuple(
            ike.text(key) for key in ("encr-alg", "prf-alg", *_EXCHANGES) if key in ike
        ),
        ppk=ike.flag("ppk"),
        established_for=ike.maybe_number("established"),
        rekey_in=ike.maybe_signed("rekey-time"),
        reauth_in=ike.maybe_signed("reauth-time"),
        tasks=ike.texts("tasks-active") + ike.texts("tasks-queued"),
        children=tuple(
            decode_child_sa(child)
            for _, child in (children.sections() if children else ())
            if "uniqueid" in child
        ),
    )


def decode_child_sa(child: Section) -> ChildSa:
    """A CHILD_SA from its section."""
    return ChildSa(
        name=child.text("name"),
        id=child.number("uniqueid"),
        reqid=Reqid(child.number("reqid")),
        state=_child_state(child.text("state")),
        mode=child.text("mode"),
        label=_label(child),
        local=child.texts("local-ts"),
        remote=child.texts("remote-ts"),
        keyed=_keyed(child) if "spi-in" in child else None,
    )


def decode_version(raw: Mapping[str, object]) -> CharonVersion:
    """The answer to version."""
    answer = Section(raw, "version")
    return CharonVersion(answer.text("daemon"), answer.text("version"), answer.words("release"))


def decode_stats(raw: Mapping[str, object]) -> CharonStats:
    """The answer to stats."""
    answer = Section(raw, "stats")
    workers, queues, ike_sas = (answer.section(key) for key in ("workers", "queues", "ikesas"))
    return CharonStats(
        workers=workers.number("total"),
        idle_workers=workers.number("idle"),
        queued_jobs=sum(queues.number(key) for key in ("critical", "high", "medium", "low")),
        ike_sas=ike_sas.number("total"),
        half_open=ike_sas.number("half-open"),
        plugins=answer.texts("plugins"),
    )


def decode_algorithms(raw: Mapping[str, object]) -> Algorithms:
    """The answer to get-algorithms; a kind that charon has nothing of is empty."""
    answer = Section(raw, "get-algorithms")

    def names(kind: str) -> frozenset[str]:
        section = answer.maybe_section(kind)
        return section.keys() if section is not None else frozenset()

    return Algorithms(names("aead"), names("prf"), names("ke"))


def decode_list_conn(raw: Mapping[str, object]) -> LoadedConnection:
    """One list-conn event."""
    name, connection = Section(raw, "list-conn").only_section()
    children = connection.maybe_section("children")
    return LoadedConnection(
        name,
        connection.texts("local_addrs"),
        connection.texts("remote_addrs"),
        tuple(child for child, _ in (children.sections() if children else ())),
    )


def decode_names(raw: Mapping[str, object], *, command: str, key: str) -> tuple[str, ...]:
    """The one list of get-conns, get-shared, get-keys or get-authorities."""
    return Section(raw, command).texts(key)


def _keyed(child: Section) -> ChildSaKeyed:
    cipher = child.maybe_text("encr-alg")
    bits = child.maybe_number("encr-keysize")
    return ChildSaKeyed(
        spi_in=Spi(child.hexadecimal("spi-in")),
        spi_out=Spi(child.hexadecimal("spi-out")),
        aead=_AEADS.get((cipher, bits)) if cipher is not None else None,
        esn=child.flag("esn"),
        udp_encapsulated=child.flag("encap"),
        key_exchanges=tuple(child.text(key) for key in _EXCHANGES if key in child),
        mark_in=child.maybe_mark("mark-in", "mark-mask-in"),
        mark_out=child.maybe_mark("mark-out", "mark-mask-out"),
        inbound=_traffic(child, "in"),
        outbound=_traffic(child, "out"),
        installed_for=child.number("install-time"),
        rekey_in=child.maybe_signed("rekey-time"),
        ends_in=child.maybe_signed("life-time"),
    )


def _traffic(child: Section, way: str) -> Traffic:
    return Traffic(
        volume=child.number(f"bytes-{way}", most=U64),
        packets=child.number(f"packets-{way}", most=U64),
        idle_for=child.maybe_number(f"use-{way}", most=U64),
    )


def _label(child: Section) -> str | None:
    """charon writes a label as hexadecimal digits, with the zero byte that ends it."""
    text = child.maybe_text("label")
    if text is None:
        return None
    try:
        return bytes.fromhex(text).rstrip(b"\0").decode("ascii", "replace")
    except ValueError:
        return text


def _ike_state(text: str) -> IkeState:
    return IkeState(text) if text in IkeState.__members__ else IkeState.OTHER


def _child_state(text: str) -> ChildState:
    return ChildState(text) if text in ChildState.__members__ else ChildState.OTHER
