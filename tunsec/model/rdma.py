"""RDMA devices: who else may send RoCE from this host's addresses."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RdmaDevice:
    """An RDMA device as the kernel shows it."""

    name: str
    hardware: bool
    """It sends by itself. What a software device sends goes through the kernel, by IPsec too."""
    roce: bool
    """It speaks RoCE, not iWARP or InfiniBand."""
    netdevs: frozenset[str]
    """Network devices whose addresses it sends from, those stacked upon them included."""
