"""Orders to the kernel: small, printable, and invertible where a key is not lost for good."""

from dataclasses import dataclass
from enum import IntEnum

from tunsec.model.sa import Sa, SaDirection, SaId
from tunsec.model.sp import Sp


class Rank(IntEnum):
    """The order in which steps run: never a window without keys or without a block."""

    BLOCK = 0
    ADD_INBOUND = 1
    ADD_OUTBOUND = 2
    SWITCH = 3
    REMOVE_SP = 4
    REMOVE_SA = 5
    UNBLOCK = 6


@dataclass(frozen=True, slots=True)
class AddSa:
    """Install an SA that is not there (XFRM_MSG_NEWSA, exclusive)."""

    sa: Sa
    direction: SaDirection

    def __str__(self) -> str:
        aead = self.sa.aead or "?"
        return f"add {self.direction}bound SA {self.sa.id} reqid {self.sa.reqid:#x} {aead}"


@dataclass(frozen=True, slots=True)
class RemoveSa:
    """Delete an SA (XFRM_MSG_DELSA). It has no inverse: its keys are never installed again."""

    id: SaId

    def __str__(self) -> str:
        return f"remove SA {self.id}"


@dataclass(frozen=True, slots=True)
class AddSp:
    """Install an SP that is not there (XFRM_MSG_NEWPOLICY, exclusive)."""

    sp: Sp

    def __str__(self) -> str:
        return f"add SP {self.sp}"


@dataclass(frozen=True, slots=True)
class UpdateSp:
    """Replace an SP in one act (XFRM_MSG_UPDPOLICY); `previous` is what stands there now."""

    sp: Sp
    previous: Sp

    def __str__(self) -> str:
        return f"update SP {self.sp}"


@dataclass(frozen=True, slots=True)
class RemoveSp:
    """Delete an SP (XFRM_MSG_DELPOLICY)."""

    sp: Sp

    def __str__(self) -> str:
        return f"remove SP {self.sp}"


Step = AddSa | RemoveSa | AddSp | UpdateSp | RemoveSp
