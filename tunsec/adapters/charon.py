"""charon over VICI: what it is told to do, and what it tells.

Three connections, each in a thread of its own, so that a charon that is frozen, busy or gone never
holds the daemon's loop: commands that are answered at once, commands that wait for a peer, and
events. Every command gives a future of the running loop, which fails with Unavailable (no charon,
no answer in time) or Refused (its `reason` are charon's own words). Only what bears the prefix
`tunsec-` is ever loaded, unloaded, rekeyed or terminated.
"""

import asyncio
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import unquote, urlsplit

from tunsec.adapters.charon_events import EventLane, check_fit
from tunsec.adapters.lane import Lane
from tunsec.adapters.vici_socket import Answer, ViciSocket, decoded
from tunsec.model.errors import Bug, PolicyError, Problem, Refused, Unavailable
from tunsec.model.ike import NAME_PREFIX, Authority, IkeConnection, SharedSecret
from tunsec.model.ike_sa import (
    Algorithms,
    CharonStats,
    CharonVersion,
    IkeEvent,
    IkeRef,
    IkeSa,
    LoadedConnection,
)
from tunsec.model.secret import Secret
from tunsec.wire.vici import answers, requests
from tunsec.wire.vici.events import PACKET_GROUPS, decode_control_log
from tunsec.wire.vici.requests import Message
from tunsec.wire.vici.values import Section

ANSWER_SECONDS: Final = 5.0
"""charon answers from a thread of its own within milliseconds; this bounds a frozen one."""
SILENT_SECONDS: Final = 2.0
"""How long the event lane hears nothing before it asks whether charon still answers, the first time
after an event."""
TOLD_LINES: Final = 5
"""The last log lines of a command, to tell why it failed."""

T = TypeVar("T")
Job = Callable[[ViciSocket], T]


def parse_url(url: str) -> Path:
    """The path of a VICI socket from `unix:///PATH`; raises PolicyError."""
    parts = urlsplit(url)
    path = unquote(parts.path)
    if parts.scheme != "unix" or parts.netloc or parts.query or not path.startswith("/"):
        remedy = "such as unix:///run/charon.vici"
        raise PolicyError([Problem("--charon", f"{url!r} is no unix:///PATH", remedy)])
    return Path(path)


class Charon:
    """One charon. Made, used and closed on the loop; `tell` is called on it with every event."""

    def __init__(
        self,
        path: Path,
        *,
        tell: Callable[[IkeEvent], None],
        answer_seconds: float = ANSWER_SECONDS,
        silent_seconds: float = SILENT_SECONDS,
    ) -> None:
        """Start the lanes. CharonLinked tells when charon is there, and each time it is anew."""
        self._seconds = answer_seconds
        self._prompt = _Session("charon commands", path, answer_seconds)
        self._patient = _Session("charon waits", path, answer_seconds)
        self._events = EventLane(
            path,
            tell=tell,
            loop=asyncio.get_running_loop(),
            answer_seconds=answer_seconds,
            silent_seconds=silent_seconds,
        )

    def close(self) -> None:
        """End the lanes; what was loaded stays in charon."""
        self._prompt.close()
        self._patient.close()
        self._events.close()

    # -- what charon is and has ----------------------------------------------------------------

    def version(self) -> asyncio.Future[CharonVersion]:
        """Who answers."""
        return self._prompt.ask(lambda vici: vici.version(seconds=self._seconds))

    def stats(self) -> asyncio.Future[CharonStats]:
        """How busy it is."""
        return self._read("stats", answers.decode_stats)

    def algorithms(self) -> asyncio.Future[Algorithms]:
        """What it has implementations of."""
        return self._read("get-algorithms", answers.decode_algorithms)

    def sas(self, *, ike: str | None = None) -> asyncio.Future[tuple[IkeSa, ...]]:
        """IKE_SAs with their CHILD_SAs, ours and foreign; of one connection when it is named."""
        message: Message = {} if ike is None else {"ike": ike}
        return self._prompt.ask(partial(self._list_sas, message))

    def connections(self) -> asyncio.Future[tuple[LoadedConnection, ...]]:
        """Connections it holds, ours and foreign."""
        return self._prompt.ask(self._list_connections)

    def loaded_connections(self) -> asyncio.Future[tuple[str, ...]]:
        """Names of our connections, also of an earlier life."""
        return self._names("get-conns", "conns")

    def loaded_secrets(self) -> asyncio.Future[tuple[str, ...]]:
        """Ids of our shared secrets, also of an earlier life."""
        return self._names("get-shared", "keys")

    def loaded_authorities(self) -> asyncio.Future[tuple[str, ...]]:
        """Names of our authorities, also of an earlier life."""
        return self._names("get-authorities", "authorities")

    def loaded_keys(self) -> asyncio.Future[tuple[str, ...]]:
        """Ids of all private keys that came over VICI, whoever loaded them."""
        decode = partial(answers.decode_names, command="get-keys", key="keys")
        return self._read("get-keys", decode)

    # -- loading and unloading -----------------------------------------------------------------

    def load_connection(self, connection: IkeConnection) -> asyncio.Future[None]:
        """Load a connection, or replace the one of its name; SAs that are up stay as they are."""
        _check_ours(connection.name)
        what = f"loading connection {connection.name}"
        return self._do(what, "load-conn", lambda: requests.encode_connection(connection))

    def unload_connection(self, name: str) -> asyncio.Future[None]:
        """Forget a connection; its SAs stay."""
        _check_ours(name)
        return self._do(f"unloading connection {name}", "unload-conn", lambda: {"name": name})

    def load_secret(self, shared: SharedSecret) -> asyncio.Future[None]:
        """Load a PSK or PPK, or replace the one of its id."""
        _check_ours(shared.id)
        what = f"loading secret {shared.id}"
        return self._do(what, "load-shared", lambda: requests.encode_shared(shared))

    def unload_secret(self, secret_id: str) -> asyncio.Future[None]:
        """Forget a PSK or PPK."""
        _check_ours(secret_id)
        what = f"unloading secret {secret_id}"
        return self._do(what, "unload-shared", lambda: {"id": secret_id})

    def load_key(self, key: Secret) -> asyncio.Future[str]:
        """Load a private key (PEM or DER); its id. Keys have no names: who unloads this one must
        know that nobody else loaded it (`loaded_keys` before)."""

        def job(vici: ViciSocket) -> str:
            answer = self._succeed(vici, "loading a key", "load-key", requests.encode_key(key))
            return Section(answer, "load-key").text("id")

        return self._prompt.ask(job)

    def unload_key(self, key_id: str) -> asyncio.Future[None]:
        """Forget the private key of this id."""
        return self._do(f"unloading key {key_id}", "unload-key", lambda: {"id": key_id})

    def load_certificate(self, der: bytes) -> asyncio.Future[None]:
        """Load an intermediate or a host's certificate. charon keeps it until it ends."""
        message = requests.encode_certificate(der)
        return self._do("loading a certificate", "load-cert", lambda: message)

    def load_crl(self, der: bytes) -> asyncio.Future[None]:
        """Load a revocation list; it takes the place of an older one of the same issuer."""

        def job(vici: ViciSocket) -> None:
            self._succeed(vici, "loading a CRL", "load-cert", requests.encode_crl(der))
            # What was found good under the old list must be judged anew.
            self._succeed(vici, "flushing certificates", "flush-certs", {"type": "X509_CRL"})

        return self._prompt.ask(job)

    def load_authority(self, authority: Authority) -> asyncio.Future[None]:
        """Trust a CA, or replace the one of its name."""
        _check_ours(authority.name)
        what = f"loading authority {authority.name}"
        return self._do(what, "load-authority", lambda: requests.encode_authority(authority))

    def unload_authority(self, name: str) -> asyncio.Future[None]:
        """No longer trust a CA."""
        _check_ours(name)
        return self._do(f"unloading authority {name}", "unload-authority", lambda: {"name": name})

    # -- SAs -----------------------------------------------------------------------------------

    def initiate(
        self, ike: str, child: str, *, seconds: float | None = None
    ) -> asyncio.Future[None]:
        """Make a CHILD_SA, and the IKE_SA before it where there is none.

        Without `seconds` the future is done once charon has begun, and events tell the rest. With
        it, once the CHILD_SA is up; commands that wait for a peer stand in line for each other.
        """
        _check_ours(ike)
        what = f"initiating {ike}/{child}"
        if seconds is None:
            message = requests.encode_initiate(ike=ike, child=child, timeout_ms=-1)
            return self._do(what, "initiate", lambda: message)
        message = requests.encode_initiate(ike=ike, child=child, timeout_ms=int(seconds * 1000))
        return self._patient.ask(partial(self._wait_for, what, "initiate", message, seconds))

    def rekey_ike(self, ike: IkeRef, *, reauth: bool = False) -> asyncio.Future[None]:
        """Begin to replace an IKE_SA, with new proof of identity when `reauth`."""
        message: Message = {"ike-id": str(ike.id), "reauth": "yes" if reauth else "no"}
        return self._on_sa(f"rekeying {ike.name}", "rekey", ike, message)

    def terminate_child(self, ike: IkeRef, child_id: int) -> asyncio.Future[None]:
        """Begin to delete a CHILD_SA."""
        message: Message = {"child-id": str(child_id), "timeout": "-1"}
        what = f"terminating CHILD_SA #{child_id} of {ike.name}"
        return self._on_sa(what, "terminate", ike, message)

    def terminate_ike(self, ike: IkeRef, *, force: bool = False) -> asyncio.Future[None]:
        """Begin to delete an IKE_SA with its CHILD_SAs; `force` does not wait for the peer."""
        message: Message = {
            "ike-id": str(ike.id),
            "timeout": "-1",
            "force": "yes" if force else "no",
        }
        return self._on_sa(f"terminating {ike.name}", "terminate", ike, message)

    # -- how it is done ------------------------------------------------------------------------

    def _read(self, command: str, decode: Callable[[Answer], T]) -> asyncio.Future[T]:
        return self._prompt.ask(
            lambda vici: decoded(
                command, lambda: decode(vici.request(command, seconds=self._seconds))
            )
        )

    def _names(self, command: str, key: str) -> asyncio.Future[tuple[str, ...]]:
        def decode(answer: Answer) -> tuple[str, ...]:
            names = answers.decode_names(answer, command=command, key=key)
            return tuple(name for name in names if name.startswith(NAME_PREFIX))

        return self._read(command, decode)

    def _do(self, what: str, command: str, encode: Callable[[], Message]) -> asyncio.Future[None]:
        """A command that only succeeds or not; a secret is encoded in the lane's thread alone."""

        def job(vici: ViciSocket) -> None:
            self._succeed(vici, what, command, decoded(what, encode))

        return self._prompt.ask(job)

    def _on_sa(
        self, what: str, command: str, ike: IkeRef, message: Message
    ) -> asyncio.Future[None]:
        """A command on an IKE_SA or one of its children, if it still is the one that is meant.

        charon counts ids from 1 after each start, so an old one may be another program's by now.
        """
        _check_ours(ike.name)

        def job(vici: ViciSocket) -> None:
            found = self._list_sas({"ike-id": str(ike.id)}, vici)
            if not any(sa.ref == ike for sa in found):
                raise Refused(what, reason=f"IKE_SA {ike.name} #{ike.id} is gone")
            self._succeed(vici, what, command, message)

        return self._prompt.ask(job)

    def _list_sas(self, message: Message, vici: ViciSocket) -> tuple[IkeSa, ...]:
        found: list[Answer] = []
        # With noblock it would leave out IKE_SAs that another thread is working on.
        vici.stream("list-sas", "list-sa", message, seconds=self._seconds, see=found.append)
        return decoded("list-sas", lambda: tuple(map(answers.decode_list_sa, found)))

    def _list_connections(self, vici: ViciSocket) -> tuple[LoadedConnection, ...]:
        found: list[Answer] = []
        vici.stream("list-conns", "list-conn", seconds=self._seconds, see=found.append)
        return decoded("list-conns", lambda: tuple(map(answers.decode_list_conn, found)))

    def _succeed(self, vici: ViciSocket, what: str, command: str, message: Message) -> Answer:
        answer = vici.request(command, message, seconds=self._seconds)
        _check_success(what, answer)
        return answer

    def _wait_for(
        self, what: str, command: str, message: Message, seconds: float, vici: ViciSocket
    ) -> None:
        """A command that waits for a peer; its log lines tell why it failed."""
        lines: list[Answer] = []
        began = time.monotonic()
        answer = vici.stream(
            command, "control-log", message, seconds=seconds + self._seconds, see=lines.append
        )
        try:
            _check_success(what, answer)
        except Refused as error:
            reason = "; ".join((error.reason, *_telling(what, lines)))
            if time.monotonic() - began >= seconds:
                raise Unavailable(f"{what}: {reason}") from error
            raise Refused(what, reason=reason) from error


class _Session:
    """A lane with a connection that is made when it is first needed and after each failure."""

    def __init__(self, name: str, path: Path, seconds: float) -> None:
        self._lane = Lane(name)
        self._path = path
        self._seconds = seconds
        self._vici: ViciSocket | None = None

    def ask(self, job: Job[T]) -> asyncio.Future[T]:
        """Carry out a job after those before it."""
        return self._lane.ask(lambda: self._run(job))

    def close(self) -> None:
        """End after the jobs that were asked for."""
        self._lane.ask(self._drop)
        self._lane.close()

    def _run(self, job: Job[T]) -> T:
        try:
            return job(self._connected())
        except Refused:
            raise
        except BaseException:
            self._drop()  # an answer that still comes must not be taken for the next one's
            raise

    def _connected(self) -> ViciSocket:
        if self._vici is not None and self._vici.stale():
            self._drop()
        if self._vici is None:
            vici = ViciSocket(self._path, seconds=self._seconds)
            try:
                check_fit(vici.version(seconds=self._seconds))
            except BaseException:
                vici.close()
                raise
            self._vici = vici
        return self._vici

    def _drop(self) -> None:
        if self._vici is not None:
            self._vici.close()
            self._vici = None


def _telling(what: str, lines: list[Answer]) -> list[str]:
    """The last lines that tell more than packets."""
    said = decoded(what, lambda: list(map(decode_control_log, lines)))
    words = [line.words.strip() for line in said if line.group not in PACKET_GROUPS]
    return words[-TOLD_LINES:]


def _check_ours(name: str) -> None:
    if not name.startswith(NAME_PREFIX):
        raise Bug(f"{name!r} is not tunsec's, it does not start with {NAME_PREFIX}")


def _check_success(what: str, answer: Answer) -> None:
    """charon's own words when it did not succeed."""

    def decode() -> tuple[bool, str]:
        section = Section(answer, what)
        return section.flag("success"), section.words("errmsg") if "errmsg" in section else ""

    success, words = decoded(what, decode)
    if not success:
        raise Refused(what, reason=words or "charon gave no reason")
