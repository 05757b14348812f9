"""tunsecd on asyncio: feeds the engine what the kernel, the directory, time and admins say.

Decides nothing. Any error that is not one of ours is a bug: the process ends, block SPs stay.
"""

import asyncio
import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

from tunsec.adapters.aead_speed import aead_speeds
from tunsec.adapters.charon import parse_url
from tunsec.adapters.dir_file import FileDirectory, parse_directory_url
from tunsec.adapters.identity import LoadedIdentity, load_identity
from tunsec.adapters.links import HostLinks, LinkMonitor
from tunsec.adapters.namespace_lock import claim_namespace
from tunsec.adapters.nft import GuardMonitor, NftGuard
from tunsec.adapters.psk_file import read_psk
from tunsec.adapters.rdma import HostRdma
from tunsec.adapters.sockets import SocketEvents, Sockets
from tunsec.adapters.syn_queue import SynQueue
from tunsec.adapters.system import SystemClock, SystemEntropy
from tunsec.adapters.systemd import Notifier
from tunsec.adapters.tc import TcMarks, TcMonitor
from tunsec.adapters.tunnel_lookup import lookup_faults
from tunsec.adapters.xfrm import XfrmEvents, XfrmKernel
from tunsec.daemon import report
from tunsec.daemon.charon_link import CharonLink
from tunsec.daemon.control import Access, ControlServer
from tunsec.daemon.drift import Drift
from tunsec.daemon.engine import Engine, Ports
from tunsec.daemon.explain import explain
from tunsec.daemon.guarding import Guarding
from tunsec.daemon.health import Counters, Troubles
from tunsec.daemon.ike_credentials import ike_credentials
from tunsec.daemon.journal import fields
from tunsec.daemon.memory import KnownFlows, KnownPolicy, Memory, text_hash
from tunsec.daemon.post import PostRoom
from tunsec.daemon.scope import Scope
from tunsec.daemon.settings import Settings
from tunsec.keying.claims import ClaimBook
from tunsec.keying.ring import Keyring
from tunsec.model.clock import Deadline, Seconds
from tunsec.model.errors import PolicyError, Problem, Refused, Unavailable
from tunsec.model.event import EventsLost, LinkChanged
from tunsec.model.names import Boot, FlowName
from tunsec.model.secret import Secret
from tunsec.plan.diff import Plan
from tunsec.plan.ike_connection import IkeSetup
from tunsec.plan.image import Image
from tunsec.policy.document import MAX_BYTES
from tunsec.policy.intent import Intent, parse_policy
from tunsec.policy.values import Ppk
from tunsec.ports import AeadSpeed, Record
from tunsec.wire.control import (
    ApplyReport,
    FlowStatus,
    PlanReport,
    PolicyBody,
    PolicyStatus,
    ReleaseReport,
    Status,
)
from tunsec.wire.control_explain import ExplainBody, Explanation

LONGEST_SLEEP: Final = Seconds(60.0)
"""The loop's clock stands still in suspend, the machines' does not."""
HANGUP_AFTER: Final = Seconds(0.05)
"""Signals that come together are answered together."""
REMEMBER_AFTER: Final = Seconds(1.0)
"""Sequences are written at most this often."""

log = logging.getLogger("tunsec.daemon")


class Service:
    """One daemon. `run()` returns when it is told to stop; implements ControlTarget."""

    def __init__(self, settings: Settings, notifier: Notifier, watchdog: Seconds | None) -> None:
        self._settings = settings
        self._notifier = notifier
        self._watchdog = watchdog
        self._clock = SystemClock()
        self._started_at = self._clock.now()
        self._memory = Memory(settings.state)
        self._policy_status = PolicyStatus("", "", 0.0)
        self._policy_since = self._started_at
        self._directory_trouble = ""
        self._untried = ""
        self._device_warnings: frozenset[str] = frozenset()
        self._listeners: list[asyncio.Future[None]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._armed: Deadline | None = None
        self._remember: asyncio.TimerHandle | None = None
        self._failure: asyncio.Future[None] | None = None
        self._cleanup = ExitStack()
        self._hangups = 0
        self._hangup_task: asyncio.Task[None] | None = None
        self._kernel: XfrmKernel
        self._guard: NftGuard
        self._marks = TcMarks()
        self._links: HostLinks
        self._syns: SynQueue
        self._gate_trouble = ""
        self._directory: FileDirectory
        self._identity: LoadedIdentity
        self._ring: Keyring
        self._psk: Secret | None = None
        self._ike_in_use = False
        self._proof_outdated = False
        self._aeads: tuple[AeadSpeed, ...]
        self._charon: CharonLink
        self.engine: Engine

    # Life

    async def run(self) -> None:
        """Close, key, serve, until SIGTERM or SIGINT. The kernel stays protected."""
        loop = asyncio.get_running_loop()
        self._failure = loop.create_future()
        with self._cleanup:
            self._cleanup.enter_context(claim_namespace())
            intent, known = self._first_policy()
            scope = self._first_scope(intent, known)
            self._close_first(scope)
            scope = self._tried(scope)
            self._directory = FileDirectory(
                parse_directory_url(self._settings.directory), self._settings.host
            )
            self._identity = self._load_identity(intent)
            self._psk = self._load_psk(intent)
            self._build(scope)
            xfrm = XfrmEvents(ours=[self._kernel.tag])
            self._cleanup.callback(xfrm.close)
            guard, marks, links = GuardMonitor(), TcMonitor(), LinkMonitor()
            for monitor in (guard, marks, links):
                self._cleanup.callback(monitor.close)
            self.engine.start(scope)
            self._accept(known, intent, scope)
            self._give_credentials()
            self._check_devices()
            self._open_gates()
            access = Access.of_group(anyone_reads=self._settings.anyone_reads)
            control = self._cleanup.enter_context(
                ControlServer(self._settings.run / "control.sock", self, access=access)
            )
            self._watch(xfrm.fileno(), lambda: self._on_xfrm(xfrm))
            self._watch(guard.fileno(), lambda: self._on_guard(guard))
            self._watch(marks.fileno(), lambda: self._on_guard(marks))
            self._watch(links.fileno(), lambda: self._on_links(links))
            await self._serve(control)

    async def _serve(self, control: ControlServer) -> None:
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._on_hangup)
        self._notifier.ready(f"{len(self.engine.scope.children)} relations guarded")
        log.info("ready", extra=fields({"host": self._settings.host}))
        tasks: list[asyncio.Task[None]] = [
            loop.create_task(self._directory.run()),
            loop.create_task(control.run()),
            loop.create_task(_ended(stop)),
        ]
        if self._watchdog is not None:
            tasks.append(loop.create_task(self._keep_alive(self._watchdog)))
        if self._failure is None:
            raise AssertionError("run() makes it")
        try:
            self._rearm()
            waiting: set[asyncio.Future[None]] = {*tasks, self._failure}
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for ended in done:
                ended.result()
        finally:
            self._notifier.stopping()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._stop()

    def _stop(self) -> None:
        self.engine.close()
        self._memory.remember_newest(self._ring.newest())
        self._memory.remember_claims(self.engine.vips.remember())
        self._ring.wipe()
        log.info("stopped: the kernel stays as it is, protected")

    async def _keep_alive(self, watchdog: Seconds) -> None:
        while True:
            self._notifier.alive()
            await asyncio.sleep(watchdog / 2)

    # Start

    def _read_policy(self) -> str:
        path = self._settings.policy
        try:
            with path.open("rb") as stream:
                raw = stream.read(MAX_BYTES + 1)
        except OSError as error:
            raise PolicyError(
                [Problem(str(path), f"cannot be read: {error.strerror}", "check --policy")]
            ) from error
        return raw.decode("utf-8", "surrogateescape")

    def _first_policy(self) -> tuple[Intent, KnownPolicy]:
        """The newest word: the file if it has changed since, else what was applied last.

        A file that is bad gives way to the last good policy, and says so in status.
        """
        known = self._memory.policy()
        path = self._settings.policy
        try:
            text = self._read_policy()
            if known is None or known.file_hash != text_hash(text):
                intent = self._parse(text, str(path))
                return intent, KnownPolicy(text, str(path), text_hash(text))
        except PolicyError as error:
            if known is None:
                raise
            self._say_bad_policy(error)
        return self._parse(known.text, known.source), known

    def _parse(self, text: str, source: str) -> Intent:
        intent = parse_policy(text, source)
        intent.host(self._settings.host)
        return intent

    def _load_identity(self, intent: Intent) -> LoadedIdentity:
        loaded = load_identity(
            self._settings.identity,
            host=self._settings.host,
            name=intent.host(self._settings.host).identity,
            wall_now=self._clock.wall(),
        )
        if intent.ppk is Ppk.REQUIRED and loaded.ppk is None:
            where = self._settings.identity / "ppk.key"
            raise PolicyError(
                [Problem(str(where), "the policy requires a PPK", "put the cluster's PPK there")]
            )
        for problem in loaded.warnings:
            log.warning(str(problem))
        return loaded

    def _first_scope(self, intent: Intent, known: KnownPolicy) -> Scope:
        """What an earlier life answered for, and then the policy of now: what the file no longer
        asks for stays blocked, though nobody ran while it was changed."""
        kept = self._memory.flows()
        before = Scope(
            self._settings.host,
            self._last_intent(),
            known.source,
            released=kept.released,
            retired=kept.retired,
        )
        return before.with_policy(intent, known.source, keep_released=True)

    def _last_intent(self) -> Intent | None:
        """The policy that was in force last, if this release still understands it."""
        last = self._memory.policy()
        if last is None:
            return None
        try:
            return self._parse(last.text, last.source)
        except PolicyError as error:
            log.error("last policy not understood", extra=fields({"error": error}))
            return None

    def _close_first(self, scope: Scope) -> None:
        """Law 1 before all else: block SPs and guard, each tried whatever becomes of the other.

        Whatever stops the daemon after this (a bad identity, no directory) leaves the flows
        closed. Raises what went wrong with the block SPs, or that there is no nft.
        """
        self._kernel = XfrmKernel()
        self._cleanup.callback(self._kernel.close)
        self._links = HostLinks()
        self._cleanup.callback(self._links.close)
        counters, troubles = Counters(), Troubles()
        drift = Drift(kernel=self._kernel, counters=counters, troubles=troubles)
        try:
            scope = drift.with_held(scope, Scope.empty(scope.host))
            drift.close(scope)
        finally:
            self._guard = NftGuard(boot_file=self._settings.state / "guard.nft")
            Guarding(
                table=self._guard,
                marks=self._marks,
                links=self._links,
                counters=counters,
                troubles=troubles,
            ).put(scope)

    def _tried(self, scope: Scope) -> Scope:
        """The same with what this kernel cannot protect. What cannot be tried is told and goes on:
        if it is not protected, the guard drops it."""
        try:
            faults = lookup_faults(self._settings.run, self._kernel, self._links, scope.tunnels)
        except Unavailable as error:
            log.warning("not tried", extra=fields({"error": error}))
            self._untried = str(error)
            return scope
        self._untried = ""
        for fault in faults:
            log.error("not protected by this kernel", extra=fields({"reason": fault.reason}))
        return scope.with_faults(faults)

    def _build(self, scope: Scope) -> None:
        entropy = SystemEntropy()
        use_ppk = scope.intent is not None and scope.intent.ppk is Ppk.REQUIRED
        self._ring = Keyring(
            self._identity.identity,
            self._identity.trust(),
            grants=scope.grants,
            newest=self._memory.newest(),
            ppk=self._identity.ppk if use_ppk else None,
        )
        self._aeads = aead_speeds(self._settings.run)
        post = PostRoom(
            host=self._settings.host,
            boot=Boot(entropy.token(16).hex()),
            keyring=self._ring,
            clock=self._clock,
            entropy=entropy,
            aeads=self._aeads,
        )
        self._charon = CharonLink(
            parse_url(self._settings.charon),
            ready=lambda setup: self._guarded(lambda: self._on_charon_ready(setup)),
            away=lambda reason: self._guarded(lambda: self.engine.on_charon_away(reason)),
            tell=lambda event: self._guarded(lambda: self.engine.on_ike_event(event)),
            failed=self._fail,
            loaded=self._memory.charon(),
            remember=self._memory.remember_charon,
        )
        self._cleanup.callback(self._charon.close)
        self._syns = SynQueue()
        self._cleanup.callback(self._syns.close)
        known = self._memory.claims()
        self.engine = Engine(
            host=self._settings.host,
            ports=Ports(
                self._kernel,
                self._guard,
                self._marks,
                self._links,
                HostRdma(),
                self._directory,
                self._clock,
                entropy,
                self._charon,
                self._sockets(),
                self._syns,
            ),
            post=post,
            claims=ClaimBook(
                self._identity.identity, self._identity.trust(), owners={}, known=known
            ),
            served=known.served,
            look_every=self._settings.look_every,
            changed=self._on_changed,
        )
        self._directory.on_records(self._on_records)
        self._directory.on_available(self._on_available)
        self._directory.on_refused(lambda refused: post.refuse(refused, Record(refused.path, b"")))

    def _sockets(self) -> Sockets:
        sockets = Sockets()
        self._cleanup.callback(sockets.close)
        return sockets

    def _open_gates(self) -> None:
        """Take over the queue of new connections, once a flow has one. If that fails there are no
        new connections: the guard's rules have no bypass."""
        if self._syns.bound or not self.engine.gates.needed:
            return
        try:
            ended = SocketEvents()
            self._cleanup.callback(ended.close)
            self._syns.bind()
        except Refused as error:
            self._gate_trouble = f"no new connection of a flow with 'on_reconnect': {error}"
            log.error(self._gate_trouble)
            return
        self._gate_trouble = ""
        self._watch(ended.fileno(), lambda: self.engine.on_connections(ended.read()))
        self._watch(self._syns.fileno(), lambda: self._syns.read(self.engine.on_syn))

    def _give_credentials(self) -> None:
        """charon gets what the policy in force asks for, and keeps no more than that."""
        intent = self.engine.scope.intent
        self._ike_in_use = intent is not None and self.engine.uses_ike
        if intent is None or not self._ike_in_use:
            self._charon.use(None)
            return
        speeds = sorted(self._aeads, key=lambda one: -one.bytes_per_second)
        self._charon.use(
            ike_credentials(
                self._identity,
                intent,
                self._settings.host,
                psk=self._psk,
                aeads=[one.aead for one in speeds],
            )
        )

    def _on_charon_ready(self, setup: IkeSetup) -> None:
        """charon has the credentials, and the revocation lists, that were last given."""
        self.engine.on_charon_ready(setup)
        if self._proof_outdated:
            self._proof_outdated = False
            self.engine.want_proof("revocation lists changed")

    def _renew_credentials(self) -> None:
        if self._ike_in_use is not self.engine.uses_ike:
            self._give_credentials()

    def _load_psk(self, intent: Intent) -> Secret | None:
        """The shared secret that the policy names; raises PolicyError. IKE may still carry flows
        that the policy has given to the directory."""
        return None if intent.ike.psk_file is None else read_psk(Path(intent.ike.psk_file))

    def _accept(self, known: KnownPolicy, intent: Intent, scope: Scope) -> None:
        """A policy is in force: remember it."""
        self._memory.remember_flows(KnownFlows(scope.released, scope.retired))
        self._memory.remember_policy(known)  # last: what it drops must not be forgotten
        self._policy_since = self._clock.now()
        self._policy_status = PolicyStatus(
            known.source, intent.digest, 0.0, self._policy_status.error
        )

    def _say_bad_policy(self, error: PolicyError) -> None:
        for problem in error.problems:
            log.error("policy not taken", extra=fields({"problem": problem}))
        self._policy_status = replace(self._policy_status, error=str(error))

    # Facts

    def _watch(self, descriptor: int, read: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        loop.add_reader(descriptor, lambda: self._guarded(read))
        self._cleanup.callback(loop.remove_reader, descriptor)

    def _guarded(self, act: Callable[[], None]) -> None:
        """Run a callback; what it raises ends the daemon instead of vanishing in the loop."""
        try:
            act()
        except Unavailable as error:
            log.error("not now", extra=fields({"error": error}))
        except Exception as error:  # noqa: BLE001 - nothing may be lost in the event loop
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        if self._failure is not None and not self._failure.done():
            self._failure.set_exception(error)

    def _on_xfrm(self, events: XfrmEvents) -> None:
        facts = events.read()
        self.engine.on_kernel_events((fact, False) for fact in facts)

    def _on_guard(self, monitor: GuardMonitor | TcMonitor) -> None:
        if monitor.read():
            self.engine.on_guard_changed()
            self._rearm()

    def _on_links(self, monitor: LinkMonitor) -> None:
        events = monitor.read()
        if events:
            lost = any(isinstance(event, EventsLost) for event in events)
            changed = {event.ifindex for event in events if isinstance(event, LinkChanged)}
            self.engine.on_links_changed(None if lost else changed)
            self._check_devices()

    def _check_devices(self) -> None:
        """Log what status shows too: devices of protected flows that lose packets."""
        devices = self._links.overlay_devices()
        found = frozenset(report.device_warnings(self.engine, self._links, devices))
        for warning in sorted(found - self._device_warnings):
            log.warning(warning)
        self._device_warnings = found

    def _on_records(self, records: list[Record], _removed: list[str]) -> None:
        self._guarded(lambda: self.engine.on_records(records))

    def _on_available(self, error: Unavailable | None) -> None:
        self._directory_trouble = str(error) if error else ""
        if error is None:
            self._guarded(self.engine.on_directory_back)
        else:
            log.error("directory is away", extra=fields({"error": error}))
        self._on_changed()

    def _on_changed(self) -> None:
        """The engine has acted: wake who waits, set the timer, write down what must last."""
        self._rearm()
        # At once, for a token that was seen must not be forgotten; it seldom changes.
        self._memory.remember_claims(self.engine.vips.remember())
        if self._ike_in_use is not self.engine.uses_ike:
            # The last flow has moved, or charon made something for it too late. Not now: whoever
            # changes the policy or the identity is not done with it.
            asyncio.get_running_loop().call_soon(lambda: self._guarded(self._renew_credentials))
        listeners, self._listeners = self._listeners, []
        for listener in listeners:
            if not listener.done():
                listener.set_result(None)
        if self._remember is None:
            loop = asyncio.get_running_loop()
            self._remember = loop.call_later(REMEMBER_AFTER, self._remember_newest)

    def _remember_newest(self) -> None:
        self._remember = None
        self._guarded(lambda: self._memory.remember_newest(self._ring.newest()))

    def _rearm(self) -> None:
        """One timer for the earliest deadline of all machines."""
        deadline = self.engine.deadline()
        if deadline == self._armed and self._timer is not None:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._armed = deadline
        if deadline is not None:
            span = min(LONGEST_SLEEP, max(0.0, deadline.at - self._clock.now()))
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(span, lambda: self._guarded(self._on_timer))

    def _on_timer(self) -> None:
        self._timer = None
        self._armed = None
        try:
            self.engine.tick()
        finally:
            self._rearm()

    # Control

    def status(self) -> Status:
        """How things stand now."""
        age = self._clock.now() - self._policy_since
        soon = self._identity.warnings_at(self._clock.wall())
        warnings = [str(problem) for problem in soon]
        more = (
            self._memory.trouble,
            self._guard.boot_trouble,
            self._untried,
            self._gate_trouble,
        )
        warnings += [text for text in more if text]
        return report.status(
            self.engine,
            report.Surroundings(
                self._started_at,
                replace(self._policy_status, age=age),
                self._settings.directory,
                self._directory_trouble,
                self._ring.private_values,
                tuple(warnings),
            ),
            kernel=self._kernel,
            guard=self._guard,
            links=self._links,
            now=self._clock.now(),
        )

    def flows(self) -> tuple[FlowStatus, ...]:
        """How flows stand, without asking the kernel."""
        return report.flow_statuses(self.engine, have=Image(), now=self._clock.now())

    async def explain(self, body: ExplainBody) -> Explanation:
        """Which rule covers what is asked, and what the kernel does with it now."""
        return explain(
            self.engine,
            body,
            kernel=self._kernel,
            guard=self._guard,
            links=self._links,
            now=self._clock.now(),
            wall=self._clock.wall(),
        )

    async def plan(self, policy: PolicyBody | None) -> PlanReport:
        """What applying a policy would change; None: what the policy in force still wants."""
        scope = self.engine.scope
        if policy is not None:
            intent = self._parse(policy.text, policy.source)
            scope = scope.with_policy(intent, policy.source, keep_released=False)
        found = self.engine.plan_for(scope)
        added, changed, removed = _flow_changes(self.engine.scope.intent, scope.intent)
        return PlanReport(
            scope.source,
            scope.intent.digest if scope.intent else "",
            _step_lines(found),
            added,
            changed,
            removed,
        )

    async def apply(self, policy: PolicyBody) -> ApplyReport:
        """Replace the policy in force, which stays on any error; nothing stays released."""
        return self._apply(policy, keep_released=False)

    def _apply(self, policy: PolicyBody, *, keep_released: bool) -> ApplyReport:
        try:
            intent = self._parse(policy.text, policy.source)
            loaded = self._load_identity(intent)
            psk = self._load_psk(intent)
        except PolicyError as error:
            self._say_bad_policy(error)
            raise
        before = self.engine.scope
        scope = before.with_policy(intent, policy.source, keep_released=keep_released)
        self.engine.change_scope(self._tried(scope))
        scope = self.engine.scope
        self.engine.renew_identity(loaded.identity, loaded.trust())
        # Who was revoked must not stay on the proof of before.
        self._proof_outdated |= loaded.crls != self._identity.crls
        self._identity, self._psk = loaded, psk
        self._give_credentials()
        self._open_gates()
        self._policy_status = replace(self._policy_status, error="")
        known = KnownPolicy(policy.text, policy.source, self._file_hash())
        self._accept(known, intent, scope)
        added, changed, removed = _flow_changes(before.intent, intent)
        log.info(
            "policy applied",
            extra=fields({"source": policy.source, "digest": intent.digest[:16]}),
        )
        same = before.intent is not None and before.intent.digest == intent.digest
        return ApplyReport(
            policy.source,
            intent.digest,
            not same or before.released != scope.released,
            added,
            changed,
            removed,
        )

    async def reload(self) -> ApplyReport:
        """Read policy and identity from their files again."""
        with self._reloading():
            try:
                text = self._read_policy()
            except PolicyError as error:
                self._say_bad_policy(error)
                raise
            body = PolicyBody(text, str(self._settings.policy))
            return self._apply(body, keep_released=True)

    async def release(self, flow: str | None) -> ReleaseReport:
        """Stop managing a flow, or all: their traffic may go in clear from now on."""
        before = self.engine.scope
        name = None if flow is None else FlowName(flow)
        if name is not None and not before.knows(name):
            known = ", ".join(sorted({one.flow for one in before.guarded})) or "none"
            raise PolicyError(
                [Problem(f"flow {flow}", "is not managed here", f"managed flows: {known}")]
            )
        scope = before.without(name)
        removed = self.engine.release(scope)
        self._give_credentials()
        self._memory.remember_flows(KnownFlows(scope.released, scope.retired))
        gone = {one.flow for one in before.guarded} - {one.flow for one in scope.guarded}
        log.warning("released", extra=fields({"flows": ",".join(gone), "block_sps": removed}))
        return ReleaseReport(tuple(sorted(gone)))

    async def changed(self) -> None:
        """Returns when the status may have changed."""
        listener = asyncio.get_running_loop().create_future()
        self._listeners.append(listener)
        try:
            await listener
        finally:
            if listener in self._listeners:
                self._listeners.remove(listener)

    def _on_hangup(self) -> None:
        """SIGHUP: read the files again. Many at once are one more time."""
        self._hangups += 1
        if self._hangup_task is None or self._hangup_task.done():
            self._hangup_task = asyncio.get_running_loop().create_task(self._hangup())

    async def _hangup(self) -> None:
        seen = 0
        while seen != self._hangups:
            await asyncio.sleep(HANGUP_AFTER)
            seen = self._hangups
            await self._reload_told()

    async def _reload_told(self) -> None:
        try:
            await self.reload()
        except (PolicyError, Refused, Unavailable) as error:
            log.error("reload failed: the policy in force stays", extra=fields({"error": error}))
        except Exception as error:  # noqa: BLE001 - as in _guarded
            if self._failure is not None and not self._failure.done():
                self._failure.set_exception(error)

    @contextmanager
    def _reloading(self) -> Iterator[None]:
        self._notifier.reloading()
        try:
            yield
        finally:
            self._notifier.ready()

    def _file_hash(self) -> str:
        try:
            return text_hash(self._read_policy())
        except PolicyError:
            return ""


def _step_lines(found: Plan) -> tuple[str, ...]:
    return (
        *(str(step) for step in found.steps),
        *(f"rekey: SA {sa_id} is gone" for sa_id in found.lost),
        *(f"conflict: another program owns {one}" for one in found.conflicts),
    )


def _flow_changes(
    before: Intent | None, after: Intent | None
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    old = {flow.name: flow for flow in before.flows} if before else {}
    new = {flow.name: flow for flow in after.flows} if after else {}
    return (
        tuple(sorted(new.keys() - old.keys())),
        tuple(sorted(name for name in new.keys() & old.keys() if new[name] != old[name])),
        tuple(sorted(old.keys() - new.keys())),
    )


async def _ended(stop: asyncio.Event) -> None:
    await stop.wait()
