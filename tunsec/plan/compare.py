"""Whether the kernel holds what was asked for: a subset match, not equality (law 5)."""

from dataclasses import replace

from tunsec.model.sa import Offload, Sa, SaDirection
from tunsec.model.sp import Sp


def sa_matches(want: Sa, have: Sa) -> bool:
    """Whether `have` does what `want` asks.

    Keys are not compared (a dump carries none), nor counters. What `want` leaves open may stand
    there: a direction, a CPU, flags that the kernel adds by itself (NOPMTUDISC from a sysctl,
    net/xfrm/xfrm_state.c __xfrm_init_state). Sequence numbers may have risen, never fallen.
    """
    return (
        want.id == have.id
        and want.src == have.src
        and want.reqid == have.reqid
        and want.aead is have.aead
        and not have.larval
        and want.mode is have.mode
        and want.selector == have.selector
        and want.lifetimes == have.lifetimes
        and _replay_matches(want, have)
        and have.flags & want.flags == want.flags
        and want.output_mark == have.output_mark
        and want.if_id == have.if_id
        and want.offload == have.offload
        and (want.direction is None or want.direction is have.direction)
        and (want.cpu is None or want.cpu == have.cpu)
    )


def sp_matches(want: Sp, have: Sp) -> bool:
    """Whether `have` does what `want` asks; counters and the kernel's index are not compared."""
    return (
        want.id == have.id
        and want.priority == have.priority
        and want.action is have.action
        and want.templates == have.templates
        and want.lifetimes == have.lifetimes
        and have.flags & want.flags == want.flags
        and _device(want.offload) == _device(have.offload)
    )


def _device(offload: Offload | None) -> Offload | None:
    """The kernel tells the direction of an SP's offload, and refuses to be told it
    (net/xfrm/xfrm_device.c xfrm_dev_policy_add): it is in the SP's id."""
    return offload and replace(offload, inbound=False)


def _replay_matches(want: Sa, have: Sa) -> bool:
    asked, there = want.replay, have.replay
    # An SA that the kernel knows to be outbound has no receive window (verify_replay).
    window = 0 if have.direction is SaDirection.OUTBOUND else asked.window
    return (
        window == there.window
        and asked.esn is there.esn
        and asked.oseq <= there.oseq
        and asked.seq <= there.seq
    )
