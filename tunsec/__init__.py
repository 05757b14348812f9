"""Keeps the traffic that the Linux kernel tunnels between hosts encrypted, and never in clear."""

from typing import Final

__version__: Final = "0.1.0"
