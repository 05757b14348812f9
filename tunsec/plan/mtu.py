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

ROCE_MTUS: Final = (4096, 2048, 1024, 512, 256)
"""What a queue pair may have as path MTU (InfiniBand Architecture, IBTA Volume 1)."""
RXE_HEADER_BYTES: Final = 80
"""What Soft-RoCE leaves for headers when it draws its MTU from that of its network device
(RXE_MAX_HDR_LENGTH, drivers/infiniband/sw/rxe/rxe_param.h). ESP is not in it."""
ROCE_AROUND_BYTES: Final = 12 + 16 + 4 + 4  # BTH, RETH, immediate, ICRC: of a WRITE

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


def roce_mtu(underlay_mtu: int) -> int | None:
    """The path MTU that Soft-RoCE offers on a network device; None when it has no room for any."""
    return next((mtu for mtu in ROCE_MTUS if mtu + RXE_HEADER_BYTES <= underlay_mtu), None)


def roce_size(mtu: int, *, version: int, aead: Aead) -> int:
    """Size of the largest IP packet of a queue pair with this path MTU, in ESP."""
    payload = UDP_HEADER_BYTES + ROCE_AROUND_BYTES + mtu
    return protected_size(payload, version=version, aead=aead)


def roce_warning(flow: str, *, version: int, aead: Aead, underlay_mtu: int) -> str | None:
    """One line for status and log when full-size RoCE packets do not fit, else None.

    They are never fragmented: a queue pair that sends one fails.
    """
    mtu = roce_mtu(underlay_mtu)
    if mtu is None:
        return None
    needed = roce_size(mtu, version=version, aead=aead)
    if needed <= underlay_mtu:
        return None
    return (
        f"{flow}: RoCE packets of path MTU {mtu} take up to {needed} bytes with ESP, and the "
        f"underlay's MTU is {underlay_mtu}: queue pairs with it fail; raise the underlay's MTU to "
        f"{needed}, or give queue pairs path MTU {mtu // 2}"
    )


def _ip_header(version: int) -> int:
    return 20 if version == 4 else 40


def _up(length: int) -> int:
    return -(-length // ESP_ALIGN_BYTES) * ESP_ALIGN_BYTES
