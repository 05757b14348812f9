"""Security Policies of the kernel: entries of the SPD."""

from dataclasses import dataclass, field
from enum import StrEnum

from tunsec.model.names import Address, IfId, Mark, Proto, Reqid, Spi, spi_hex
from tunsec.model.sa import UNLIMITED, IpsecMode, Lifetimes, Offload, Usage
from tunsec.model.selector import Selector


class SpDirection(StrEnum):
    """XFRM_POLICY_IN, OUT, FWD."""

    IN = "in"
    OUT = "out"
    FWD = "fwd"


class SpAction(StrEnum):
    """XFRM_POLICY_ALLOW (with templates: protect; without: pass) and XFRM_POLICY_BLOCK."""

    ALLOW = "allow"
    BLOCK = "block"


@dataclass(frozen=True, slots=True)
class Template:
    """The SA an SP asks for (struct xfrm_user_tmpl); `spi` pins one SA, `reqid` a set of them."""

    src: Address
    dst: Address
    reqid: Reqid
    spi: Spi | None = None
    proto: Proto = Proto.ESP
    mode: IpsecMode = IpsecMode.TRANSPORT
    optional: bool = False


@dataclass(frozen=True, slots=True)
class SpId:
    """What the kernel looks an SP up by."""

    selector: Selector
    direction: SpDirection
    mark: Mark | None = None
    if_id: IfId | None = None

    def __hash__(self) -> int:
        """Of what differs: an SP's selector is hardly ever that of the other direction."""
        return hash((self.selector, self.mark))

    def __str__(self) -> str:
        mark = f" mark {self.mark}" if self.mark else ""
        return f"{self.direction} {self.selector}{mark}"


@dataclass(frozen=True, slots=True)
class Sp:
    """One SP as we want it or as the kernel shows it. A lower `priority` number goes first."""

    id: SpId
    priority: int
    action: SpAction
    templates: tuple[Template, ...] = ()
    lifetimes: Lifetimes = UNLIMITED
    flags: int = 0
    offload: Offload | None = None
    index: int = field(default=0, compare=False)
    usage: Usage = field(default=Usage(), compare=False)

    def __str__(self) -> str:
        if self.action is SpAction.BLOCK:
            return f"block {self.id}"
        spis = ", ".join(
            f"esp {spi_hex(template.spi)}" if template.spi else f"reqid {template.reqid:#x}"
            for template in self.templates
        )
        return f"{'protect' if self.templates else 'pass'} {self.id} by {spis or 'nothing'}"
