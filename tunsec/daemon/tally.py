"""What went through a child's SAs, over rekeys."""

from dataclasses import dataclass, replace

from tunsec.model.sa import Sa


@dataclass(frozen=True, slots=True)
class Tally:
    """Sums over SAs that are gone; those in the kernel are added when somebody asks."""

    in_bytes: int = 0
    out_bytes: int = 0
    in_packets: int = 0
    out_packets: int = 0
    drops: int = 0

    def plus(self, sa: Sa, *, inbound: bool) -> "Tally":
        """With another SA's counters."""
        usage = sa.usage
        counted = self.counting(usage.usage_bytes, usage.usage_packets, inbound=inbound)
        return replace(counted, drops=self.drops + sa.drops.total)

    def counting(self, volume: int, packets: int, *, inbound: bool) -> "Tally":
        """With so many bytes and packets more."""
        if inbound:
            return replace(
                self, in_bytes=self.in_bytes + volume, in_packets=self.in_packets + packets
            )
        return replace(
            self, out_bytes=self.out_bytes + volume, out_packets=self.out_packets + packets
        )
