"""The newest sequence numbers, which outlive the daemon: without them old records could come back.

Nothing in here is secret, but whoever can write it can make this host believe an older offer that
has not expired yet, so the file belongs to the daemon alone.
"""

from dataclasses import dataclass
from typing import Final

from tunsec.keying.canonical import Fields, Json, decode_canonical, encode_canonical
from tunsec.keying.paths import is_host_name
from tunsec.keying.revocation import CertificateId
from tunsec.model.clock import WallTime
from tunsec.model.names import Boot, HostName, OfferSeq

MAX_HOSTS: Final = 65_536
MAX_SIGNERS: Final = 3
"""A leaf and two intermediates."""


@dataclass(frozen=True, slots=True)
class NewestOffer:
    """The newest offer of a peer that was believed."""

    host: HostName
    sequence: OfferSeq
    boot: Boot
    not_after: WallTime
    digest: bytes
    """SHA-256 of its body."""
    signers: tuple[CertificateId, ...]
    """The certificates that stood behind it: they may be revoked while the daemon does not run."""


@dataclass(frozen=True, slots=True)
class Newest:
    """What a ring remembers over restarts: its own last number and its peers' newest offers."""

    own: int = 0
    peers: tuple[NewestOffer, ...] = ()

    def encode(self) -> bytes:
        """As a file."""
        return encode_canonical(
            {
                "version": 1,
                "own": self.own,
                "peers": [
                    {
                        "host": peer.host,
                        "sequence": peer.sequence,
                        "boot": peer.boot,
                        "not_after": int(peer.not_after),
                        "digest": peer.digest.hex(),
                        "signers": [
                            {"issuer": signer.issuer.hex(), "serial": f"{signer.serial:x}"}
                            for signer in peer.signers
                        ],
                    }
                    for peer in self.peers
                ],
            }
        )

    @classmethod
    def decode(cls, body: bytes) -> "Newest":
        """From a file; ValueError when it is not one, and then the file is best set aside."""
        fields = Fields(decode_canonical(body), "newest")
        fields.number("version", low=1, high=1)
        newest = cls(
            own=fields.number("own"), peers=fields.rows("peers", _parse_peer, limit=MAX_HOSTS)
        )
        fields.done()
        return newest


NOTHING_KNOWN: Final = Newest()
"""The memory of a host that starts for the first time."""


def _parse_peer(value: Json, where: str) -> NewestOffer:
    fields = Fields(value, where)
    host = fields.text("host")
    if not is_host_name(host):
        raise ValueError(f"{where}.host is no host name")
    peer = NewestOffer(
        host=HostName(host),
        sequence=OfferSeq(fields.number("sequence", low=1)),
        boot=Boot(fields.text("boot", limit=32)),
        not_after=WallTime(float(fields.number("not_after", high=2**53))),
        digest=bytes.fromhex(fields.text("digest", limit=64)),
        signers=fields.rows("signers", _parse_signer, limit=MAX_SIGNERS),
    )
    fields.done()
    return peer


def _parse_signer(value: Json, where: str) -> CertificateId:
    fields = Fields(value, where)
    signer = CertificateId(
        issuer=bytes.fromhex(fields.text("issuer", limit=64)),
        serial=int(fields.text("serial", limit=64), 16),
    )
    fields.done()
    return signer
