"""The claim book: whose word on a service address is believed (law 8).

No I/O, no clock. A claim is believed when an owner of the service signed it, under a certificate
that names the owner and chains to a trusted CA, and when its token is above every one seen before.
Tokens seen are remembered over restarts: an old claim that the directory shows again opens nothing.
Nothing in the memory is secret, but who can write it can take tokens back, so the file belongs to
the daemon alone.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from tunsec.keying.canonical import Fields, Json, decode_canonical, encode_canonical
from tunsec.keying.chain import Trust
from tunsec.keying.identity import Identity
from tunsec.keying.paths import ClaimPath, is_host_name
from tunsec.keying.records import (
    CLAIM_DOMAIN,
    decode_signed_claim,
    encode_claim,
    encode_signed_claim,
)
from tunsec.keying.refusals import RecordRefused, RefusalReason
from tunsec.model.clock import WallTime
from tunsec.model.errors import Bug
from tunsec.model.names import Boot, HostName
from tunsec.model.record import Claim

MAX_SERVICES: Final = 65_536


@dataclass(frozen=True, slots=True)
class KnownClaim:
    """The newest claim on a service that was believed, and SHA-256 of its body."""

    claim: Claim
    digest: bytes


@dataclass(frozen=True, slots=True)
class KnownClaims:
    """What a claim book remembers over restarts.

    `served` are services whose address this host had and had claimed: what it has of them when it
    starts is no new arrival.
    """

    claims: tuple[KnownClaim, ...] = ()
    served: frozenset[str] = frozenset()

    def encode(self) -> bytes:
        """As a file."""
        return encode_canonical(
            {
                "version": 1,
                "claims": [
                    {
                        "service": known.claim.service,
                        "owner": known.claim.owner,
                        "token": known.claim.token,
                        "boot": known.claim.boot,
                        "held": known.claim.held,
                        "digest": known.digest.hex(),
                    }
                    for known in self.claims
                ],
                "served": sorted(self.served),
            }
        )

    @classmethod
    def decode(cls, body: bytes) -> "KnownClaims":
        """From a file; ValueError when it is not one, and then the file is best set aside."""
        fields = Fields(decode_canonical(body), "claims")
        fields.number("version", low=1, high=1)
        known = cls(
            claims=fields.rows("claims", _parse_known, limit=MAX_SERVICES),
            served=frozenset(fields.rows("served", _parse_served, limit=MAX_SERVICES)),
        )
        fields.done()
        return known


NO_CLAIMS: Final = KnownClaims()
"""The memory of a host that starts for the first time."""

Owners = Mapping[str, Mapping[HostName, str]]
"""By service: its owners, and the name that each one's certificate bears."""


class ClaimBook:
    """The newest claim on each service, and this host's own hand to sign one."""

    def __init__(
        self, identity: Identity, trust: Trust, *, owners: Owners, known: KnownClaims = NO_CLAIMS
    ) -> None:
        self._identity = identity
        self._trust = trust
        self._owners = owners
        self._newest = {one.claim.service: one for one in known.claims}

    def sign(self, claim: Claim, *, wall_now: WallTime) -> bytes:
        """The record of this host's own claim.

        Raises RecordRefused when the own certificate does not hold under the own CA: nobody would
        believe it.
        """
        chain = self._identity.der_chain
        path = str(ClaimPath(claim.service, claim.token))
        self._trust.judge(chain, path=path, wall_now=wall_now)
        body = encode_claim(claim)
        return encode_signed_claim(
            body, signature=self._identity.sign(CLAIM_DOMAIN + body), chain=chain
        )

    def accept(self, path: ClaimPath, record: bytes, *, wall_now: WallTime) -> Claim:
        """The claim in a record, believed; raises RecordRefused. The newest may be read again."""
        where = str(path)
        signed = decode_signed_claim(record, path=where)
        claim = signed.claim
        if (claim.service, claim.token) != (path.service, path.token):
            raise RecordRefused(
                RefusalReason.WRONG_NAME, where, f"it is claim {claim.token} on {claim.service}"
            )
        identity = self._owners.get(claim.service, {}).get(claim.owner)
        if identity is None:
            raise RecordRefused(
                RefusalReason.NOT_AN_OWNER,
                where,
                f"the policy has no service address {claim.service} of {claim.owner}",
            )
        speaker = self._trust.judge(signed.chain, path=where, wall_now=wall_now)
        if identity not in speaker.names:
            raise RecordRefused(
                RefusalReason.WRONG_NAME,
                where,
                f"its certificate names {', '.join(sorted(speaker.names))[:200]}, not {identity}",
            )
        if not speaker.verify(signed.signature, CLAIM_DOMAIN + signed.body):
            raise RecordRefused(RefusalReason.FORGED, where, "its signature is wrong")
        self._check_forward(claim, hashlib.sha256(signed.body).digest(), path=where)
        return claim

    def landed(self, claim: Claim) -> None:
        """An own claim is in the directory: what is below it counts no longer."""
        digest = hashlib.sha256(encode_claim(claim)).digest()
        self._check_forward(claim, digest, path=str(ClaimPath(claim.service, claim.token)))

    def newest(self, service: str) -> Claim | None:
        """The newest claim on a service that was ever believed."""
        known = self._newest.get(service)
        return None if known is None else known.claim

    def renew_identity(self, identity: Identity, trust: Trust) -> None:
        """Sign with a new certificate, and judge under these roots and lists, from now on."""
        if identity.host != self._identity.host:
            raise Bug(f"{self._identity.host} cannot become {identity.host}")
        self._identity, self._trust = identity, trust

    def renew_owners(self, owners: Owners) -> None:
        """Another policy."""
        self._owners = owners

    def remember(self, served: frozenset[str]) -> KnownClaims:
        """What must outlive the daemon."""
        claims = tuple(self._newest[service] for service in sorted(self._newest))
        return KnownClaims(claims, served)

    def _check_forward(self, claim: Claim, digest: bytes, *, path: str) -> None:
        known = self._newest.get(claim.service)
        if known is not None and claim.token <= known.claim.token and digest != known.digest:
            raise RecordRefused(
                RefusalReason.REPLAYED if claim.token == known.claim.token else RefusalReason.STALE,
                path,
                f"token {claim.token}, known is {known.claim.token} of {known.claim.owner}",
            )
        self._newest[claim.service] = KnownClaim(claim, digest)


def _parse_known(value: Json, where: str) -> KnownClaim:
    fields = Fields(value, where)
    claim = Claim(
        service=_name(fields, "service"),
        owner=HostName(_name(fields, "owner")),
        token=fields.number("token", low=1),
        boot=Boot(fields.text("boot", limit=32)),
        held=fields.flag("held"),
    )
    known = KnownClaim(claim, bytes.fromhex(fields.text("digest", limit=64)))
    fields.done()
    return known


def _parse_served(value: Json, where: str) -> str:
    return _name(Fields({"service": value}, where), "service")


def _name(fields: Fields, field: str) -> str:
    name = fields.text(field)
    if not is_host_name(name):
        raise ValueError(f"{field} {name[:60]!r} is no name")
    return name
