"""Requests to charon: what they say, and what is never sent."""

import ipaddress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vici.protocol import FiniteStream, Message

from tunsec.model.aead import Aead
from tunsec.model.clock import Seconds
from tunsec.model.flow import OffloadWish
from tunsec.model.ike import (
    Authority,
    CertificateAuth,
    EspProposal,
    IkeChild,
    IkeConnection,
    IkeProposal,
    KeyExchange,
    Limits,
    Prf,
    PskAuth,
    Revocation,
    SharedKind,
    SharedSecret,
    TrafficSelector,
)
from tunsec.model.names import Mark, Reqid
from tunsec.model.ownership import REQID_FIRST
from tunsec.model.secret import Secret
from tunsec.wire.vici.requests import (
    encode_authority,
    encode_connection,
    encode_esp_proposal,
    encode_initiate,
    encode_selector,
    encode_shared,
)
from tunsec.wire.vici.values import Malformed

LOCAL, REMOTE = ipaddress.ip_address("2001:db8::11"), ipaddress.ip_address("2001:db8::12")
ESP = EspProposal(Aead.CHACHA20_POLY1305, (KeyExchange.X25519,))
CHILD = IkeChild(
    name="overlay.0",
    reqid=Reqid(REQID_FIRST + 4),
    local=(TrafficSelector(ipaddress.ip_network(LOCAL), 17),),
    remote=(TrafficSelector(ipaddress.ip_network(REMOTE), 17, 4789, 4789),),
    proposals=(ESP,),
    replay_window=1024,
    seconds=Limits(3600, 5400, 360),
    volume=Limits(1 << 38, 1 << 39, 1 << 33),
    label="overlay/red/0",
    mark_out=Mark(0x141, 0xFFFFFF),
    offload=OffloadWish.CRYPTO,
)
CONNECTION = IkeConnection(
    name="tunsec-b",
    local=(LOCAL,),
    remote=(REMOTE,),
    local_identity="a",
    remote_identity="b",
    auth=CertificateAuth((b"leaf",), (b"root",), Revocation.STRICT),
    proposals=(IkeProposal(Aead.AES_256_GCM, (Prf.SHA384,), (KeyExchange.ECP384,)),),
    children=(CHILD,),
    seconds=Limits(14_400, 18_000, 1440),
    dpd_after=Seconds(0.5),
)


def test_a_connection_says_everything() -> None:
    assert encode_connection(CONNECTION) == {
        "tunsec-b": {
            "version": "2",
            "local_addrs": ["2001:db8::11"],
            "remote_addrs": ["2001:db8::12"],
            "local_port": "500",
            "remote_port": "500",
            "proposals": ["aes256gcm16-prfsha384-ecp384"],
            "mobike": "no",
            "unique": "replace",
            "send_cert": "always",
            "keyingtries": "1",
            "dpd_delay": "1",
            "rekey_time": "14400",
            "rand_time": "1440",
            "over_time": "3600",
            "reauth_time": "0",
            "local": {"id": "fqdn:a", "auth": "pubkey", "certs": [b"leaf"]},
            "remote": {
                "id": "fqdn:b",
                "auth": "pubkey",
                "cacerts": [b"root"],
                "revocation": "strict",
            },
            "children": {
                "overlay.0": {
                    "mode": "transport",
                    "policies": "no",
                    "reqid": str(0x54000004),
                    "local_ts": ["2001:db8::11/128[17]"],
                    "remote_ts": ["2001:db8::12/128[17/4789]"],
                    "esp_proposals": ["chacha20poly1305-x25519-esn"],
                    "replay_window": "1024",
                    "hw_offload": "crypto",
                    "start_action": "none",
                    "close_action": "none",
                    "dpd_action": "clear",
                    "rekey_time": "3600",
                    "life_time": "5400",
                    "rand_time": "360",
                    "rekey_bytes": "274877906944",
                    "life_bytes": "549755813888",
                    "rand_bytes": "8589934592",
                    "rekey_packets": "0",
                    "life_packets": "0",
                    "rand_packets": "0",
                    "label": "overlay/red/0",
                    "label_mode": "simple",
                    "mark_out": "0x141/0xffffff",
                }
            },
        }
    }


def test_a_psk_and_a_ppk() -> None:
    body = encode_connection(replace(CONNECTION, auth=PskAuth(), ppk_id="cluster-1"))["tunsec-b"]
    assert isinstance(body, dict)
    assert body["local"] == {"id": "fqdn:a", "auth": "psk"}
    assert (body["ppk_id"], body["ppk_required"]) == ("cluster-1", "yes")
    secret = SharedSecret("tunsec-psk", SharedKind.PSK, Secret(b"\x00key"), ("a", "b"))
    assert encode_shared(secret) == {
        "id": "tunsec-psk",
        "type": "IKE",
        "data": b"\x00key",
        "owners": ["fqdn:a", "fqdn:b"],
    }
    ppk = replace(secret, kind=SharedKind.PPK, owners=("cluster-1",))
    assert encode_shared(ppk)["owners"] == ["cluster-1"]
    assert "key" not in repr(secret)


def test_short_requests() -> None:
    assert encode_authority(Authority("tunsec-ca", b"der")) == {"tunsec-ca": {"cacert": b"der"}}
    assert encode_initiate(ike="tunsec-b", child="c", timeout_ms=-1)["timeout"] == "-1"


@pytest.mark.parametrize(
    ("selector", "text"),
    [
        (TrafficSelector(ipaddress.ip_network("192.0.2.0/24")), "192.0.2.0/24"),
        (TrafficSelector(ipaddress.ip_network("192.0.2.1"), 6), "192.0.2.1/32[6]"),
        (TrafficSelector(ipaddress.ip_network("::/0"), 17, 1, 9), "::/0[17/1-9]"),
        (TrafficSelector(ipaddress.ip_network("::/0"), 0, 7, 7), "::/0[any/7]"),
    ],
)
def test_selectors(selector: TrafficSelector, text: str) -> None:
    assert encode_selector(selector) == text


def child(**changes: object) -> IkeConnection:
    return replace(CONNECTION, children=(replace(CHILD, **changes),))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("connection", "told"),
    [
        (child(reqid=Reqid(7)), "reqid 0x7 is not tunsec's"),
        (child(seconds=Limits(100, 100)), "the end 100 is not after 100 time"),
        (child(seconds=Limits(100, 200, 100)), "jitter 100 leaves nothing"),
        (child(replay_window=0), "replay_window"),
        (child(replay_window=4097), "replay_window"),
        (child(packets=Limits(10**15, 2 * 10**15)), "more digits than charon reads"),
        (child(mark_out=Mark(0xFFFFFFFF)), "cannot be a mark"),
        (child(mark_out=Mark(0x1FF, 0xFF)), "cannot be a mark"),
        (child(label=""), "cannot be a label"),
        (child(label="r\u00f6t"), "cannot be a label"),
        (child(proposals=()), "needs proposals"),
        (child(local=(TrafficSelector(ipaddress.ip_network("::/0"), 17, 9, 1),)), "ports go up"),
        (replace(CONNECTION, children=(CHILD, CHILD)), "two children have one name"),
        (replace(CONNECTION, children=()), "needs children"),
        (replace(CONNECTION, remote=()), "needs local and remote addresses"),
        (replace(CONNECTION, remote_identity="*"), "cannot be an identity"),
        (replace(CONNECTION, remote_identity="CN=b"), "cannot be an identity"),
        (replace(CONNECTION, remote_identity="%any"), "cannot be an identity"),
        (replace(CONNECTION, auth=CertificateAuth((b"leaf",), ())), "any CA would do"),
        (replace(CONNECTION, auth=CertificateAuth((), (b"root",))), "no certificate"),
        (replace(CONNECTION, seconds=Limits(100, 50)), "ends before it is replaced"),
        (replace(CONNECTION, name="n" * 300), "cannot be the name"),
    ],
)
def test_what_charon_would_misread_is_not_sent(connection: IkeConnection, told: str) -> None:
    with pytest.raises(Malformed, match=told):
        encode_connection(connection)


def test_a_shared_secret_has_owners() -> None:
    with pytest.raises(Malformed, match="every peer"):
        encode_shared(SharedSecret("tunsec-psk", SharedKind.PSK, Secret(b"k"), ()))


def test_big_volumes_get_a_unit() -> None:
    connection = child(volume=Limits(1 << 60, 1 << 61, 1 << 59))
    body = encode_connection(connection)["tunsec-b"]
    assert isinstance(body, dict)
    children = body["children"]
    assert isinstance(children, dict)
    overlay = children["overlay.0"]
    assert isinstance(overlay, dict)
    assert overlay["rekey_bytes"] == f"{1 << 30}g"


@pytest.mark.parametrize("exchanges", [(), (KeyExchange.ML_KEM_768,)])
def test_no_proposal_without_forward_secrecy(exchanges: tuple[KeyExchange, ...]) -> None:
    with pytest.raises(Malformed):
        encode_esp_proposal(replace(ESP, key_exchanges=exchanges))


PORTS = st.integers(0, 0xFFFF)


@given(
    seconds=st.integers(2, 10**9),
    window=st.integers(1, 4096),
    ports=st.tuples(PORTS, PORTS).map(sorted),
    proto=st.integers(0, 255),
    label=st.none() | st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1),
    mark=st.none() | st.builds(Mark, st.integers(1, 0xFFFF), st.just(0xFFFF)),
)
def test_every_connection_survives_the_packet_codec(
    seconds: int, window: int, ports: list[int], proto: int, label: str | None, mark: Mark | None
) -> None:
    connection = child(
        seconds=Limits(seconds, seconds + 1, seconds // 2),
        replay_window=window,
        local=(TrafficSelector(ipaddress.ip_network("192.0.2.1"), proto, *ports),),
        label=label[:200] if label else None,
        set_mark_in=mark,
    )
    encoded = encode_connection(connection)
    decoded = Message.deserialize(FiniteStream(Message.serialize(encoded)))

    def as_bytes(value: object) -> object:
        match value:
            case str():
                return value.encode()
            case list():
                return [as_bytes(item) for item in value]
            case dict():
                return {key: as_bytes(item) for key, item in value.items()}
        return value

    assert decoded == as_bytes(encoded)
