"""A host's identity from its folder: cert.pem, key.pem, ca.pem; crl.pem and ppk.key where there are
any."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from cryptography import x509

from tunsec.adapters.key_files import (
    NEWEST_LIST,
    check_folder,
    load_certificates,
    load_key,
    load_lists,
    read_private,
)
from tunsec.keying.ca import same_key
from tunsec.keying.chain import Speaker, Trust, certificate_der
from tunsec.keying.crl import believed
from tunsec.keying.identity import Identity
from tunsec.keying.refusals import RecordRefused
from tunsec.keying.revocation import RevocationList, newest_of_each
from tunsec.keying.schedule import MIN_PPK
from tunsec.model.clock import Seconds, WallTime
from tunsec.model.errors import PolicyError, Problem
from tunsec.model.names import HostName
from tunsec.model.secret import Secret

CERT: Final = "cert.pem"
KEY: Final = "key.pem"
CA: Final = "ca.pem"
CRL: Final = "crl.pem"
PPK: Final = "ppk.key"

WARN_BEFORE: Final = Seconds(14 * 86_400.0)
MIN_PPK_SYMBOLS: Final = 8
"""32 random bytes have about 30 different ones, 64 random hex digits about 16."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class LoadedIdentity:
    """What a daemon needs of its folder."""

    folder: Path
    loaded_at: WallTime
    identity: Identity
    roots: tuple[x509.Certificate, ...]
    crls: tuple[RevocationList, ...]
    """Of each CA its newest list."""
    ppk: Secret | None
    valid_until: WallTime

    @property
    def warnings(self) -> tuple[Problem, ...]:
        """What would have failed soon when it was loaded, or was out of date."""
        return self.warnings_at(self.loaded_at)

    def warnings_at(self, wall_now: WallTime) -> tuple[Problem, ...]:
        """What will fail soon, or is out of date: a daemon may run for long after it has loaded."""
        return (
            *_warnings(self.folder, self.valid_until, wall_now=wall_now),
            *_list_warnings(self.folder, self.crls, wall_now=wall_now),
        )

    def trust(self) -> Trust:
        """A fresh Trust in the roots, and in nobody whom they have revoked."""
        return Trust(self.roots, self.crls)


def load_identity(folder: Path, *, host: HostName, name: str, wall_now: WallTime) -> LoadedIdentity:
    """Load and check a folder; `name` is the DNS SAN that the policy wants for `host`.

    Raises PolicyError with everything that is wrong.
    """
    problems: list[Problem] = []
    _tried(lambda: check_folder(folder), problems)
    chain = _tried(lambda: load_certificates(folder / CERT), problems)
    key = _tried(lambda: load_key(folder / KEY), problems)
    roots = _tried(lambda: load_certificates(folder / CA), problems)
    crls: tuple[RevocationList, ...] = ()
    if chain and roots and _there(folder / CRL):
        signers = (*roots, *chain[1:])
        crls = _tried(lambda: _load_crls(folder / CRL, signers), problems) or ()
    ppk = _tried(lambda: _load_ppk(folder / PPK), problems) if _there(folder / PPK) else None
    if chain and key and not same_key(chain[0], key):
        problems.append(
            Problem(str(folder / KEY), f"is not the key of {CERT}", "put a matching pair there")
        )
    speaker: Speaker | None = None
    if chain and roots:
        # an attached root is of no use to peers, who trust their own
        chain = (chain[0], *(issuer for issuer in chain[1:] if issuer not in roots))
        speaker = _judged(
            folder / CERT,
            chain,
            Trust(roots, crls),
            name=name,
            wall_now=wall_now,
            problems=problems,
        )
    if problems or chain is None or key is None or roots is None or speaker is None:
        raise PolicyError(problems)
    return LoadedIdentity(
        folder,
        wall_now,
        Identity(host, chain, key),
        roots,
        crls,
        ppk,
        speaker.valid_until,
    )


def _tried(load: Callable[[], T], problems: list[Problem]) -> T | None:
    """The result, or None with the problems noted: all are told at once."""
    try:
        return load()
    except PolicyError as error:
        problems.extend(error.problems)
        return None


def _there(path: Path) -> bool:
    """Whether there is anything, readable or not: a PPK that cannot be read is no missing PPK."""
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return True


def _judged(
    path: Path,
    chain: tuple[x509.Certificate, ...],
    trust: Trust,
    *,
    name: str,
    wall_now: WallTime,
    problems: list[Problem],
) -> Speaker | None:
    """Peers will judge the chain alike; what they would refuse is refused here."""
    try:
        speaker = trust.judge(
            tuple(certificate_der(certificate) for certificate in chain),
            path=str(path),
            wall_now=wall_now,
        )
    except RecordRefused as refused:
        problems.append(
            Problem(
                str(path),
                f"peers would refuse it as {refused.reason}: {refused.detail}",
                "tunsec ca renew, or a certificate of the CA in ca.pem",
            )
        )
        return None
    if name not in speaker.names:
        problems.append(
            Problem(
                str(path),
                f"names {', '.join(sorted(speaker.names))}, not {name}",
                f"issue a certificate with the DNS name {name}, or correct --host",
            )
        )
        return None
    return speaker


def _load_crls(path: Path, signers: Iterable[x509.Certificate]) -> tuple[RevocationList, ...]:
    """Lists of the CAs in ca.pem, and of intermediates in cert.pem: they can only take away."""
    try:
        return newest_of_each([believed(crl, signers) for crl in load_lists(path)])
    except ValueError as error:
        raise PolicyError([Problem(str(path), str(error), NEWEST_LIST)]) from None


def _load_ppk(path: Path) -> Secret:
    body = read_private(path).rstrip(b"\r\n")
    if len(body) < MIN_PPK or len(set(body)) < MIN_PPK_SYMBOLS:
        raise PolicyError(
            [
                Problem(
                    str(path),
                    f"has {len(body)} bytes and {len(set(body))} different ones: too weak",
                    "openssl rand -hex 32 > ppk.key, the same file on every host",
                )
            ]
        )
    return Secret(body)


def _warnings(folder: Path, end: WallTime, *, wall_now: WallTime) -> tuple[Problem, ...]:
    left = end - wall_now
    if left > WARN_BEFORE:
        return ()
    return (
        Problem(
            str(folder / CERT),
            f"ends in {max(left, 0.0) / 86_400:.1f} days, and this host's offers with it",
            f"tunsec ca renew {folder} --ca CA-DIR, then reload tunsecd",
        ),
    )


def _list_warnings(
    folder: Path, crls: Iterable[RevocationList], *, wall_now: WallTime
) -> Iterator[Problem]:
    for crl in crls:
        if crl.next_update < wall_now:
            days = (wall_now - crl.next_update) / 86_400
            yield Problem(
                str(folder / CRL),
                f"the CRL of {crl.issuer} should have been replaced {days:.1f} days ago; what it "
                "revokes stays revoked",
                f"tunsec ca crl CA-DIR, copy its {CRL} here, then reload tunsecd",
            )
