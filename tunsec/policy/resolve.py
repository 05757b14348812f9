"""What holds for a flow: its own word, else that of `defaults`, else the language's."""

from typing import Final

from tunsec.model.aead import Aead
from tunsec.model.clock import Seconds
from tunsec.model.flow import (
    Keying,
    Mode,
    OffloadWish,
    OnReconnect,
    RekeyRule,
    SequenceNumbers,
)
from tunsec.policy.kinds import ON_WIRE
from tunsec.policy.language import FlowEntry, PolicyFile
from tunsec.policy.units import NO_LIMIT
from tunsec.policy.values import ALL, AeadWish, LocalSenders, OtherTenants, Strangers

AFTER: Final = Seconds(3_600.0)
JITTER: Final = 0.1

# 2^38 bytes: the largest power of two below 2^24.5 TLS records of 16 KiB, where AES-GCM's
# advantage for an attacker is still under 2^-57 (RFC 8446 section 5.5).
SOFT_BYTES: Final = 256 * 1024**3

# NIST SP 800-38D section 8.3: at most 2^32 invocations of GCM under a key. That binds random
# nonces; ESP's are counters (RFC 4106 section 3.1), so here it is a margin, not an edge.
SOFT_PACKETS: Final = 2**32

SHORT_PACKETS: Final = 2**31
"""Half of what 32-bit sequence numbers can count: the hard limits are below their end, at which
the kernel drops packets (RFC 4303 section 3.3.3)."""

OFFLOADED: Final = (Aead.AES_128_GCM, Aead.AES_256_GCM)
"""What drivers of Linux that offload ESP take, where they take an AEAD at all: rfc4106(gcm(aes))
and nothing else (mlx5, ixgbe, cxgb4, cn10k, netdevsim)."""

MUST_OFFLOAD: Final = (OffloadWish.CRYPTO, OffloadWish.PACKET)

HARD_PER_AFTER: Final = 8
MIN_HARD: Final = Seconds(600.0)
"""Room for a directory that is away for a while, even where keys change every second."""


def mode_of(file: PolicyFile, flow: FlowEntry) -> Mode:
    """How the flow is protected."""
    return flow.mode or file.defaults.mode


def keying_of(file: PolicyFile, flow: FlowEntry) -> Keying:
    """How its keys are agreed on."""
    return flow.keying or file.defaults.keying


def aead_of(file: PolicyFile, flow: FlowEntry) -> AeadWish:
    """Which AEAD it may use."""
    return flow.aead or file.defaults.aead


def on_reconnect_of(file: PolicyFile, flow: FlowEntry) -> OnReconnect:
    """What a new connection needs."""
    if not ON_WIRE[flow.kind].has_connections:
        return OnReconnect.KEEP
    return flow.on_reconnect or file.defaults.on_reconnect or OnReconnect.KEEP


def aeads_of(file: PolicyFile, flow: FlowEntry) -> tuple[Aead, ...]:
    """Which AEADs it may use: of `auto` only what NICs know, where a NIC must do the work."""
    aeads = aead_of(file, flow).aeads
    if offload_of(file, flow) in MUST_OFFLOAD:
        return tuple(aead for aead in aeads if aead in OFFLOADED)
    return aeads


def sequence_numbers_of(file: PolicyFile, flow: FlowEntry) -> SequenceNumbers:
    """How long its sequence numbers are."""
    return flow.sequence_numbers or file.defaults.sequence_numbers


def offload_of(file: PolicyFile, flow: FlowEntry) -> OffloadWish:
    """What is asked of the NIC."""
    return flow.offload or file.defaults.offload


def local_senders_of(file: PolicyFile, flow: FlowEntry) -> LocalSenders:
    """Who may send on its port; only the kernel can be told from other senders."""
    if not ON_WIRE[flow.kind].kernel_sends:
        return LocalSenders.ANY
    return flow.local_senders or file.defaults.local_senders


def strangers_of(file: PolicyFile, flow: FlowEntry) -> Strangers:
    """What becomes of clear packets of strangers; only a tunnel takes packets from anybody."""
    if not ON_WIRE[flow.kind].has_networks:
        return Strangers.ALLOWED
    return flow.strangers or file.defaults.strangers


def other_tenants_of(file: PolicyFile, flow: FlowEntry) -> OtherTenants:
    """What becomes of VNIs without a tenant; without tenants all of them share the flow's SAs."""
    if not flow.tenants:
        return OtherTenants.SHARED
    return flow.other_tenants or file.defaults.other_tenants


def port_of(flow: FlowEntry) -> int | None:
    """Its port; None when the admin must name one and did not."""
    return flow.port or ON_WIRE[flow.kind].port


def rekey_of(file: PolicyFile, flow: FlowEntry) -> RekeyRule:
    """When its keys are replaced; each key of `rekey` is inherited by itself."""
    own, common = flow.rekey, file.defaults.rekey
    after = own.after or common.after or AFTER
    packets = _limit(own.packets or common.packets or SOFT_PACKETS)
    if sequence_numbers_of(file, flow) is SequenceNumbers.SHORT:
        packets = min(packets or SHORT_PACKETS, SHORT_PACKETS)
    jitter = own.jitter if own.jitter is not None else common.jitter
    return RekeyRule(
        after=after,
        jitter=JITTER if jitter is None else jitter,
        hard_after=own.hard or common.hard or Seconds(max(HARD_PER_AFTER * after, MIN_HARD)),
        soft_bytes=_limit(own.bytes or common.bytes or SOFT_BYTES),
        soft_packets=packets,
    )


def _limit(count: int) -> int | None:
    return None if count == NO_LIMIT else count


def names_between(flow: FlowEntry, *, hosts: frozenset[str]) -> frozenset[str]:
    """Hosts and service addresses of a flow; `all` are the hosts given."""
    return hosts if flow.between == ALL else frozenset(flow.between)


def hosts_between(file: PolicyFile, flow: FlowEntry, *, hosts: frozenset[str]) -> frozenset[str]:
    """Hosts that take part in a flow, of themselves or as owners of a service address."""
    names = names_between(flow, hosts=hosts)
    owners = {
        owner
        for name, entry in file.service_addresses.items()
        if name in names
        for owner in entry.owners
    }
    return (names | owners) & hosts
