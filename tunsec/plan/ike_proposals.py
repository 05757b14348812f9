"""What to propose to a peer, from what charon says it can do. No legacy algorithm is ever named."""

from collections.abc import Mapping, Sequence
from typing import Final

from tunsec.model.aead import Aead
from tunsec.model.errors import Refused
from tunsec.model.ike import EspProposal, IkeProposal, KeyExchange, Prf
from tunsec.model.ike_sa import Algorithms

# charon's names (crypto/crypters/crypter.c, prfs/prf.c, key_exchange.c).
AEAD_NAMES: Final[Mapping[Aead, str]] = {
    Aead.AES_128_GCM: "AES_GCM_16",
    Aead.AES_256_GCM: "AES_GCM_16",
    Aead.CHACHA20_POLY1305: "CHACHA20_POLY1305",
}
PRF_NAMES: Final[Mapping[Prf, str]] = {
    Prf.SHA384: "PRF_HMAC_SHA2_384",
    Prf.SHA256: "PRF_HMAC_SHA2_256",
    Prf.SHA512: "PRF_HMAC_SHA2_512",
}
KEY_EXCHANGE_NAMES: Final[Mapping[KeyExchange, str]] = {
    KeyExchange.X25519: "CURVE_25519",
    KeyExchange.ECP256: "ECP_256",
    KeyExchange.ECP384: "ECP_384",
}
"""In the order of preference."""
POST_QUANTUM_NAME: Final = "ML_KEM_768"


def ike_proposals(algorithms: Algorithms, aeads: Sequence[Aead]) -> tuple[IkeProposal, ...]:
    """Proposals for the IKE_SA, best first: those with ML-KEM, then the same without it.

    `aeads` in the order of preference; those that charon lacks are left out. Raises Refused when
    nothing is left to propose.
    """
    able = [aead for aead in aeads if AEAD_NAMES[aead] in algorithms.aeads]
    prfs = tuple(prf for prf, name in PRF_NAMES.items() if name in algorithms.prfs)
    if not able or not prfs:
        lacking = " or ".join(PRF_NAMES.values() if able else [AEAD_NAMES[aead] for aead in aeads])
        raise _nothing("the IKE_SA", f"charon has no {lacking or 'AEAD'}")
    exchanges = _exchanges(algorithms)
    return tuple(
        IkeProposal(aead, prfs, exchanges, additional)
        for additional in _additional(algorithms)
        for aead in able
    )


def esp_proposals(
    algorithms: Algorithms, aeads: Sequence[Aead], *, esn: bool = True
) -> tuple[EspProposal, ...]:
    """Proposals for CHILD_SAs, best first, with forward secrecy at every rekey.

    `aeads` in the order of preference; they are the kernel's to carry out, not charon's. Raises
    Refused when nothing is left to propose.
    """
    if not aeads:
        raise _nothing("CHILD_SAs", "no AEAD is allowed")
    exchanges = _exchanges(algorithms)
    return tuple(
        EspProposal(aead, exchanges, additional, esn)
        for additional in _additional(algorithms)
        for aead in aeads
    )


def _exchanges(algorithms: Algorithms) -> tuple[KeyExchange, ...]:
    able = tuple(
        exchange
        for exchange, name in KEY_EXCHANGE_NAMES.items()
        if name in algorithms.key_exchanges
    )
    if not able:
        raise _nothing(
            "key exchange", f"charon has none of {', '.join(KEY_EXCHANGE_NAMES.values())}"
        )
    return able


def _additional(algorithms: Algorithms) -> tuple[KeyExchange | None, ...]:
    """RFC 9370: the peers run the second exchange when both can; AUTH covers the proposals, so
    nobody between them can take it away."""
    if POST_QUANTUM_NAME in algorithms.key_exchanges:
        return KeyExchange.ML_KEM_768, None
    return (None,)


def _nothing(what: str, why: str) -> Refused:
    remedy = "load charon's openssl plugin, or those that provide it"
    return Refused(f"a proposal for {what}", reason=f"{why} ({remedy})")
