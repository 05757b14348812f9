"""ethtool's feature bits of a device, as much as tunsec asks: whether it takes ESP off the CPU.

By ioctl: every kernel that has ESP offload answers it, and one bit is not worth a netlink family.
"""

import ctypes
import fcntl
import socket
import struct
from typing import Final

from tunsec.model.underlay import EspFeature

ESP_FEATURE: Final = "esp-hw-offload"  # net/ethtool/common.c netdev_features_strings

_SIOCETHTOOL: Final = 0x8946
_GSSET_INFO: Final = 0x37
_GSTRINGS: Final = 0x1B
_GFEATURES: Final = 0x3A
_SET_OF_FEATURES: Final = 4  # ETH_SS_FEATURES
_NAME_BYTES: Final = 32  # ETH_GSTRING_LEN
_IFREQ: Final = struct.Struct("16sP16x")
_SSET_HEAD: Final = struct.Struct("=IIQI")
_STRINGS_HEAD: Final = struct.Struct("=III")
_FEATURES_HEAD: Final = struct.Struct("=II")
_BLOCK: Final = struct.Struct("=IIII")
"""struct ethtool_get_features_block: available, requested, active, never_changed."""


def esp_feature(opened: socket.socket, device: str) -> EspFeature:
    """What a device of the socket's network namespace says; absent where it says nothing."""
    try:
        names = _names(opened, device)
        if ESP_FEATURE not in names:
            return EspFeature.ABSENT
        blocks = (len(names) + 31) // 32
        head = _FEATURES_HEAD.pack(_GFEATURES, blocks)
        answer = _ask(opened, device, head + bytes(_BLOCK.size * blocks))
    except OSError:
        return EspFeature.ABSENT
    block, bit = divmod(names.index(ESP_FEATURE), 32)
    available, _, active, _ = _BLOCK.unpack_from(answer, len(head) + _BLOCK.size * block)
    if active >> bit & 1:
        return EspFeature.ON
    return EspFeature.OFF if available >> bit & 1 else EspFeature.ABSENT


def _names(opened: socket.socket, device: str) -> list[str]:
    """Names of all features that this kernel knows, in the order of their bits."""
    asked = _SSET_HEAD.pack(_GSSET_INFO, 0, 1 << _SET_OF_FEATURES, 0)
    *_, known, count = _SSET_HEAD.unpack(_ask(opened, device, asked))
    if not known:
        return []
    head = _STRINGS_HEAD.pack(_GSTRINGS, _SET_OF_FEATURES, count)
    raw = _ask(opened, device, head + bytes(_NAME_BYTES * count))[len(head) :]
    return [
        raw[at : at + _NAME_BYTES].split(b"\0")[0].decode(errors="replace")
        for at in range(0, len(raw), _NAME_BYTES)
    ]


def _ask(opened: socket.socket, device: str, request: bytes) -> bytes:
    """One ethtool command: the kernel writes its answer over the request. Raises OSError."""
    buffer = ctypes.create_string_buffer(request, len(request))
    name = device.encode(errors="surrogateescape")[:15]
    fcntl.ioctl(opened, _SIOCETHTOOL, _IFREQ.pack(name, ctypes.addressof(buffer)))
    return buffer.raw
