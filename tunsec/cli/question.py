"""What `tunsec explain` is asked, as an operator types it or pastes it from a capture.

overlay    overlay/red                                        a flow, one of its tenants
udp 192.0.2.11:49152 192.0.2.12:4789 --vni 41                 a packet
tcp '[2001:db8::11]' '[2001:db8::12]:5432'                    a port may be left out, or be *
'IP 192.0.2.11.49152 > 192.0.2.12.4789: VXLAN, ... vni 41'    a line of tcpdump -n
esp 192.0.2.12 0xc3a1f00d    spi c3a1f00d                     an ESP packet, by its SPI
"""

import ipaddress
import re
from collections.abc import Sequence
from typing import Final

from tunsec.cli.client import Failed
from tunsec.cli.exits import Exit
from tunsec.model.names import Address
from tunsec.wire.control_explain import EspBody, ExplainBody, PacketBody

REMEDY: Final = "see `tunsec explain --help`"

_SPI: Final = re.compile(r"(?:0x)?[0-9a-fA-F]{1,8}")
_TCPDUMP_ESP: Final = re.compile(r"ESP\(spi=(0x[0-9a-f]{1,8})")
_TCPDUMP_VNI: Final = re.compile(r"\bvni (0x[0-9a-f]+|[0-9]+)")
_FORMER: Final = re.compile(r"(?P<flow>[^./]+(?:\.former\d*)?)(?:[./](?P<tenant>[^./]+))?")
_PROTOCOLS: Final = {
    "tcp": "tcp",
    "udp": "udp",
    "icmp": "1",
    "icmp6": "58",
    "sctp": "132",
    "gre": "47",
}
_HINTS: Final = (
    (re.compile(r"\bVXLAN\b|\bGeneve\b|\bUDP\b|\bRoCE", re.IGNORECASE), "udp"),
    (re.compile(r"\bFlags \[|\bTCP\b"), "tcp"),
)
"""What tells the protocol in the text behind tcpdump's addresses."""


def parse_question(words: Sequence[str], vni: int | None) -> ExplainBody:
    """The question as the control API takes it; raises Failed with a remedy."""
    text = " ".join(words).strip()
    first, _, rest = text.partition(" ")
    if " > " in f" {text} ":
        return _captured(text, vni)
    match first.lower():
        case "esp" | "spi" if rest:
            return ExplainBody(esp=_esp(rest.split()))
        case protocol if rest and (protocol in _PROTOCOLS or protocol.isdecimal()):
            return ExplainBody(packet=_packet(protocol, rest.split(), vni))
    if rest:
        raise _wrong(f"{text!r} does not begin with tcp, udp, esp or spi")
    return _flow(first, vni)


def _flow(word: str, vni: int | None) -> ExplainBody:
    found = _FORMER.fullmatch(word)
    if found is None or ":" in word:
        raise _wrong(
            f"{word!r} is no flow; a packet needs a protocol and both ends",
            "say `udp SRC:PORT DST:PORT`; quote what has a > in it",
        )
    if vni is not None:
        raise _wrong("--vni goes with a packet", f"say `{word}/TENANT`")
    return ExplainBody(flow=found["flow"], tenant=found["tenant"])


def _packet(protocol: str, ends: Sequence[str], vni: int | None) -> PacketBody:
    ends = [end for end in ends if end not in ("->", "to")]
    if len(ends) != 2:
        raise _wrong(
            f"a packet has two ends, not {len(ends)}", "say `udp SRC:PORT DST:PORT`, * for any port"
        )
    (src, sport), (dst, dport) = (_end(end) for end in ends)
    if src.version != dst.version:
        raise _wrong(f"{src} and {dst} are not of one family", "both IPv4 or both IPv6")
    if vni is not None and not 0 <= vni < 1 << 24:
        raise _wrong(f"{vni} is no VNI", "it has 24 bits: 0 to 16777215")
    return PacketBody(
        _PROTOCOLS.get(protocol.lower(), protocol), str(src), str(dst), sport, dport, vni
    )


def _captured(text: str, vni: int | None) -> ExplainBody:
    """A line of `tcpdump -n`, or its part with the addresses."""
    ends = re.search(r"(\S+) > (\S+?)(?::(?=\s|$)(?P<rest>.*))?(?:\s|$)", text)
    if ends is None:
        raise _wrong(f"{text!r} has no SRC > DST")
    rest = text[ends.end(2) :]
    esp = _TCPDUMP_ESP.search(rest)
    if esp is not None:
        dst, _ = _end(ends[2].rstrip(":"))
        return ExplainBody(esp=EspBody(esp[1], str(dst)))
    before = text[: ends.start()].split()
    named = [word.lower() for word in before if word.lower() in _PROTOCOLS]
    named += [protocol for hint, protocol in _HINTS if hint.search(rest)]
    if not named:
        raise _wrong("the line does not say whether it is tcp or udp", "write it in front")
    told = _TCPDUMP_VNI.search(rest)
    if vni is None and told is not None:
        vni = int(told[1], 0)
    return ExplainBody(packet=_packet(named[0], [ends[1], ends[2].rstrip(":")], vni))


def _end(text: str) -> tuple[Address, int | None]:
    """`ADDRESS`, `ADDRESS:PORT`, `[ADDRESS]:PORT`, tcpdump's `ADDRESS.PORT`; * is any port."""
    if text.startswith("["):
        inside, closed, port = text[1:].partition("]")
        if not closed or (port and not port.startswith(":")):
            raise _wrong(f"{text!r} is no address with a port", "write [2001:db8::1]:4789")
        return _address(inside, text), _port(port[1:], text) if port else None
    whole = _parsed(text)
    if whole is not None:
        return whole, None
    for mark in (":", "."):
        address, found, port = text.rpartition(mark)
        parsed = _parsed(address) if found else None
        if parsed is not None and (mark == "." or parsed.version == 4):
            return parsed, _port(port, text)
    return _address(text, text), None


def _address(text: str, whole: str) -> Address:
    found = _parsed(text)
    if found is None:
        raise _wrong(
            f"{whole!r} is no address with a port",
            "write 192.0.2.1:4789 or [2001:db8::1]:4789; tcpdump -n shows numbers",
        )
    return found


def _parsed(text: str) -> Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _port(text: str, whole: str) -> int | None:
    if text == "*":
        return None
    if not (text.isascii() and text.isdecimal() and int(text) <= 0xFFFF):
        raise _wrong(
            f"{whole!r}: {text!r} is no port", "a number up to 65535, * for any; use tcpdump -n"
        )
    return int(text)


def _esp(words: Sequence[str]) -> EspBody:
    """`[SRC] [DST] SPI`."""
    *ends, spi = words
    if not _SPI.fullmatch(spi) or int(spi, 16) == 0 or len(ends) > 2:
        raise _wrong(f"{' '.join(words)!r} is no SPI", "say `esp DST SPI`, the SPI in hex digits")
    addresses = [_address(end, end) for end in ends]
    return EspBody(spi, str(addresses[-1]) if addresses else None)


def _wrong(what: str, remedy: str = REMEDY) -> Failed:
    return Failed(what, Exit.USAGE, remedy=remedy)
