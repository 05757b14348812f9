"""The laws are worth something only if they are seen broken: faults planted on purpose are caught.

Each fault changes one function of machines, engine or keyring, and the same trials that pass
without it must raise Broken (a law) or Bug (a machine's own promise) within some seeds.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import pytest

from tests.sim.laws import Broken
from tests.sim.repertoire import Trial
from tests.sim.script import Script
from tests.sim.trial import chaos_trial
from tunsec.daemon import drift, install, post, reconcile, scope
from tunsec.daemon.engine import Engine
from tunsec.daemon.install import Installer
from tunsec.daemon.post import PostRoom
from tunsec.keying import ring
from tunsec.keying.chain import Speaker, Trust
from tunsec.keying.identity import Identity
from tunsec.keying.ring import Keyring
from tunsec.machines import flow as flows
from tunsec.machines import offer as offers
from tunsec.machines.facts import Keyed, PeerConfirmed
from tunsec.machines.flow import FlowState
from tunsec.machines.orders import WithdrawOffer
from tunsec.model.clock import Instant
from tunsec.model.errors import Bug, Refused
from tunsec.model.names import ConfirmationSeq, HostName, Mark, Spi
from tunsec.model.ownership import is_our_sa, is_our_sp
from tunsec.model.record import Confirmation, Offer
from tunsec.model.sa import Sa, SaDirection, SaId
from tunsec.model.secret import Secret
from tunsec.model.selector import Selector
from tunsec.model.sp import Sp, SpDirection
from tunsec.model.step import AddSa, RemoveSa, RemoveSp, Step
from tunsec.plan import diff, sas
from tunsec.plan.image import Image, Wanted
from tunsec.policy import desired
from tunsec.policy.intent import Intent

Plant = Callable[[pytest.MonkeyPatch], None]

SEEDS = range(40)


def publishes_before_it_installs(patch: pytest.MonkeyPatch) -> None:
    """The receiver says what it will receive on, and installs it with its next SA."""
    late: list[tuple[Installer, Step]] = []
    truly_add, truly_read_back = Installer._add, Installer._read_back

    def add(
        self: Installer, jobs: Sequence[install._Job], direction: SaDirection
    ) -> list[Refused | None]:
        if direction is SaDirection.OUTBOUND:
            return truly_add(self, jobs, direction)
        for installer, step in late:
            installer._apply([step])
        late.clear()
        late.extend((self, AddSa(job.sa, direction)) for job in jobs)
        return [None] * len(jobs)

    def read_back(self: Installer, jobs: list[install._Job], refused: list[object]) -> object:
        promised = {step.sa.id for _, step in late if isinstance(step, AddSa)}
        if any(job.sa.id in promised for job in jobs):
            return jobs
        return truly_read_back(self, jobs, refused)  # type: ignore[arg-type]

    patch.setattr(Installer, "_add", add)
    patch.setattr(Installer, "_read_back", read_back)


def follows_what_nobody_confirmed(patch: pytest.MonkeyPatch) -> None:
    """The sender guesses the receiver's next SPI."""
    truly = PostRoom._confirmed

    def confirmed(self: PostRoom, author: HostName, said: Confirmation) -> PeerConfirmed:
        fact = truly(self, author, said)
        guessed = tuple(replace(keyed, spi=Spi(keyed.spi ^ 1)) for keyed in fact.receives)
        return replace(fact, receives=guessed)

    patch.setattr(PostRoom, "_confirmed", confirmed)


def makes_an_outbound_key_again(patch: pytest.MonkeyPatch) -> None:
    """A record that is read again is obeyed again."""
    patch.setattr(Installer, "_made_before", lambda self, keyed: None)


def reuses_the_keys_of_an_earlier_life(patch: pytest.MonkeyPatch) -> None:
    """An offer is good until it ends: the next life goes on with it and with what is behind it."""
    kept: dict[str, tuple[ring._Own, bytes, bytes]] = {}
    truly = Keyring.make_offer

    def make_offer(self: Keyring, *, private: Secret, **more: object) -> tuple[Offer, bytes]:
        host = self._identity.host
        if host in kept and not self._own:
            own, raw, record = kept[host]
            self._own[own.offer.sequence] = replace(own, private=Secret(raw))
            return own.offer, record
        raw = bytes(private.reveal())
        offer, record = truly(self, private=private, **more)  # type: ignore[arg-type]
        kept[host] = self._own[offer.sequence], raw, record
        return offer, record

    patch.setattr(Keyring, "make_offer", make_offer)


def re_adds_from_saved_keys(patch: pytest.MonkeyPatch) -> None:
    """SAs that are gone come back with the key they had."""
    saved: dict[SaId, bytes] = {}
    truly_add, truly_want = Installer._add, reconcile.want

    def add(
        self: Installer, jobs: Sequence[install._Job], direction: SaDirection
    ) -> list[Refused | None]:
        saved.update({job.sa.id: job.sa.key.reveal() for job in jobs if job.sa.key is not None})
        return truly_add(self, jobs, direction)

    def want(
        of: Iterable[FlowState],
        blocks: Iterable[Sp],
        ike: Iterable[reconcile.IkeHolding] = (),
        *,
        have: Image,
    ) -> Wanted:
        wanted = truly_want(of, blocks, ike, have=have)
        return replace(
            wanted,
            sas={
                sa_id: replace(one, sa=replace(one.sa, key=Secret(saved[sa_id])))
                if sa_id in saved
                else one
                for sa_id, one in wanted.sas.items()
            },
        )

    patch.setattr(Installer, "_add", add)
    patch.setattr(drift, "want", want)


def forgets_to_block(patch: pytest.MonkeyPatch) -> None:
    """Flows have their protect SPs, and no block behind the outbound ones."""
    truly = scope.Scope.blocks.func  # type: ignore[attr-defined]

    def blocks(self: scope.Scope) -> tuple[Sp, ...]:
        return tuple(sp for sp in truly(self) if sp.id.direction is SpDirection.IN)

    patch.setattr(scope.Scope, "blocks", property(blocks))


def removes_blocks_on_stop(patch: pytest.MonkeyPatch) -> None:
    """A tidy daemon: what it installed it takes away when it ends."""
    truly = Engine.close

    def close(self: Engine) -> None:
        kernel = self._ports.kernel
        truly(self)
        kernel.apply([RemoveSp(sp) for sp in kernel.sps().values() if is_our_sp(sp)])

    patch.setattr(Engine, "close", close)


def removes_blocks_of_flows_that_a_policy_drops(patch: pytest.MonkeyPatch) -> None:
    """A line deleted from the policy opens the flow."""
    patch.setattr(scope.Scope, "blocks", property(lambda self: self._desired.blocks))
    patch.setattr(scope, "retired_blocks", lambda wanted, have: ())


def opens_the_guard_and_the_block(patch: pytest.MonkeyPatch) -> None:
    """Blocking is taken for removing every outbound SP of the child, block SPs too."""
    truly = Installer.block

    def block(self: Installer, child: object) -> None:
        truly(self, child)  # type: ignore[arg-type]
        self._apply([RemoveSp(sp) for sp in self._kernel.sps().values() if is_our_sp(sp)])

    patch.setattr(Installer, "block", block)


def removes_foreign_sas(patch: pytest.MonkeyPatch) -> None:
    """Every SA that nobody here wants is drift."""
    patch.setattr(diff, "is_our_sa", lambda sa: True)


def removes_foreign_sps(patch: pytest.MonkeyPatch) -> None:
    """Every SP that nobody here wants is drift."""
    patch.setattr(diff, "is_our_sp", lambda sp: True)


def flushes_the_sad_on_start(patch: pytest.MonkeyPatch) -> None:
    """A fresh start begins with no SA but those that are adopted."""
    truly = drift.Drift.adopt

    def adopt(self: drift.Drift, children: object) -> object:
        sas = self._kernel.sas().values()
        self._kernel.apply([RemoveSa(sa.id) for sa in sas if not is_our_sa(sa)])
        return truly(self, children)  # type: ignore[arg-type]

    patch.setattr(drift.Drift, "adopt", adopt)


def overwrites_the_sp_in_its_way(patch: pytest.MonkeyPatch) -> None:
    """An SP under the child's selector is updated, whoever owns it."""
    patch.setattr(install, "is_our_sp", lambda sp: True)


def removes_what_the_peer_still_sends_on(patch: pytest.MonkeyPatch) -> None:
    """An SA with a successor goes at once, whatever the peer says."""
    truly = flows.add_inbound

    def add_inbound(flow: FlowState, keyed: Keyed) -> FlowState:
        after = truly(flow, keyed)
        *older, new = after.inbound
        older = [replace(sa, check_at=Instant(0.0), packets=0) for sa in older]
        return replace(after, inbound=(*older, new))

    patch.setattr(flows, "add_inbound", add_inbound)


def takes_silence_for_refusal(patch: pytest.MonkeyPatch) -> None:
    """A peer that has not read the newest record is thought to have declined it."""

    def revision_heard(self: PostRoom, author: HostName, heard: ConfirmationSeq) -> int:
        return 1_000_000

    patch.setattr(PostRoom, "_revision_heard", revision_heard)


def accepts_old_records(patch: pytest.MonkeyPatch) -> None:
    """What an author said before is as good as what it says now."""
    patch.setattr(Keyring, "_check_forward", lambda self, said, digest, path: None)


def never_wipes_a_private_key(patch: pytest.MonkeyPatch) -> None:
    """A superseded offer may still be of use."""
    patch.setattr(Keyring, "forget_own", lambda self, sequence: None)


def knows_no_limit_of_epochs(patch: pytest.MonkeyPatch) -> None:
    """The receiver makes as many SAs as it likes, and waits for nobody."""

    def may_replace(flow: FlowState, **offers: object) -> bool:
        newest = flow.newest_inbound
        return newest is None or (newest.own_offer, newest.peer_offer) != (
            offers["own"],
            offers["peer"],
        )

    patch.setattr(flows, "may_replace", may_replace)


def keeps_every_offer(patch: pytest.MonkeyPatch) -> None:
    """Offers of peers pile up, and the secrets made from them."""
    patch.setattr(post, "PEER_OFFERS", 1_000)


def never_takes_a_record_back(patch: pytest.MonkeyPatch) -> None:
    """What was said stays said."""
    patch.setattr(Engine, "_drop", lambda self, path: None)


def takes_nothing_back_for_an_earlier_life(patch: pytest.MonkeyPatch) -> None:
    """A daemon that dies before it has withdrawn its word leaves it there for ever."""
    patch.setattr(Engine, "_withdraw_leftovers", lambda self: None)


def takes_back_what_is_wanted(patch: pytest.MonkeyPatch) -> None:
    """A change of policy takes everything back: what is still true will be said again."""
    truly = Engine._begin_keying

    def begin_keying(self: Engine) -> None:
        truly(self)
        for path in self.post.published_before():
            self._drop(path)

    patch.setattr(Engine, "_begin_keying", begin_keying)


def keeps_private_keys_that_nobody_needs(patch: pytest.MonkeyPatch) -> None:
    """The last flow goes, and the keys behind the offer may still be of use."""

    def rule_ended(state: offers.OffersState) -> offers.OffersStep:
        return offers.OffersStep(state, (WithdrawOffer(),))

    patch.setattr(offers, "_rule_ended", rule_ended)


def believes_the_revoked(patch: pytest.MonkeyPatch) -> None:
    """Who was believed is cut off, and believed again with the next offer."""
    truly = Trust.judge

    def judge(self: Trust, chain: tuple[bytes, ...], **more: object) -> Speaker:
        crls, self._crls = self._crls, {}
        try:
            return truly(self, chain, **more)  # type: ignore[arg-type]
        finally:
            self._crls = crls

    patch.setattr(Trust, "judge", judge)


def leaves_what_stands_to_the_revoked(patch: pytest.MonkeyPatch) -> None:
    """No new keys with a revoked peer, and the old ones go on."""
    truly = PostRoom.renew_identity

    def renew_identity(self: PostRoom, identity: Identity, trust: Trust) -> list[post.News]:
        truly(self, identity, trust)
        return []

    patch.setattr(PostRoom, "renew_identity", renew_identity)


def adopts_what_stands_to_the_revoked(patch: pytest.MonkeyPatch) -> None:
    """Who is revoked while no daemon runs is left what is in the kernel."""
    patch.setattr(PostRoom, "revoked_before", lambda self: [])


def gives_all_tenants_one_mark(patch: pytest.MonkeyPatch) -> None:
    """Devices, SPs and SAs of every tenant bear the same."""
    truly = desired.assign_marks

    def assign_marks(
        intent: Intent, host: str, held: Mapping[desired.Sharing, Mark]
    ) -> dict[desired.Sharing, Mark]:
        return dict.fromkeys(truly(intent, host, held), intent.marks.tenant(1))

    patch.setattr(desired, "assign_marks", assign_marks)


def lets_sps_overlook_the_mark(patch: pytest.MonkeyPatch) -> None:
    """Whoever's packet it is, the SP that was made last takes it."""
    truly = desired._protect

    def protect(selector: Selector, direction: SpDirection, **more: object) -> Sp:
        sp = truly(selector, direction, **more)  # type: ignore[arg-type]
        return replace(sp, id=replace(sp.id, mark=None))

    patch.setattr(desired, "_protect", protect)


def decrypts_without_a_mark(patch: pytest.MonkeyPatch) -> None:
    """What comes for a tenant cannot be told from what comes for another."""
    truly = sas.inbound_sa

    def inbound_sa(*given: object, **more: object) -> Sa:
        return replace(truly(*given, **more), output_mark=None)  # type: ignore[arg-type]

    patch.setattr(install, "inbound_sa", inbound_sa)


FAULTS: dict[Plant, str] = {
    gives_all_tenants_one_mark: "tenants:",
    lets_sps_overlook_the_mark: "tenants:",
    decrypts_without_a_mark: "tenants:",
    publishes_before_it_installs: "law 2",
    follows_what_nobody_confirmed: "law 2",
    removes_what_the_peer_still_sends_on: "law 2",
    takes_silence_for_refusal: "law 2",
    accepts_old_records: "law 2",
    makes_an_outbound_key_again: "law 3",
    re_adds_from_saved_keys: "law 3",
    reuses_the_keys_of_an_earlier_life: "law 3",
    forgets_to_block: "law 1",
    removes_blocks_on_stop: "law 1",
    removes_blocks_of_flows_that_a_policy_drops: "law 1",
    opens_the_guard_and_the_block: "law 1",
    removes_foreign_sas: "law 4",
    removes_foreign_sps: "law 4",
    flushes_the_sad_on_start: "law 4",
    overwrites_the_sp_in_its_way: "law 4",
    never_wipes_a_private_key: "private keys",
    knows_no_limit_of_epochs: "inbound SAs",
    keeps_every_offer: "offers of peers pile up",
    never_takes_a_record_back: "records that nobody wants",
    takes_nothing_back_for_an_earlier_life: "records that nobody wants",
    takes_back_what_is_wanted: "records that are missing",
    keeps_private_keys_that_nobody_needs: "private keys of no use",
    believes_the_revoked: "revoked:",
    leaves_what_stands_to_the_revoked: "revoked:",
    adopts_what_stands_to_the_revoked: "revoked:",
}
"""Each fault, and what must be said of it."""


@pytest.mark.parametrize("plant", FAULTS, ids=lambda plant: plant.__name__)
def test_a_planted_fault_is_caught(plant: Plant) -> None:
    """Some seed breaks the law that the fault offends, and breaks none without the fault."""
    seed, said = first_that_breaks(plant, chaos_trial, SEEDS)
    assert FAULTS[plant] in said.splitlines()[0]
    chaos_trial(Script(seed))


def first_that_breaks(plant: Plant, trial: Trial, seeds: Sequence[int]) -> tuple[int, str]:
    """The first seed whose trial breaks a law under a fault, and what was said."""
    for seed in seeds:
        with pytest.MonkeyPatch.context() as patch:
            plant(patch)
            try:
                trial(Script(seed))
            except (Broken, Bug) as caught:
                return seed, str(caught)
            except AssertionError:
                continue  # traffic stands still, which is no broken law
    raise AssertionError(f"{plant.__doc__} Nothing noticed in {len(seeds)} trials.")
