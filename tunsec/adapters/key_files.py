"""Private keys and certificates as files: strict modes in, strict modes checked.

Reading follows symbolic links (secret stores use them) and judges what it has opened. Writing never
replaces a key or certificate; a whole folder is made beside its place and moved there in one act,
and so is a new revocation list.
"""

import ctypes
import fcntl
import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tunsec.keying.ca import KeyType, key_type
from tunsec.keying.crl import read_lists
from tunsec.keying.identity import SigningKey
from tunsec.model.errors import PolicyError, Problem

PRIVATE_MODE: Final = 0o600
PUBLIC_MODE: Final = 0o644
FOLDER_MODE: Final = 0o700
MAX_FILE: Final = 1024 * 1024
MADE_BY_CA: Final = "tunsec ca issue makes these files"
NEWEST_LIST: Final = "put crl.pem of the CA's folder there: tunsec ca crl makes it anew"
CREDENTIALS: Final = Path("/run/credentials")
"""systemd puts LoadCredential= files below it, 0400, or 0440 where an ACL admits the unit's user
(systemd.exec(5))."""
RENAME_EXCHANGE: Final = 2
"""include/uapi/linux/fs.h."""
AT_FDCWD: Final = -100


def problem(path: Path, what: str, remedy: str) -> PolicyError:
    """One thing wrong with one file."""
    return PolicyError([Problem(str(path), what, remedy)])


def read_public(path: Path, *, remedy: str = MADE_BY_CA) -> bytes:
    """A file that others may read but not write. `remedy` tells what to do when it cannot be."""
    body, status = _read(path, remedy=remedy)
    _check_writers(path, status)
    return body


def read_private(path: Path, *, most: int = MAX_FILE, remedy: str = MADE_BY_CA) -> bytes:
    """A file that nobody else may read; raises PolicyError when somebody may.

    `most` bytes are read; `remedy` tells what to do when it cannot be.
    """
    body, status = _read(path, most=most, remedy=remedy)
    _check_writers(path, status)
    forbidden = 0o037 if CREDENTIALS in path.resolve().parents else 0o077
    if stat.S_IMODE(status.st_mode) & forbidden:
        raise problem(
            path,
            f"others may use this private file (mode {stat.S_IMODE(status.st_mode):04o})",
            f"chmod 600 {path}, and replace the key if somebody may have read it",
        )
    return body


def check_folder(path: Path, *, holds: str = "cert.pem, key.pem, ca.pem") -> None:
    """Whoever can write the folder can exchange the keys in it; raises PolicyError."""
    try:
        status = path.stat()
    except OSError as error:
        raise problem(path, _reason(error), f"name a folder with {holds}") from None
    if not stat.S_ISDIR(status.st_mode):
        raise problem(path, "is no folder", f"name a folder with {holds}")
    _check_writers(path, status)


def load_certificates(path: Path, *, remedy: str = MADE_BY_CA) -> tuple[x509.Certificate, ...]:
    """All certificates of a PEM file, in order, at least one."""
    body = read_public(path, remedy=remedy)
    try:
        return tuple(x509.load_pem_x509_certificates(body))
    except (ValueError, TypeError):  # the library's words lead to its own questions and answers
        raise problem(path, "is no PEM certificate", remedy) from None


def load_lists(path: Path) -> tuple[x509.CertificateRevocationList, ...]:
    """All revocation lists of a file, PEM or DER, at least one; nothing is believed yet."""
    body = read_public(path)
    try:
        return read_lists(body)
    except ValueError as error:
        raise problem(path, str(error), NEWEST_LIST) from None


def load_key(path: Path, *, remedy: str = MADE_BY_CA) -> SigningKey:
    """The private key of a PEM file, without passphrase, Ed25519 or ECDSA P-256."""
    body = read_private(path, remedy=remedy)
    try:
        key = serialization.load_pem_private_key(body, None)
    except TypeError:
        raise problem(
            path, "the key has a passphrase", "store it without, in a file of mode 0600"
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        raise problem(path, "is no PEM private key", remedy) from None
    if not isinstance(key, Ed25519PrivateKey | ec.EllipticCurvePrivateKey) or key_type(key) is None:
        raise problem(path, "the key is neither Ed25519 nor ECDSA P-256", remedy)
    return key


def new_key(kind: KeyType) -> SigningKey:
    """A fresh private key."""
    if kind is KeyType.ED25519:
        return Ed25519PrivateKey.generate()
    return ec.generate_private_key(ec.SECP256R1())


def public_key_id(key: SigningKey) -> str:
    """SHA-1 of the public key in hex (RFC 5280 section 4.2.1.2, method 1), as charon names keys."""
    return x509.SubjectKeyIdentifier.from_public_key(key.public_key()).digest.hex()


def pem_key(key: SigningKey) -> bytes:
    """PKCS #8 in PEM, without passphrase."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def pem_lists(*lists: x509.CertificateRevocationList) -> bytes:
    """PEM, one after the other."""
    return b"".join(one.public_bytes(serialization.Encoding.PEM) for one in lists)


def pem_certificates(*certificates: x509.Certificate) -> bytes:
    """PEM, one after the other."""
    return b"".join(
        certificate.public_bytes(serialization.Encoding.PEM) for certificate in certificates
    )


def write_new(path: Path, body: bytes, *, mode: int) -> None:
    """Write a file that must not be there yet, durably."""
    try:
        descriptor = os.open(
            path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode
        )
    except FileExistsError:
        raise problem(path, "is there already", "it is never overwritten: move it away") from None
    except OSError as error:
        raise problem(path, _reason(error), "choose a folder that can be written") from None
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)
            file.write(body)
            file.flush()
            os.fsync(descriptor)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise problem(path, _reason(error), "choose a folder that can be written") from None


def replace_file(path: Path, body: bytes, *, mode: int) -> None:
    """Give a file new content in one act, durably, whether it was there or not."""
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    write_new(fresh, body, mode=mode)
    try:
        fresh.rename(path)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        raise problem(path, _reason(error), "choose a folder that can be written") from None
    settle(path.parent)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep others who hold it so out of a folder: what is read stays true until it is written."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def write_folder(folder: Path, files: Mapping[str, tuple[bytes, int]]) -> None:
    """Make a folder of mode 0700 with these files (content, mode), all of it or nothing.

    It may be there if it is empty and nobody else may use it.
    """
    check_vacant(folder)
    with beside(folder) as fresh:
        for name, (body, mode) in files.items():
            write_new(fresh / name, body, mode=mode)
        settle(fresh)
        try:
            fresh.rename(folder)  # onto nothing, or onto the empty folder
        except OSError as error:
            raise problem(folder, _reason(error), "choose another folder") from None
    settle(folder.parent)


def check_vacant(folder: Path) -> None:
    """Raises PolicyError unless `write_folder` may make this folder."""
    if folder.is_symlink() or folder.exists():
        _check_empty(folder)
    elif not folder.parent.is_dir():
        raise problem(folder.parent, "is no folder", "make the parent folder first")


@contextmanager
def beside(folder: Path) -> Iterator[Path]:
    """A new folder next to this one, gone afterwards unless it was moved away."""
    fresh = folder.parent / f".{folder.name}.{secrets.token_hex(6)}"
    try:
        fresh.mkdir(mode=FOLDER_MODE)
    except OSError as error:
        raise problem(folder.parent, _reason(error), "make the parent folder first") from None
    try:
        yield fresh
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def exchange(one: Path, other: Path) -> None:
    """Let two folders change places in one act (renameat2(2)); raises PolicyError."""
    libc = ctypes.CDLL(None, use_errno=True)
    result = libc.renameat2(
        AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE
    )
    if result != 0:
        number = ctypes.get_errno()
        raise problem(
            other,
            f"cannot be replaced in one act here ({os.strerror(number)})",
            "issue into a new folder instead: tunsec ca issue CA-DIR HOST --out NEW-DIR",
        )
    settle(other.parent)


def settle(folder: Path) -> None:
    """Make names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read(
    path: Path, *, most: int = MAX_FILE, remedy: str = MADE_BY_CA
) -> tuple[bytes, os.stat_result]:
    try:
        # O_NONBLOCK: opening a FIFO must not wait for a writer
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise problem(path, "is no regular file", "put a file there")
            body = file.read(most + 1)
    except OSError as error:
        raise problem(path, _reason(error), remedy) from None
    if len(body) > most:
        raise problem(path, f"has more than {most} bytes", "this is no key or certificate")
    return body, status


def _check_writers(path: Path, status: os.stat_result) -> None:
    if status.st_uid not in (0, os.geteuid()):
        raise problem(
            path,
            f"belongs to user {status.st_uid}, who could change it",
            f"chown it to root or to user {os.geteuid()}",
        )
    if status.st_mode & 0o022:
        raise problem(
            path,
            f"others may write it (mode {stat.S_IMODE(status.st_mode):04o})",
            f"chmod go-w {path}",
        )


def _check_empty(folder: Path) -> None:
    try:
        status = folder.lstat()
        if not stat.S_ISDIR(status.st_mode):
            raise problem(folder, "is there and is no folder", "choose another folder")
        if any(folder.iterdir()):
            raise problem(
                folder, "is not empty", "nothing is ever overwritten: choose another folder"
            )
    except OSError as error:
        raise problem(folder, _reason(error), "choose another folder") from None
    if status.st_mode & 0o077:
        raise problem(
            folder,
            f"others may use this folder (mode {stat.S_IMODE(status.st_mode):04o})",
            f"chmod 700 {folder}",
        )


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
