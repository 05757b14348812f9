"""What charon tells unasked, as model types."""

from collections.abc import Callable, Mapping
from typing import Final

from tunsec.model.ike_sa import (
    CharonAlert,
    CharonSaid,
    ChildEnded,
    ChildEstablished,
    ChildRekeyed,
    IkeEnded,
    IkeEstablished,
    IkeEvent,
    IkeMoving,
    IkeRekeyed,
    IkeSa,
)
from tunsec.wire.vici.answers import decode_child_sa, decode_ike_sa
from tunsec.wire.vici.values import Section

OPTIONAL: Final = frozenset({"alert"})
"""Events that an older charon does not have: alert came with 6.0.3."""
PACKET_GROUPS: Final = frozenset({"NET", "ENC"})
"""Log groups that only say which packets came and went: eight lines for each probe of a peer."""


def decode_event(name: str, raw: Mapping[str, object]) -> tuple[IkeEvent, ...]:
    """What an event says; raises Malformed. One that nobody registered for says nothing."""
    decode = _DECODERS.get(name)
    return () if decode is None else decode(Section(raw, name))


def decode_control_log(raw: Mapping[str, object]) -> CharonSaid:
    """A line that charon wrote while it carried out initiate or terminate."""
    return _said(Section(raw, "control-log"))


def _ike_updown(event: Section) -> tuple[IkeEvent, ...]:
    ike = decode_ike_sa(*event.only_section())
    return (IkeEstablished(ike) if event.flag("up") else IkeEnded(ike),)


def _ike_rekey(event: Section) -> tuple[IkeEvent, ...]:
    name, both = event.only_section()
    old, new = (decode_ike_sa(name, both.section(key)) for key in ("old", "new"))
    return (IkeRekeyed(old, new),)


def _ike_update(event: Section) -> tuple[IkeEvent, ...]:
    ike = decode_ike_sa(*event.only_section())
    moved = IkeMoving(ike, event.maybe_address("local-host"), event.maybe_address("remote-host"))
    return (moved,)


def _child_updown(event: Section) -> tuple[IkeEvent, ...]:
    """One event per CHILD_SA in it: an IKE_SA that ends takes all of its own along."""
    ike = decode_ike_sa(*event.only_section())
    kind = ChildEstablished if event.flag("up") else ChildEnded
    return tuple(kind(ike, child) for child in ike.children)


def _child_rekey(event: Section) -> tuple[IkeEvent, ...]:
    name, section = event.only_section()
    ike = decode_ike_sa(name, section)
    _, both = section.section("child-sas").only_section()
    old, new = (decode_child_sa(both.section(key)) for key in ("old", "new"))
    return (ChildRekeyed(ike, old, new),)


def _alert(event: Section) -> tuple[IkeEvent, ...]:
    parent = event.maybe_section("ike-sa")
    ike: IkeSa | None = None if parent is None else decode_ike_sa(*parent.only_section())
    return (CharonAlert(event.text("type"), ike),)


def _log(event: Section) -> tuple[IkeEvent, ...]:
    said = _said(event)
    return () if said.group in PACKET_GROUPS else (said,)


def _said(event: Section) -> CharonSaid:
    return CharonSaid(
        group=event.text("group"),
        level=event.signed("level"),
        ike_name=event.maybe_text("ikesa-name"),
        ike_id=event.maybe_number("ikesa-uniqueid"),
        words=event.words("msg"),
    )


_DECODERS: Final[Mapping[str, Callable[[Section], tuple[IkeEvent, ...]]]] = {
    "ike-updown": _ike_updown,
    "ike-rekey": _ike_rekey,
    "ike-update": _ike_update,
    "child-updown": _child_updown,
    "child-rekey": _child_rekey,
    "alert": _alert,
    "log": _log,
}

EVENTS: Final = tuple(_DECODERS)
"""What to register for."""
