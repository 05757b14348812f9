"""charon on asyncio: connects, hands over this host's credentials, and carries orders and answers
between the engine and adapters/charon.py. Decides nothing about flows.

What is loaded here is taken back here, and nothing else: a private key that was in charon before is
somebody's who loaded it, and stays.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from tunsec.adapters.charon import Charon
from tunsec.daemon.journal import fields
from tunsec.daemon.memory import KnownCharon
from tunsec.model.aead import Aead
from tunsec.model.clock import Seconds
from tunsec.model.errors import Bug, Refused, TunsecError, Unavailable
from tunsec.model.ike import (
    NAME_PREFIX,
    Authority,
    CertificateAuth,
    IkeConnection,
    IkeRules,
    PskAuth,
    SharedKind,
    SharedSecret,
)
from tunsec.model.ike_sa import CharonLinked, CharonLost, CharonUnfit, IkeEvent, IkeRef, IkeSa
from tunsec.model.secret import Secret
from tunsec.plan.ike_connection import IkeSetup
from tunsec.ports import Done

TRY_AGAIN: Final = Seconds(2.0)
PPK_NAME: Final = f"{NAME_PREFIX}ppk"
PPK_ID: Final = "tunsec"
"""The PPK's identity on the wire, the same on every host (RFC 8784 section 2)."""

T = TypeVar("T")
log = logging.getLogger("tunsec.charon")


@dataclass(frozen=True, slots=True)
class Psk:
    """A pre-shared key and the peers that prove themselves by it."""

    secret: Secret
    identities: tuple[str, ...]
    """This host's first."""


@dataclass(frozen=True, slots=True)
class PrivateKey:
    """A private key, PEM, and the name by which charon knows it."""

    pem: Secret
    id: str


@dataclass(frozen=True, slots=True)
class Credentials:
    """What charon needs to speak for this host."""

    key: PrivateKey | None
    """None with a PSK."""
    auth: CertificateAuth | PskAuth
    revocation_lists: tuple[bytes, ...]
    """DER."""
    psk: Psk | None
    ppk: Secret | None
    rules: IkeRules
    aeads: tuple[Aead, ...]
    """In the order of preference."""


class CharonLink:
    """The port Ike of a running daemon. Made, used and closed on the loop."""

    def __init__(
        self,
        path: Path,
        *,
        ready: Callable[[IkeSetup], None],
        away: Callable[[str], None],
        tell: Callable[[IkeEvent], None],
        failed: Callable[[BaseException], None],
        loaded: KnownCharon | None,
        remember: Callable[[KnownCharon | None], None],
    ) -> None:
        """`ready` and `away` tell whether charon can be used; `tell` hears its events; `failed`
        hears of a bug. `loaded` is what an earlier life left in charon, and `remember` keeps it
        for the next one. charon is not looked for before `use` gives credentials, or has to take
        back what was loaded."""
        self._path = path
        self._ready = ready
        self._away = away
        self._tell = tell
        self._failed = failed
        self._credentials: Credentials | None = None
        self._linked = False
        self._task: asyncio.Task[None] | None = None
        self._loaded = loaded
        self._remember = remember
        self._adapter: Charon | None = None

    @property
    def _charon(self) -> Charon:
        if self._adapter is None:
            raise Bug("charon is asked before there are credentials for it")
        return self._adapter

    def close(self) -> None:
        """Stop listening. charon keeps what it has: the flows stay as they are."""
        self._end()
        if self._adapter is not None:
            self._adapter.close()
            self._adapter = None

    def use(self, credentials: Credentials | None) -> None:
        """From now on these; None: no flow is keyed by IKE, all of ours is taken back."""
        self._credentials = credentials
        if self._linked:
            self._begin()
        elif self._adapter is None and (credentials is not None or self._loaded is not None):
            self._adapter = Charon(self._path, tell=self._told)

    # charon comes and goes

    def _told(self, event: IkeEvent) -> None:
        match event:
            case CharonLinked(version):
                log.info("charon is there", extra=fields({"version": version.version}))
                self._linked = True
                self._begin()
            case CharonLost(reason) | CharonUnfit(reason):
                log.error("charon cannot be used", extra=fields({"reason": reason}))
                self._linked = False
                self._end()
                self._away(reason)
            case _:
                self._tell(event)

    def _begin(self) -> None:
        self._end()
        self._task = asyncio.get_running_loop().create_task(self._prepare())

    def _end(self) -> None:
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _prepare(self) -> None:
        """Hand over credentials until charon has them."""
        try:
            while True:
                try:
                    setup = await self._hand_over()
                except (Refused, Unavailable) as error:
                    log.error("charon takes no credentials", extra=fields({"error": error}))
                    self._away(str(error))
                    await asyncio.sleep(TRY_AGAIN)
                else:
                    if setup is not None:
                        self._ready(setup)
                    return
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - nothing may be lost in the event loop
            self._failed(error)

    async def _hand_over(self) -> IkeSetup | None:
        given = self._credentials
        if given is None:
            await self._take_back()
            return None
        self._keep(self._loaded or KnownCharon())
        algorithms = await self._charon.algorithms()
        wanted: set[str] = set()
        if given.key is not None:
            await self._load_key(given.key)
        if isinstance(given.auth, CertificateAuth):
            for number, certificate in enumerate(given.auth.authorities):
                authority = Authority(f"{NAME_PREFIX}ca-{number}", certificate)
                wanted.add(authority.name)
                await self._charon.load_authority(authority)
            for chained in given.auth.certificates[1:]:
                await self._charon.load_certificate(chained)
        for revoked in given.revocation_lists:
            await self._charon.load_crl(revoked)
        secrets = list(_shared_secrets(given))
        for shared in secrets:
            await self._charon.load_secret(shared)
        await self._unload(wanted, {shared.id for shared in secrets})
        ppk_id = PPK_ID if given.ppk is not None else None
        return IkeSetup(algorithms, given.auth, ppk_id, given.aeads, given.rules)

    async def _load_key(self, key: PrivateKey) -> None:
        """One that was there before is ours only if we have loaded it. Whose it is, is remembered
        before it is loaded: what was asked of charon may be done though nobody heard the answer."""
        if self._own_key not in (None, key.id):
            await self._unload_own_key()
        if key.id not in await self._charon.loaded_keys():
            self._keep(KnownCharon(key.id))
        loaded = await self._charon.load_key(key.pem)
        if loaded != key.id:
            raise Bug(f"charon calls the private key {loaded}, not {key.id}")

    async def _unload_own_key(self) -> None:
        own_key = self._own_key
        if own_key is not None and own_key in await self._charon.loaded_keys():
            await self._charon.unload_key(own_key)
        self._keep(KnownCharon())

    @property
    def _own_key(self) -> str | None:
        return None if self._loaded is None else self._loaded.own_key

    def _keep(self, loaded: KnownCharon | None) -> None:
        if loaded != self._loaded:
            self._loaded = loaded
            self._remember(loaded)

    async def _unload(self, authorities: set[str], secrets: set[str]) -> None:
        """What an earlier policy or life loaded and this one does not want."""
        for name in await self._charon.loaded_authorities():
            if name not in authorities:
                await self._charon.unload_authority(name)
        for name in await self._charon.loaded_secrets():
            if name not in secrets:
                await self._charon.unload_secret(name)

    async def _take_back(self) -> None:
        for name in await self._charon.loaded_connections():
            await self._charon.unload_connection(name)
        # Also one that was rekeyed while its end was ordered, with all it carries.
        for ike in await self._charon.sas():
            if ike.name.startswith(NAME_PREFIX):
                await self._charon.terminate_ike(ike.ref, force=True)
        await self._unload(set(), set())
        await self._unload_own_key()
        self._keep(None)
        self._away("no flow of the policy is keyed by IKE")

    # The port

    def load(self, connection: IkeConnection, *, done: Done) -> None:
        """Load a connection."""
        self._answered(self._charon.load_connection(connection), done)

    def unload(self, name: str, *, done: Done) -> None:
        """Forget a connection."""
        self._answered(self._charon.unload_connection(name), done)

    def initiate(self, connection: str, child: str, *, done: Done) -> None:
        """Begin to make a CHILD_SA."""
        self._answered(self._charon.initiate(connection, child), done)

    def sas(self, *, done: Callable[[Sequence[IkeSa] | TunsecError], None]) -> None:
        """All IKE_SAs."""
        future = self._charon.sas()

        def answered(ended: asyncio.Future[tuple[IkeSa, ...]]) -> None:
            result = _result(ended)
            self._carefully(lambda: done(result))

        future.add_done_callback(answered)

    def connections(self, *, done: Callable[[Sequence[str] | TunsecError], None]) -> None:
        """Names of our connections."""
        future = self._charon.loaded_connections()

        def answered(ended: asyncio.Future[tuple[str, ...]]) -> None:
            result = _result(ended)
            self._carefully(lambda: done(result))

        future.add_done_callback(answered)

    def terminate_child(self, ike: IkeRef, child_id: int, *, done: Done) -> None:
        """Begin to delete a CHILD_SA."""
        self._answered(self._charon.terminate_child(ike, child_id), done)

    def terminate_ike(self, ike: IkeRef, *, done: Done) -> None:
        """Delete an IKE_SA, whether the peer answers or not."""
        self._answered(self._charon.terminate_ike(ike, force=True), done)

    def _answered(self, future: asyncio.Future[None], done: Done) -> None:
        def answered(ended: asyncio.Future[None]) -> None:
            result = _result(ended)
            self._carefully(lambda: done(result if isinstance(result, TunsecError) else None))

        future.add_done_callback(answered)

    def _carefully(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:  # noqa: BLE001 - nothing may be lost in the event loop
            self._failed(error)


def _result(ended: asyncio.Future[T]) -> T | TunsecError:
    """What came of it; a bug stays an exception."""
    error = ended.exception()
    if isinstance(error, TunsecError):
        return error
    return ended.result()


def _shared_secrets(given: Credentials) -> Sequence[SharedSecret]:
    found: list[SharedSecret] = []
    if given.psk is not None:
        found.append(
            SharedSecret(
                f"{NAME_PREFIX}psk", SharedKind.PSK, given.psk.secret, given.psk.identities
            )
        )
    if given.ppk is not None:
        found.append(SharedSecret(PPK_NAME, SharedKind.PPK, given.ppk, (PPK_ID,)))
    return found
