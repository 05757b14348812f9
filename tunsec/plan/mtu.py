"""Room for ESP: the largest MTU of a tunnel device whose packets still fit the underlay.

Transport-mode ESP (RFC 4303 section 2) on the outer packet: header and IV before the UDP header,
padding, two trailer bytes and the ICV behind it. The kernel counts alike
(xfrm_state_mtu, net/xfrm/xfrm_state.c). What does not fit goes in fragments over IPv4, which costs
most of the throughput, and is lost over IPv6, where a tunnel's packets are never fragmented.
"""

from typing import Final

from tunsec.model.aead import Aead
from tunsec.model.flow import Kind

ESP_HEADER_BYTES: Final = 8  # SPI and sequence number
ESP_IV_BYTES: Final = 8  # RFC 4106 section 3.1, RFC 7634 section 2
ESP_TRAILER_BYTES: Final = 2  # pad length and next header
ESP_ALIGN_BYTES: Final = 4  # RFC 4303 section 2.4; all our AEADs are stream ciphers

UDP_HEADER_BYTES: Final = 8
VXLAN_HEADER_BYTES: Final = 8  # RFC 7348 section 5
GENEVE_HEADER_BYTES: Final = 8  # RFC 8926 section 3.4, without options
ETHERNET_HEADER_BYTES: Final = 14  # of the frame inside; a VLAN tag there takes 4 more

MIN_IPV6_MTU: Final = 1280  # RFC 8200 section 5


def overlay_overhead(kind: Kind) -> int | None:
    """Bytes between the underlay's IP header and the overlay's IP packet; None for other kinds."""
    match kind:
        case Kind.VXLAN:
            return UDP_HEADER_BYTES + VXLAN_HEADER_BYTES + ETHERNET_HEADER_BYTES
        case Kind.GENEVE:
            return UDP_HEADER_BYTES + GENEVE_HEADER_BYTES + ETHERNET_HEADER_BYTES
        case _:
            return None


def protected_size(payload: int, *, version: int, aead: Aead) -> int:
    """Size of the IP packet that carries `payload` bytes (from the UDP header on) in ESP."""
    padded = _up(payload + ESP_TRAILER_BYTES)
    return _ip_header(version) + ESP_HEADER_BYTES + ESP_IV_BYTES + padded + aead.icv_bits // 8


def overlay_mtu(
    kind: Kind, *, version: int, aead: Aead, underlay_mtu: int, options_bytes: int = 0
) -> int | None:
    """The largest MTU for a tunnel device; None for kinds that have no device of their own.

    `version` is the underlay's IP version, `options_bytes` what Geneve options take. The answer
    may be too small to be of use, never too large.
    """
    overhead = overlay_overhead(kind)
    if overhead is None:
        return None
    around = _ip_header(version) + ESP_HEADER_BYTES + ESP_IV_BYTES + aead.icv_bits // 8
    room = (underlay_mtu - around) // ESP_ALIGN_BYTES * ESP_ALIGN_BYTES
    return max(0, room - ESP_TRAILER_BYTES - overhead - options_bytes)


def mtu_warning(
    device: str, kind: Kind, *, mtu: int, version: int, aead: Aead, underlay_mtu: int
) -> str | None:
    """One line for status and log when a device's full-size packets do not fit, else None."""
    fits = overlay_mtu(kind, version=version, aead=aead, underlay_mtu=underlay_mtu)
    if fits is None or mtu <= fits:
        return None
    needed = protected_size(mtu + (overlay_overhead(kind) or 0), version=version, aead=aead)
    trouble = (
        f"{device}: MTU {mtu} leaves no room for ESP: full-size packets take {needed} bytes of an "
        f"underlay MTU of {underlay_mtu} and are {'fragmented' if version == 4 else 'lost'}"
    )
    if fits < MIN_IPV6_MTU:
        return f"{trouble}; raise the underlay's MTU to {needed}"
    return f"{trouble}; set `ip link set {device} mtu {fits}`, or the underlay's MTU to {needed}"


def _ip_header(version: int) -> int:
    return 20 if version == 4 else 40


def _up(length: int) -> int:
    return -(-length // ESP_ALIGN_BYTES) * ESP_ALIGN_BYTES
