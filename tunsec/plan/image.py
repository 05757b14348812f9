"""What a kernel holds, or should hold: SAD and SPD as two maps."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from tunsec.model.ownership import is_our_sa, is_our_sp
from tunsec.model.sa import Sa, SaDirection, SaId
from tunsec.model.sp import Sp, SpId


@dataclass(frozen=True, slots=True)
class Image:
    """SAs and SPs by id, as a kernel shows them."""

    sas: Mapping[SaId, Sa] = field(default_factory=dict)
    sps: Mapping[SpId, Sp] = field(default_factory=dict)

    def ours(self) -> "Image":
        """The part that is tunsec's (law 4)."""
        return Image(
            {sa_id: sa for sa_id, sa in self.sas.items() if is_our_sa(sa)},
            {sp_id: sp for sp_id, sp in self.sps.items() if is_our_sp(sp)},
        )


@dataclass(frozen=True, slots=True)
class WantedSa:
    """An SA that should be there, and which way its packets go."""

    sa: Sa
    direction: SaDirection


@dataclass(frozen=True, slots=True)
class Wanted:
    """What this host's kernel must hold of ours."""

    sas: Mapping[SaId, WantedSa]
    sps: Mapping[SpId, Sp]


def wanted(sas: Iterable[WantedSa], sps: Iterable[Sp]) -> Wanted:
    """Index SAs and SPs by id."""
    return Wanted({want.sa.id: want for want in sas}, {sp.id: sp for sp in sps})
