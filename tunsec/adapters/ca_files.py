"""A CA as a folder: ca.pem, ca-key.pem, issued/ with every certificate it ever signed, and crl.pem
with what it has revoked, once there is anything.

The list in crl.pem is the CA's only memory of revocations: it is read, added to, and replaced.
"""

import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography import x509

from tunsec.adapters.identity import CA, CERT, CRL, KEY
from tunsec.adapters.key_files import (
    FOLDER_MODE,
    PRIVATE_MODE,
    PUBLIC_MODE,
    beside,
    check_folder,
    check_vacant,
    exchange,
    held,
    load_certificates,
    load_key,
    load_lists,
    new_key,
    pem_certificates,
    pem_key,
    pem_lists,
    problem,
    read_public,
    replace_file,
    settle,
    write_folder,
    write_new,
)
from tunsec.keying.ca import (
    CertificateSummary,
    KeyType,
    alternative_names,
    issue,
    key_type,
    make_root,
    next_number,
    period,
    same_key,
    sign_list,
    summarize,
)
from tunsec.keying.chain import issued_by, validity
from tunsec.keying.crl import HEAD, believed, what_it_says
from tunsec.keying.identity import SigningKey
from tunsec.keying.paths import is_host_name
from tunsec.keying.revocation import RevocationList
from tunsec.model.clock import WallTime
from tunsec.model.errors import PolicyError, Problem
from tunsec.model.names import Address, HostName

CA_KEY: Final = "ca-key.pem"
ISSUED: Final = "issued"
MADE_BY_INIT: Final = "tunsec ca init makes a CA"
RESTORE: Final = (
    "restore it from a backup, or from a host: without it, what was revoked is not known"
)


@dataclass(frozen=True, slots=True)
class Authority:
    """A CA that was loaded from its folder."""

    folder: Path
    certificate: x509.Certificate
    key: SigningKey


@dataclass(frozen=True, slots=True)
class Shown:
    """What certificates and revocation lists say."""

    certificates: tuple[CertificateSummary, ...]
    crls: tuple[RevocationList, ...] = ()


def init(
    folder: Path, *, name: str, days: float, kind: KeyType, wall_now: WallTime
) -> CertificateSummary:
    """Make a CA in a new folder; raises PolicyError and leaves nothing behind."""
    key = new_key(kind)
    root = make_root(
        name,
        key=key,
        serial=x509.random_serial_number(),
        valid=period(wall_now=wall_now, days=days),
    )
    write_folder(
        folder,
        {CA: (pem_certificates(root), PUBLIC_MODE), CA_KEY: (pem_key(key), PRIVATE_MODE)},
    )
    return summarize(root)


def load(folder: Path, *, wall_now: WallTime) -> Authority:
    """A CA from its folder; raises PolicyError."""
    check_folder(folder, holds=f"{CA} and {CA_KEY}")
    certificate = load_certificates(folder / CA, remedy=MADE_BY_INIT)[0]
    key = load_key(folder / CA_KEY, remedy=MADE_BY_INIT)
    if not same_key(certificate, key):
        raise problem(folder / CA_KEY, f"is not the key of {CA}", "restore both from one backup")
    if validity(certificate).last < wall_now:
        raise problem(folder / CA, "the CA has expired", "tunsec ca init makes a new one")
    return Authority(folder, certificate, key)


def issue_to(
    folder: Path,
    host: HostName,
    *,
    authority: Authority,
    addresses: Sequence[Address],
    days: float,
    kind: KeyType,
    wall_now: WallTime,
) -> CertificateSummary:
    """Make a host's cert.pem, key.pem, ca.pem, and crl.pem if the CA has one, in a new folder;
    raises PolicyError."""
    check_vacant(folder)  # before anything is signed
    key = new_key(kind)
    leaf = _signed(authority, host, addresses, key=key, days=days, wall_now=wall_now)
    files = {
        CERT: (pem_certificates(leaf), PUBLIC_MODE),
        KEY: (pem_key(key), PRIVATE_MODE),
        CA: (pem_certificates(authority.certificate), PUBLIC_MODE),
    }
    own = _own_list(authority)
    if own is not None:
        files[CRL] = (pem_lists(own), PUBLIC_MODE)
    write_folder(folder, files)
    return summarize(leaf)


def renew(
    folder: Path, *, authority: Authority, days: float, wall_now: WallTime
) -> CertificateSummary:
    """Give a host's folder a new key and certificate under the same name, in one act.

    The CA's revocation list goes along, beside those of other CAs. Everything else in the folder
    stays; its owner and modes too, but for a key that others could use: the new one is private.
    Raises PolicyError, and then the old pair is untouched.
    """
    check_folder(folder)
    old = load_certificates(folder / CERT)[0]
    names, addresses = alternative_names(old)
    host = next((name for name in names if is_host_name(name)), None)
    kind = key_type(old.public_key())
    if host is None or kind is None:
        raise problem(folder / CERT, "is no host's certificate", "issue a new one")
    if old.issuer != authority.certificate.subject:
        raise _foreign(folder / CERT, old, authority)
    roots = load_certificates(folder / CA)
    if authority.certificate not in roots:
        roots = (*roots, authority.certificate)
    files = {CA: (pem_certificates(*roots), PUBLIC_MODE)}
    own = _own_list(authority)
    if own is not None:
        files[CRL] = (pem_lists(*_lists_of_others(folder / CRL, authority), own), PUBLIC_MODE)
    key = new_key(kind)
    leaf = _signed(authority, HostName(host), addresses, key=key, days=days, wall_now=wall_now)
    files |= {CERT: (pem_certificates(leaf), PUBLIC_MODE), KEY: (pem_key(key), PRIVATE_MODE)}
    _replace(folder, files)
    return summarize(leaf)


def revoke_all(
    which: Sequence[str], *, authority: Authority, days: float, wall_now: WallTime
) -> Shown:
    """Put certificates on the CA's list: by the name of a host (all it was ever issued), by serial
    number, or by a file or folder that has the certificate.

    Raises PolicyError with all that is wrong, and then nothing is revoked.
    """
    with held(authority.folder):
        last = _last_said(authority)
        revoked = {} if last is None else dict(last.revoked)
        meant: dict[int, x509.Certificate] = {}
        problems: list[Problem] = []
        for word in which:
            try:
                meant |= _not_yet(word, _meant(word, authority), revoked)
            except PolicyError as error:
                problems.extend(error.problems)
        if problems:
            raise PolicyError(problems)
        revoked |= dict.fromkeys(meant, WallTime(float(int(wall_now))))
        crl = _write_list(authority, revoked, last, days=days, wall_now=wall_now)
    return Shown(tuple(summarize(one, [crl]) for one in meant.values()), (crl,))


def refresh(*, authority: Authority, days: float, wall_now: WallTime) -> Shown:
    """Make the CA's list anew, with the same content and a later end; the first one is empty."""
    with held(authority.folder):
        last = _last_said(authority)
        revoked = {} if last is None else last.revoked
        return Shown((), (_write_list(authority, revoked, last, days=days, wall_now=wall_now),))


def show(path: Path) -> Shown:
    """Certificates and lists of a file, of a host's folder, or of a CA and all it issued."""
    if not path.is_dir():
        body = read_public(path)
        if HEAD in body:
            return Shown((), _said(path))
        return Shown(tuple(summarize(certificate) for certificate in load_certificates(path)))
    files = [path / name for name in (CERT, CA) if (path / name).exists()]
    files += sorted((path / ISSUED).glob("*.pem"))
    if not files:
        raise problem(path, f"has neither {CERT} nor {CA}", "name a CA's or a host's folder")
    crls = _said(path / CRL) if (path / CRL).exists() else ()
    return Shown(
        tuple(
            summarize(certificate, crls)
            for file in files
            for certificate in load_certificates(file)
        ),
        crls,
    )


def _said(path: Path) -> tuple[RevocationList, ...]:
    try:
        return tuple(what_it_says(crl) for crl in load_lists(path))
    except ValueError as error:
        raise problem(path, str(error), "tunsec ca crl makes a CA's list anew") from None


def _own_list(authority: Authority) -> x509.CertificateRevocationList | None:
    """The CA's list, None when it never made one."""
    path = authority.folder / CRL
    if not path.exists():
        return None
    first, *others = load_lists(path)
    if others:
        raise problem(path, "holds several lists", RESTORE)
    try:
        believed(first, [authority.certificate])
    except ValueError as error:
        raise problem(path, str(error), RESTORE) from None
    return first


def _last_said(authority: Authority) -> RevocationList | None:
    own = _own_list(authority)
    return None if own is None else what_it_says(own)


def _write_list(
    authority: Authority,
    revoked: Mapping[int, WallTime],
    last: RevocationList | None,
    *,
    days: float,
    wall_now: WallTime,
) -> RevocationList:
    crl = sign_list(
        revoked,
        ca=authority.certificate,
        ca_key=authority.key,
        number=next_number(last, wall_now=wall_now),
        valid=period(wall_now=wall_now, days=days, within=validity(authority.certificate)),
    )
    replace_file(authority.folder / CRL, pem_lists(crl), mode=PUBLIC_MODE)
    return what_it_says(crl)


def _lists_of_others(
    path: Path, authority: Authority
) -> tuple[x509.CertificateRevocationList, ...]:
    if not path.exists():
        return ()
    return tuple(crl for crl in load_lists(path) if crl.issuer != authority.certificate.subject)


def _meant(word: str, authority: Authority) -> tuple[x509.Certificate, ...]:
    """The certificates of this CA that a word of `tunsec ca revoke` names."""
    if "/" in word or word.endswith(".pem"):
        return (_of_this_ca(Path(word), authority),)
    issued = {path: path.stem.rpartition("-") for path in (authority.folder / ISSUED).glob("*.pem")}
    serial = word.lower().replace(":", "").removeprefix("0x").lstrip("0")
    by_name = [path for path, (host, _, _) in issued.items() if host == word]
    by_serial = [path for path, (_, _, number) in issued.items() if number == serial]
    if by_name and by_serial:
        raise _wrong(word, "is the name of a host and a serial number", "name the file instead")
    if not by_name and not by_serial:
        raise _wrong(
            word,
            f"neither name nor serial number of a certificate in {authority.folder / ISSUED}",
            f"tunsec ca show {authority.folder} lists them; or name the certificate's file",
        )
    return tuple(_of_this_ca(path, authority) for path in sorted(by_name or by_serial))


def _of_this_ca(path: Path, authority: Authority) -> x509.Certificate:
    """The first certificate of a file, or of a host's folder, which the CA must have issued."""
    file = path / CERT if path.is_dir() else path
    certificate = load_certificates(file)[0]
    if certificate == authority.certificate:
        raise problem(file, "is the CA itself", f"take it out of {CA} on every host instead")
    if not issued_by(certificate, authority.certificate):
        raise _foreign(file, certificate, authority)
    return certificate


def _not_yet(
    word: str, certificates: Sequence[x509.Certificate], revoked: Mapping[int, WallTime]
) -> dict[int, x509.Certificate]:
    fresh = {one.serial_number: one for one in certificates if one.serial_number not in revoked}
    if not fresh:
        since = datetime.fromtimestamp(min(revoked[one.serial_number] for one in certificates), UTC)
        raise _wrong(
            word, f"is revoked already, since {since:%Y-%m-%d}", "tunsec ca crl makes the list anew"
        )
    return fresh


def _wrong(word: str, what: str, remedy: str) -> PolicyError:
    return PolicyError([Problem(word, what, remedy)])


def _foreign(path: Path, certificate: x509.Certificate, authority: Authority) -> PolicyError:
    return problem(
        path,
        f"was issued by {certificate.issuer.rfc4514_string()}",
        f"use the folder of that CA, not {authority.folder}",
    )


def _signed(
    authority: Authority,
    host: HostName,
    addresses: Sequence[Address],
    *,
    key: SigningKey,
    days: float,
    wall_now: WallTime,
) -> x509.Certificate:
    """A leaf; its copy lies in issued/ before anybody can use it, for revocation later."""
    leaf = issue(
        host,
        addresses,
        key=key,
        ca=authority.certificate,
        ca_key=authority.key,
        serial=x509.random_serial_number(),
        valid=period(wall_now=wall_now, days=days, within=validity(authority.certificate)),
    )
    issued = authority.folder / ISSUED
    try:
        issued.mkdir(mode=FOLDER_MODE, exist_ok=True)
    except OSError as error:
        raise PolicyError(
            [Problem(str(issued), error.strerror or str(error), "the CA's folder must be writable")]
        ) from None
    write_new(
        issued / f"{host}-{leaf.serial_number:x}.pem", pem_certificates(leaf), mode=PUBLIC_MODE
    )
    return leaf


def _replace(folder: Path, files: Mapping[str, tuple[bytes, int]]) -> None:
    """Build the folder anew beside the old one, then let them change places."""
    folder = folder.resolve()
    with beside(folder) as fresh:
        try:
            for entry in folder.iterdir():
                _carry(entry, fresh, files.get(entry.name))
            status = folder.stat()
            for name, (body, mode) in files.items():
                if not (fresh / name).exists():
                    write_new(fresh / name, body, mode=mode)
                    _own_like(fresh / name, status)
            fresh.chmod(stat.S_IMODE(status.st_mode))
            _own_like(fresh, status)
            settle(fresh)
        except OSError as error:
            raise problem(
                folder, f"cannot be renewed: {error}", "run as the owner of the folder, or as root"
            ) from None
        exchange(fresh, folder)


def _carry(entry: Path, fresh: Path, new: tuple[bytes, int] | None) -> None:
    """A new file with the old one's owner and what its mode allows of the new one's, or the old
    file itself."""
    if entry.is_dir():
        raise problem(entry, "is a folder among keys", "move it away")
    if new is None:
        (fresh / entry.name).hardlink_to(entry)
        return
    body, mode = new
    status = entry.stat()
    write_new(fresh / entry.name, body, mode=stat.S_IMODE(status.st_mode) & mode)
    _own_like(fresh / entry.name, status)


def _own_like(path: Path, model: os.stat_result) -> None:
    status = path.stat()
    if (status.st_uid, status.st_gid) != (model.st_uid, model.st_gid):
        os.chown(path, model.st_uid, model.st_gid)
