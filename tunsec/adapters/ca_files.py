"""A CA as a folder: ca.pem, ca-key.pem, and issued/ with every certificate it ever signed."""

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509

from tunsec.adapters.identity import CA, CERT, KEY
from tunsec.adapters.key_files import (
    FOLDER_MODE,
    PRIVATE_MODE,
    PUBLIC_MODE,
    beside,
    check_folder,
    check_vacant,
    exchange,
    load_certificates,
    load_key,
    new_key,
    pem_certificates,
    pem_key,
    problem,
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
    period,
    same_key,
    summarize,
)
from tunsec.keying.chain import validity
from tunsec.keying.identity import SigningKey
from tunsec.keying.paths import is_host_name
from tunsec.model.clock import WallTime
from tunsec.model.errors import PolicyError, Problem
from tunsec.model.names import Address, HostName

CA_KEY: Final = "ca-key.pem"
ISSUED: Final = "issued"


@dataclass(frozen=True, slots=True)
class Authority:
    """A CA that was loaded from its folder."""

    folder: Path
    certificate: x509.Certificate
    key: SigningKey


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
    check_folder(folder)
    certificate = load_certificates(folder / CA)[0]
    key = load_key(folder / CA_KEY)
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
    """Make a host's cert.pem, key.pem and ca.pem in a new folder; raises PolicyError."""
    check_vacant(folder)  # before anything is signed
    key = new_key(kind)
    leaf = _signed(authority, host, addresses, key=key, days=days, wall_now=wall_now)
    write_folder(
        folder,
        {
            CERT: (pem_certificates(leaf), PUBLIC_MODE),
            KEY: (pem_key(key), PRIVATE_MODE),
            CA: (pem_certificates(authority.certificate), PUBLIC_MODE),
        },
    )
    return summarize(leaf)


def renew(
    folder: Path, *, authority: Authority, days: float, wall_now: WallTime
) -> CertificateSummary:
    """Give a host's folder a new key and certificate under the same name, in one act.

    Everything else in the folder stays; its owner and modes too. Raises PolicyError, and then the
    old pair is untouched.
    """
    check_folder(folder)
    old = load_certificates(folder / CERT)[0]
    names, addresses = alternative_names(old)
    host = next((name for name in names if is_host_name(name)), None)
    kind = key_type(old.public_key())
    if host is None or kind is None:
        raise problem(folder / CERT, "is no host's certificate", "issue a new one")
    if old.issuer != authority.certificate.subject:
        raise problem(
            folder / CERT,
            f"was issued by {old.issuer.rfc4514_string()}",
            f"use the folder of that CA, not {authority.folder}",
        )
    key = new_key(kind)
    leaf = _signed(authority, HostName(host), addresses, key=key, days=days, wall_now=wall_now)
    roots = load_certificates(folder / CA)
    if authority.certificate not in roots:
        roots = (*roots, authority.certificate)
    _replace(
        folder,
        {CERT: pem_certificates(leaf), KEY: pem_key(key), CA: pem_certificates(*roots)},
    )
    return summarize(leaf)


def show(path: Path) -> tuple[CertificateSummary, ...]:
    """The certificates of a file, of a host's folder, or of a CA and all it issued."""
    if not path.is_dir():
        return tuple(summarize(certificate) for certificate in load_certificates(path))
    files = [path / name for name in (CERT, CA) if (path / name).exists()]
    files += sorted((path / ISSUED).glob("*.pem"))
    if not files:
        raise problem(path, f"has neither {CERT} nor {CA}", "name a CA's or a host's folder")
    return tuple(
        summarize(certificate) for file in files for certificate in load_certificates(file)
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


def _replace(folder: Path, bodies: dict[str, bytes]) -> None:
    """Build the folder anew beside the old one, then let them change places."""
    folder = folder.resolve()
    with beside(folder) as fresh:
        try:
            for entry in folder.iterdir():
                _carry(entry, fresh, bodies.get(entry.name))
            status = folder.stat()
            fresh.chmod(stat.S_IMODE(status.st_mode))
            _own_like(fresh, status)
            settle(fresh)
        except OSError as error:
            raise problem(
                folder, f"cannot be renewed: {error}", "run as the owner of the folder, or as root"
            ) from None
        exchange(fresh, folder)


def _carry(entry: Path, fresh: Path, body: bytes | None) -> None:
    """A new file with the old one's owner and mode, or the old file itself."""
    if body is None:
        if entry.is_dir():
            raise problem(entry, "is a folder among keys", "move it away")
        (fresh / entry.name).hardlink_to(entry)
        return
    status = entry.stat()
    write_new(fresh / entry.name, body, mode=stat.S_IMODE(status.st_mode))
    _own_like(fresh / entry.name, status)


def _own_like(path: Path, model: os.stat_result) -> None:
    status = path.stat()
    if (status.st_uid, status.st_gid) != (model.st_uid, model.st_gid):
        os.chown(path, model.st_uid, model.st_gid)
