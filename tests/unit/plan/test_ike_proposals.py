"""What is proposed to a peer, and what never is."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunsec.model.aead import Aead
from tunsec.model.errors import Refused
from tunsec.model.ike_sa import Algorithms
from tunsec.plan.ike_proposals import AEAD_NAMES, esp_proposals, ike_proposals
from tunsec.wire.vici.requests import encode_esp_proposal, encode_ike_proposal

AEADS = (Aead.CHACHA20_POLY1305, Aead.AES_256_GCM)
ABLE = Algorithms(
    frozenset({"AES_GCM_16", "CHACHA20_POLY1305", "AES_CCM_8"}),
    frozenset({"PRF_HMAC_SHA1", "PRF_HMAC_SHA2_256", "PRF_HMAC_SHA2_384"}),
    frozenset({"MODP_1024", "ECP_256", "ECP_384", "CURVE_25519", "ML_KEM_768"}),
)


def test_proposals_with_ml_kem_come_first() -> None:
    assert [encode_ike_proposal(proposal) for proposal in ike_proposals(ABLE, AEADS)] == [
        "chacha20poly1305-prfsha384-prfsha256-x25519-ecp256-ecp384-ke1_mlkem768",
        "aes256gcm16-prfsha384-prfsha256-x25519-ecp256-ecp384-ke1_mlkem768",
        "chacha20poly1305-prfsha384-prfsha256-x25519-ecp256-ecp384",
        "aes256gcm16-prfsha384-prfsha256-x25519-ecp256-ecp384",
    ]
    plain = replace(ABLE, key_exchanges=frozenset({"ECP_384"}))
    assert [encode_esp_proposal(proposal) for proposal in esp_proposals(plain, AEADS)] == [
        "chacha20poly1305-ecp384-esn",
        "aes256gcm16-ecp384-esn",
    ]


@pytest.mark.parametrize(
    ("algorithms", "told"),
    [
        (replace(ABLE, aeads=frozenset({"AES_CCM_8"})), "AES_GCM_16"),
        (replace(ABLE, prfs=frozenset({"PRF_HMAC_SHA1"})), "PRF_HMAC_SHA2_256"),
        (replace(ABLE, key_exchanges=frozenset({"MODP_1024"})), "CURVE_25519"),
        (replace(ABLE, key_exchanges=frozenset({"ML_KEM_768"})), "CURVE_25519"),
    ],
)
def test_no_legacy_algorithm_is_fallen_back_to(algorithms: Algorithms, told: str) -> None:
    with pytest.raises(Refused, match=told):
        ike_proposals(algorithms, AEADS)


NAMES = ["AES_GCM_16", "CHACHA20_POLY1305", "AES_CBC", "3DES_CBC"]
PRFS = ["PRF_HMAC_SHA1", "PRF_HMAC_MD5", "PRF_HMAC_SHA2_256", "PRF_HMAC_SHA2_512"]
EXCHANGES = ["MODP_1024", "MODP_2048", "ECP_256", "CURVE_25519", "ML_KEM_768", "ML_KEM_512"]


@given(
    algorithms=st.builds(
        Algorithms,
        st.frozensets(st.sampled_from(NAMES)),
        st.frozensets(st.sampled_from(PRFS)),
        st.frozensets(st.sampled_from(EXCHANGES)),
    ),
    aeads=st.lists(st.sampled_from(Aead), unique=True),
)
def test_proposals_keep_the_order_and_to_what_charon_can(
    algorithms: Algorithms, aeads: list[Aead]
) -> None:
    try:
        proposals = ike_proposals(algorithms, aeads)
    except Refused:
        return
    assert all(AEAD_NAMES[proposal.aead] in algorithms.aeads for proposal in proposals)
    chosen = [proposal.aead for proposal in proposals if proposal.additional is None]
    assert chosen == [aead for aead in aeads if aead in chosen]
    written = "-".join(map(encode_ike_proposal, proposals))
    assert not any(word in written for word in ("sha1", "md5", "modp", "3des", "cbc", "mlkem512"))
    assert ("mlkem768" in written) == ("ML_KEM_768" in algorithms.key_exchanges)
