"""Anti-replay state in the kernel's three forms (net/xfrm/xfrm_replay.c).

LEGACY: struct xfrm_replay_state, up to 32 packets, the window stands in xfrm_usersa_info.
BITMAP: struct xfrm_replay_state_esn without the ESN flag, a wide window with 32-bit numbers.
ESN:    the same struct with XFRM_STATE_ESN, 64-bit numbers (RFC 4303 section 2.2.1).
"""

import struct
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from tunsec.model.sa import Replay, SaDirection
from tunsec.wire.netlink import Buffer, Malformed, encode_attribute
from tunsec.wire.xfrm.consts import REPLAY_ESN_MAX, Attr
from tunsec.wire.xfrm.structs import need

_LEGACY: Final = struct.Struct("=3I")
_ESN: Final = struct.Struct("=6I")
LEGACY_MAX: Final = 32
"""Widest window of the legacy form, in packets (xfrm_state.replay.bitmap is 32 bits)."""


class ReplayForm(StrEnum):
    """See the module's first lines."""

    LEGACY = "legacy"
    BITMAP = "bitmap"
    ESN = "esn"


@dataclass(frozen=True, slots=True)
class ReplayState:
    """Everything the kernel keeps; `bitmap` is 32-bit words, one in the legacy form."""

    form: ReplayForm
    window: int
    oseq: int = 0
    seq: int = 0
    bitmap: tuple[int, ...] = (0,)

    def model(self) -> Replay:
        """Without the bitmap and the form."""
        return Replay(self.window, self.form is ReplayForm.ESN, self.oseq, self.seq)


def replay_state(replay: Replay, direction: SaDirection | None) -> ReplayState:
    """What to install for `replay`.

    An SA that is declared outbound may have no receive window, and a kernel that knows the
    direction refuses one (verify_replay, Linux 6.10 and newer); without a direction the kernel
    wants a window above 0 with ESN, outbound too (xfrm_init_replay).
    """
    window = 0 if direction is SaDirection.OUTBOUND else replay.window
    if window > REPLAY_ESN_MAX:
        raise Malformed(f"replay window of {window} packets: at most {REPLAY_ESN_MAX} fit")
    if not replay.esn and window <= LEGACY_MAX:
        return ReplayState(ReplayForm.LEGACY, window, replay.oseq, replay.seq)
    form = ReplayForm.ESN if replay.esn else ReplayForm.BITMAP
    return ReplayState(form, window, replay.oseq, replay.seq, (0,) * ((window + 31) // 32))


def encode_replay(state: ReplayState, *, short: bool = False) -> bytes:
    """XFRMA_REPLAY_ESN_VAL or XFRMA_REPLAY_VAL; raises Malformed.

    `short` leaves out a bitmap of zeros, which NEWSA allows and NEWAE does not (verify_replay,
    xfrm_replay_verify_len).
    """
    low = 0xFFFF_FFFF
    if state.form is ReplayForm.LEGACY:
        if len(state.bitmap) != 1 or state.oseq > low or state.seq > low:
            raise Malformed("legacy replay state has 32-bit numbers and one word of bitmap")
        body = _LEGACY.pack(state.oseq, state.seq, state.bitmap[0])
        return encode_attribute(Attr.REPLAY_VAL, body)
    words = len(state.bitmap)
    body = _ESN.pack(
        words, state.oseq & low, state.seq & low, state.oseq >> 32, state.seq >> 32, state.window
    )
    if not short or any(state.bitmap):
        body += struct.pack(f"={words}I", *state.bitmap)
    return encode_attribute(Attr.REPLAY_ESN_VAL, body)


def decode_legacy(buffer: Buffer, start: int, end: int, *, window: int) -> ReplayState:
    """XFRMA_REPLAY_VAL; the window comes from the SA itself."""
    need(start, end, _LEGACY.size, "XFRMA_REPLAY_VAL")
    oseq, seq, bitmap = _LEGACY.unpack_from(buffer, start)
    return ReplayState(ReplayForm.LEGACY, window, oseq, seq, (bitmap,))


def decode_esn(buffer: Buffer, start: int, end: int, *, esn: bool) -> ReplayState:
    """XFRMA_REPLAY_ESN_VAL; a bitmap that is left out whole is all zeros, as for the kernel."""
    words, oseq, seq, window = esn_head(buffer, start, end)
    bitmap: tuple[int, ...] = (0,) * words
    if end - start > _ESN.size:
        bitmap = struct.unpack_from(f"={words}I", buffer, start + _ESN.size)
    form = ReplayForm.ESN if esn else ReplayForm.BITMAP
    return ReplayState(form, window, oseq, seq, bitmap)


def esn_head(buffer: Buffer, start: int, end: int) -> tuple[int, int, int, int]:
    """(words of bitmap, oseq, seq, window) of XFRMA_REPLAY_ESN_VAL; raises Malformed."""
    size = end - start
    need(start, end, _ESN.size, "XFRMA_REPLAY_ESN_VAL")
    words, oseq, seq, oseq_hi, seq_hi, window = _ESN.unpack_from(buffer, start)
    if words > REPLAY_ESN_MAX // 32 or (size != _ESN.size and size < _ESN.size + 4 * words):
        raise Malformed(f"replay bitmap of {words} words does not fit in {size} bytes")
    return words, oseq_hi << 32 | oseq, seq_hi << 32 | seq, window
