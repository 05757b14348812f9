"""Lists and events as charon 6.0.1 sent them, and what becomes of damaged ones."""

from collections.abc import Mapping
from contextlib import suppress
from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunsec.model.aead import Aead
from tunsec.model.ike_sa import (
    CharonAlert,
    CharonSaid,
    CharonVersion,
    ChildEnded,
    ChildEstablished,
    ChildRekeyed,
    ChildState,
    IkeEnded,
    IkeEstablished,
    IkeMoving,
    IkeRekeyed,
    IkeState,
)
from tunsec.model.names import Mark
from tunsec.wire.vici.answers import (
    decode_algorithms,
    decode_list_conn,
    decode_list_sa,
    decode_names,
    decode_stats,
    decode_version,
)
from tunsec.wire.vici.events import EVENTS, decode_event
from tunsec.wire.vici.values import Malformed

CHILD: Mapping[str, Any] = {
    "name": b"overlay.0",
    "uniqueid": b"1",
    "reqid": b"1409286148",
    "state": b"INSTALLED",
    "mode": b"TRANSPORT",
    "label": b"6f7665726c61792e3000",
    "protocol": b"ESP",
    "spi-in": b"c0d79af1",
    "spi-out": b"cd6074f6",
    "mark-out": b"00000141",
    "mark-mask-out": b"00ffffff",
    "encr-alg": b"CHACHA20_POLY1305",
    "encr-keysize": b"256",
    "esn": b"1",
    "bytes-in": b"628",
    "packets-in": b"6",
    "use-in": b"0",
    "bytes-out": b"18446744073709551615",
    "packets-out": b"0",
    "rekey-time": b"-3",
    "life-time": b"5400",
    "install-time": b"0",
    "local-ts": [b"192.0.2.11/32[udp]"],
    "remote-ts": [b"192.0.2.12/32[udp]"],
    "an-option-of-tomorrow": b"yes",
}
IKE: Mapping[str, Any] = {
    "uniqueid": b"1",
    "version": b"2",
    "state": b"ESTABLISHED",
    "local-host": b"192.0.2.11",
    "local-port": b"500",
    "local-id": b"a",
    "remote-host": b"192.0.2.12",
    "remote-port": b"500",
    "remote-id": b"b",
    "initiator": b"yes",
    "initiator-spi": b"db178b6e9a4a3b5a",
    "responder-spi": b"2291a4cf3bdc4848",
    "encr-alg": b"CHACHA20_POLY1305",
    "encr-keysize": b"256",
    "prf-alg": b"PRF_HMAC_SHA2_384",
    "dh-group": b"CURVE_25519",
    "ake1": b"ML_KEM_768",
    "ppk": b"yes",
    "established": b"0",
    "rekey-time": b"13928",
    "tasks-active": [b"CHILD_REKEY"],
}


def listed(ike: Mapping[str, Any] = IKE, child: Mapping[str, Any] = CHILD) -> dict[str, Any]:
    return {"tunsec-b": {**ike, "child-sas": {"overlay.0-1": dict(child)}}}


def test_an_ike_sa_and_its_child() -> None:
    ike = decode_list_sa(listed())
    assert (ike.name, ike.id, ike.state, ike.initiator) == (
        "tunsec-b",
        1,
        IkeState.ESTABLISHED,
        True,
    )
    assert (str(ike.local), str(ike.remote)) == ("192.0.2.11", "192.0.2.12")
    assert ike.initiator_spi == 0xDB178B6E9A4A3B5A
    assert ike.algorithms == (
        "CHACHA20_POLY1305",
        "PRF_HMAC_SHA2_384",
        "CURVE_25519",
        "ML_KEM_768",
    )
    assert ike.ppk
    assert ike.tasks == ("CHILD_REKEY",)
    (child,) = ike.children
    assert (child.name, child.reqid, child.state) == (
        "overlay.0",
        0x54000004,
        ChildState.INSTALLED,
    )
    assert child.label == "overlay.0"
    keyed = child.keyed
    assert keyed is not None
    assert (keyed.spi_in, keyed.spi_out) == (0xC0D79AF1, 0xCD6074F6)
    assert (keyed.aead, keyed.esn) == (Aead.CHACHA20_POLY1305, True)
    assert (keyed.mark_in, keyed.mark_out) == (None, Mark(0x141, 0xFFFFFF))
    assert (keyed.outbound.volume, keyed.outbound.idle_for) == (2**64 - 1, None)
    assert (keyed.rekey_in, keyed.ends_in) == (-3, 5400)


def test_a_child_under_way_has_no_keys() -> None:
    early = {key: CHILD[key] for key in ("name", "uniqueid", "reqid", "mode")}
    (child,) = decode_list_sa(listed(child={**early, "state": b"CREATED"})).children
    assert (child.keyed, child.state, child.local) == (None, ChildState.CREATED, ())


def test_states_of_tomorrow_are_other() -> None:
    ike = decode_list_sa(listed({**IKE, "state": b"LEVITATING"}, {**CHILD, "state": b"BLISS"}))
    assert (ike.state, ike.children[0].state) == (IkeState.OTHER, ChildState.OTHER)


def test_an_address_that_is_not_settled() -> None:
    ike = decode_list_sa(listed({**IKE, "remote-host": b"%any"}))
    assert ike.remote is None


@pytest.mark.parametrize(
    ("cipher", "bits", "aead"),
    [
        (b"AES_GCM_16", b"128", Aead.AES_128_GCM),
        (b"AES_GCM_16", b"256", Aead.AES_256_GCM),
        (b"AES_GCM_16", b"192", None),
        (b"AES_CBC", b"256", None),
    ],
)
def test_ciphers(cipher: bytes, bits: bytes, aead: Aead | None) -> None:
    child = {**CHILD, "encr-alg": cipher, "encr-keysize": bits}
    keyed = decode_list_sa(listed(child=child)).children[0].keyed
    assert keyed is not None
    assert keyed.aead is aead


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        (
            "spi-in",
            b"zz",
            "list-sa.tunsec-b.child-sas.overlay.0-1.spi-in: b'zz' is not a hexadecimal",
        ),
        ("spi-in", b"1c0d79af1", "hexadecimal number up to ffffffff"),
        ("spi-in", b" 1", "hexadecimal"),
        ("reqid", b"-1", "is not a number"),
        ("reqid", b"0x10", "is not a number"),
        ("reqid", b"99999999999", "is not a number up to"),
        ("bytes-in", b"18446744073709551616", "is not a number up to"),
        ("bytes-in", b"1" * 5000, "is not a number up to"),
        ("bytes-in", "\u0662".encode(), "is not a number"),
        ("name", b"a\x1b[31m", "is not printable text"),
        ("name", b"\xff", "is not UTF-8 text"),
        ("name", [b"a"], "a list is not a value"),
        ("local-ts", b"192.0.2.11/32", "is not a list"),
        ("esn", b"perhaps", "is not yes or no"),
    ],
)
def test_damage_is_named(key: str, value: object, told: str) -> None:
    with pytest.raises(Malformed) as caught:
        decode_list_sa(listed(child={**CHILD, key: value}))
    assert told in str(caught.value)
    assert key in str(caught.value)


@pytest.mark.parametrize("key", ["name", "uniqueid", "state", "spi-out", "install-time"])
def test_what_is_missing_is_named(key: str) -> None:
    child = {name: value for name, value in CHILD.items() if name != key}
    if key == "uniqueid":
        assert decode_list_sa(listed(child=child)).children == ()
        return
    with pytest.raises(Malformed, match=rf"{key}: is not there"):
        decode_list_sa(listed(child=child))


def test_events() -> None:
    up = {"up": b"yes", **listed()}
    ((established,), (ended,)) = (
        decode_event("child-updown", up),
        decode_event("child-updown", listed()),
    )
    assert isinstance(established, ChildEstablished)
    assert isinstance(ended, ChildEnded)
    assert established.child == ended.child
    assert isinstance(decode_event("ike-updown", {"up": b"yes", "n": IKE})[0], IkeEstablished)
    assert isinstance(decode_event("ike-updown", {"n": IKE})[0], IkeEnded)
    (rekeyed,) = decode_event("ike-rekey", {"n": {"old": IKE, "new": {**IKE, "uniqueid": b"2"}}})
    assert isinstance(rekeyed, IkeRekeyed)
    assert (rekeyed.old.id, rekeyed.new.id) == (1, 2)
    (moving,) = decode_event(
        "ike-update", {"local-host": b"192.0.2.99", "remote-host": b"192.0.2.12", "n": IKE}
    )
    assert isinstance(moving, IkeMoving)
    assert (str(moving.local), str(moving.ike.local)) == ("192.0.2.99", "192.0.2.11")


def test_a_rekeyed_child() -> None:
    both = {"old": {**CHILD, "state": b"REKEYED"}, "new": {**CHILD, "uniqueid": b"2"}}
    (event,) = decode_event("child-rekey", {"n": {**IKE, "child-sas": {"overlay.0": both}}})
    assert isinstance(event, ChildRekeyed)
    assert (event.old.state, event.new.id, event.ike.children) == (ChildState.REKEYED, 2, ())


def test_an_alert_with_and_without_an_ike_sa() -> None:
    assert decode_event("alert", {"type": b"shutdown-signal"}) == (
        CharonAlert("shutdown-signal", None),
    )
    (alert,) = decode_event("alert", {"type": b"cert-expired", "ike-sa": {"n": IKE}})
    assert isinstance(alert, CharonAlert)
    assert alert.ike is not None
    assert alert.ike.remote_identity == "b"


def test_log_lines_cannot_write_on_a_terminal() -> None:
    (said,) = decode_event(
        "log",
        {"group": b"IKE", "level": b"1", "ikesa-uniqueid": b"3", "msg": b"a\x1b[2J\n\xff"},
    )
    assert said == CharonSaid("IKE", 1, None, 3, "a?[2J?\ufffd")


@pytest.mark.parametrize(("group", "told"), [(b"NET", 0), (b"ENC", 0), (b"IKE", 1), (b"CFG", 1)])
def test_log_lines_of_packets_tell_nothing(group: bytes, told: int) -> None:
    assert len(decode_event("log", {"group": group, "level": b"1", "msg": b"x"})) == told


def test_short_answers() -> None:
    raw = {"daemon": b"charon", "version": b"6.0.1", "sysname": b"Linux", "release": b"7.3.4"}
    assert decode_version(raw) == CharonVersion("charon", "6.0.1", "7.3.4")
    queues = dict.fromkeys(("critical", "high", "medium", "low"), b"1")
    stats = decode_stats(
        {
            "workers": {"total": b"32", "idle": b"27", "active": queues},
            "queues": queues,
            "ikesas": {"total": b"2", "half-open": b"1"},
            "plugins": [b"vici"],
        }
    )
    assert (stats.queued_jobs, stats.half_open, stats.plugins) == (4, 1, ("vici",))
    assert decode_algorithms({"ke": {"ECP_256": b"openssl"}}).key_exchanges == {"ECP_256"}
    assert decode_names({"conns": [b"tunsec-b"]}, command="get-conns", key="conns") == ("tunsec-b",)
    loaded = decode_list_conn({"n": {"local_addrs": [b"%any"], "children": {"c": {}}}})
    assert (loaded.name, loaded.local, loaded.children) == ("n", ("%any",), ("c",))


@pytest.mark.parametrize(
    ("version", "release"),
    [
        ("6.0.1", (6, 0)),
        ("5.9.14", (5, 9)),
        ("6.0beta1", (6, 0)),
        ("6.10", (6, 10)),
        ("git", (0, 0)),
    ],
)
def test_releases(version: str, release: tuple[int, int]) -> None:
    assert CharonVersion("charon", version, "7").release == release


VALUES: st.SearchStrategy[Any] = st.recursive(
    st.binary(max_size=20) | st.lists(st.binary(max_size=9), max_size=3),
    lambda inner: st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=6,
)


@given(
    path=st.lists(st.sampled_from([*IKE, *CHILD, "child-sas", "overlay.0-1"]), min_size=1),
    value=VALUES,
    event=st.sampled_from(EVENTS),
)
def test_nothing_but_malformed_comes_of_hostile_values(
    path: list[str], value: object, event: str
) -> None:
    raw = deepcopy(listed())
    place = raw["tunsec-b"]
    for key in path[:-1]:
        if isinstance(place.get(key), dict):
            place = place[key]
    place[path[-1]] = value
    for decode in (lambda: decode_list_sa(raw), lambda: decode_event(event, raw)):
        with suppress(Malformed):
            decode()
