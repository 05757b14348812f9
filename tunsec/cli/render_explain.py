"""`tunsec explain` as text: the answer first, then what it rests on."""

from collections.abc import Iterator
from typing import Final

from tunsec.cli.render import FLOW_HEADS, flow_row, size, span, table
from tunsec.wire.control_explain import Explanation, Relation, SaReport, SpReport

SP_HEADS: Final = (*("SP", "SELECTOR", "ACTION", "PRIORITY", "MARK", "PINS", "WHOSE", "LAST MET"),)
RULES_IT: Final = "RULES IT"
"""Whether an SP does, for a packet that is asked about."""
SA_HEADS: Final = (
    *("SA", "SPI", "FLOW", "PEER", "STATE", "IN USE", "AEAD", "AGE", "PACKETS", "CARRIED"),
    *("SEQUENCE", "WINDOW", "DROPS", "MARK", "ENDS IN"),
)
"""SEQUENCE: last sent or received; ENDS IN: until the hard lifetime."""


def show(found: Explanation) -> None:
    """Print an answer."""
    print(found.asked)
    print(f"{found.verdict}: {found.why}")
    for line in found.on_the_wire:
        print(f"on the wire: {line}")
    rules = (f"rule: {_named(one)}: {one.rule}" for one in found.relations)
    for line in dict.fromkeys(rules):
        print(line)
    if found.relations:
        print()
        table(FLOW_HEADS, [flow_row(one.status) for one in found.relations])
    if found.sps:
        print()
        table((*SP_HEADS, RULES_IT), [(*_sp_row(sp), sp.when or "yes") for sp in found.sps])
    elif sps := [sp for one in found.relations for sp in one.sps]:
        print()
        table(SP_HEADS, map(_sp_row, sps))
    rows = [_sa_row(one, sa) for one in found.relations for sa in one.sas]
    if rows:
        print()
        table(SA_HEADS, rows)
    tail = list(_tail(found))
    if tail:
        print()
    for line in tail:
        print(line)


def _named(one: Relation) -> str:
    tenant = one.status.tenant
    return f"{one.status.flow}/{tenant}" if tenant else one.status.flow


def _sp_row(sp: SpReport) -> tuple[str, ...]:
    met = "never" if sp.used is None else f"{span(sp.used)} ago"
    return (
        *(sp.direction, sp.selector, sp.action, str(sp.priority), sp.mark or "-", sp.spi or "-"),
        *(sp.whose, met),
    )


def _sa_row(one: Relation, sa: SaReport) -> tuple[str, ...]:
    state = f"{sa.state or 'unknown'}{f', {sa.offload} offload' if sa.offload else ''}"
    window = f"{sa.replay_window}{' ESN' if sa.esn else ''}"
    return (
        *(sa.direction, sa.spi, _named(one), one.status.peer, state),
        *("yes" if sa.in_use else "no", sa.aead or "-", span(sa.age), str(sa.packets)),
        *(size(sa.carried_bytes), str(sa.sequence), window, str(sa.drops)),
        *(sa.mark or sa.output_mark or "-", span(sa.hard_after)),
    )


def _tail(found: Explanation) -> Iterator[str]:
    for rule in found.guard:
        yield f"guard: {rule.rule}: {rule.packets} so far (counter {rule.counter})"
    for text in found.notes:
        yield f"note: {text}"
