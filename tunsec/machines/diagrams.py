"""docs/machines.md, made from the tables: `python3 -m tunsec.machines.diagrams`.

What has a table is drawn from it. What has none is told with the reason, and never drawn.
"""

import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from typing import Any, Final

from tunsec.machines.flow import MAX_EPOCHS, phase_of
from tunsec.machines.ike_flow import CHILD
from tunsec.machines.offer import OFFER
from tunsec.machines.reconnect import GATE
from tunsec.machines.slots import INBOUND, OUTBOUND, SaState
from tunsec.machines.table import Table
from tunsec.machines.vip import VIP

HEAD: Final = """# The machines

Made from the tables of `tunsec/machines/` by
`python3 -m tunsec.machines.diagrams > docs/machines.md`; a test fails when it is not what they
give. Who calls them is told in [architecture.md](architecture.md).

A pair of state and fact that is neither in a diagram nor among its races cannot happen: it raises
`Bug`, the daemon ends and the block SPs hold every flow. The simulation shows that none is reached.
An SA that leaves the kernel leaves its table with that, whatever state it was in.
"""

ROOMS: Final = {
    OFFER.name: ("offer.py", "The offer of this host in the directory, and its private key."),
    INBOUND.name: ("slots.py", "An inbound SA by directory keying: the receiver's side."),
    OUTBOUND.name: ("slots.py", "An outbound SA by directory keying: the sender's side."),
    CHILD.name: ("ike_flow.py", "A CHILD_SA by IKE, as this host sees it."),
    VIP.name: ("vip.py", "A service address on one of its owners."),
    GATE.name: (
        "reconnect.py",
        "Whether new connections of a flow with `on_reconnect` may begin, between two addresses.",
    ),
}
TABLES: Final[tuple[Table[Any, Any], ...]] = (OFFER, INBOUND, OUTBOUND, CHILD, VIP, GATE)

WITHOUT: Final = """## Machines without a table

They have no states of their own: a diagram of them would be somebody's reading of the code.

- The *pair* (`pair.py`) and the *IKE peer* (`ike_peer.py`) are sets of the things above, and rules
  over all of them: what is asked for next follows from what there is. Their `step` takes every fact
  at any time; their `check` says what must hold after each.
- The *outbox* (`outbox.py`) is a queue: paths to write, paths to remove, at most one order under
  way.
- The phase of a *flow* is read off its SAs, so that it cannot say anything that they do not. By IKE
  (`IkeFlow.phase` in `ike_flow.py`) time has a part in it. By directory keying (`phase_of` in
  `flow.py`) it is as follows, with one SA in each of the states named:
"""


def page() -> str:
    """docs/machines.md as it must be."""
    return "\n".join([HEAD, *map(chapter, TABLES), WITHOUT, phases()])


def chapter(table: Table[Any, Any]) -> str:
    """One machine: its diagram, and its races with their reasons."""
    file, story = ROOMS[table.name]
    parts = [
        f"## {table.name[0].upper()}{table.name[1:]}\n",
        f"{story} `tunsec/machines/{file}`\n",
        "```mermaid\nstateDiagram-v2\n"
        + "".join(f"    {line}\n" for line in arrows(table))
        + "```\n",
    ]
    if table.ignored:
        races = [(state, fact, reason) for (state, fact), reason in table.ignored.items()]
        parts += ["Races, which change nothing:\n", rows(("state", "fact", "why"), races)]
    return "\n".join(parts)


def arrows(table: Table[Any, Any]) -> Iterator[str]:
    """The lines of a Mermaid state diagram. A state that nothing leaves is the last."""
    yield f"[*] --> {table.first}"
    for (before, fact), after in table.transitions.items():
        yield f"{before} --> {after}: {fact}"
    left = {before for before, _ in table.transitions}
    for after in dict.fromkeys(table.transitions.values()):
        if after not in left:
            yield f"{after} --> [*]"


def phases() -> str:
    """The phase of a flow by the states of its SAs."""
    columns: list[tuple[SaState, ...]] = [
        (),
        (SaState.REKEYED,),
        (SaState.ACTIVE,),
        (SaState.REKEYED, SaState.ACTIVE),
    ]
    heads = ["inbound SAs", *(f"outbound: {named(states)}" for states in columns)]
    inbound = [states for count in range(MAX_EPOCHS + 1) for states in combinations(SaState, count)]
    return rows(
        heads,
        [(named(states), *(phase_of(states, column) for column in columns)) for states in inbound],
    )


def named(states: Sequence[SaState]) -> str:
    """As a cell."""
    return ", ".join(states) or "none"


def rows(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    shown = [heads, ["---"] * len(heads), *lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in shown)


if __name__ == "__main__":
    sys.stdout.write(page())
