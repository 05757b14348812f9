"""The keys of the policy language, their types and defaults. The JSON Schema is made from here.

Reading a value is a function of values.py that raises Wrong in the operator's words; pydantic
walks the keys. What depends on more than one value is in checks.py.
"""

from enum import StrEnum
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema

from tunsec.model.clock import Seconds
from tunsec.model.flow import Keying, Kind, Mode, OffloadWish, OnReconnect, SequenceNumbers
from tunsec.model.ike import IkeAuth
from tunsec.model.names import Address, FlowName, HostName, TenantName, Vni
from tunsec.policy.units import PERCENT_PATTERN, SIZE_PATTERN, SPAN_PATTERN
from tunsec.policy.values import (
    ALL,
    BITS,
    DNS_NAME,
    FILE_PATH,
    HOST_NAME,
    MAX_AFTER,
    MAX_DEAD,
    MAX_HARD,
    MAX_PORT,
    MAX_VNI,
    MIN_AFTER,
    MIN_DEAD,
    MIN_IKE_REKEY,
    MIN_SOFT_PACKETS,
    NEVER,
    PLAIN_NAME,
    VERSION,
    AeadWish,
    LocalSenders,
    OtherTenants,
    Ppk,
    RevocationWish,
    Strangers,
    choice,
    optional_span_reader,
    read_addresses,
    read_between,
    read_bits,
    read_file_path,
    read_flow_name,
    read_host_name,
    read_identity,
    read_jitter,
    read_owners,
    read_port,
    read_soft_bytes,
    read_soft_packets,
    read_tenant_name,
    read_version,
    read_vni,
    span_reader,
)


def _text(pattern: str, *examples: str) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "pattern": pattern, "examples": list(examples)})


def _words(words: type[StrEnum]) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "enum": [str(word) for word in words]})


def _number(lowest: int, highest: int) -> WithJsonSchema:
    return WithJsonSchema({"type": "integer", "minimum": lowest, "maximum": highest})


_ADDRESS_SCHEMA: Final[dict[str, Any]] = {
    "type": "string",
    "anyOf": [{"format": "ipv4"}, {"format": "ipv6"}],
}
_NAMES_SCHEMA: Final[dict[str, Any]] = {
    "type": "array",
    "items": {"type": "string"},
    "uniqueItems": True,
}

_OR_NEVER: Final = rf"{SPAN_PATTERN}|^{NEVER}$"

Version = Annotated[int, PlainValidator(read_version), WithJsonSchema({"enum": [VERSION]})]
HostKey = Annotated[
    HostName, PlainValidator(read_host_name), _text(f"^{HOST_NAME}$", "db1", "db1.example.com")
]
FlowKey = Annotated[FlowName, PlainValidator(read_flow_name), _text(f"^{PLAIN_NAME}$", "overlay")]
TenantKey = Annotated[TenantName, PlainValidator(read_tenant_name), _text(f"^{PLAIN_NAME}$", "red")]
Identity = Annotated[str, PlainValidator(read_identity), _text(f"^{DNS_NAME}$", "db1.example.com")]
Addresses = Annotated[
    tuple[Address, ...],
    PlainValidator(read_addresses),
    WithJsonSchema(
        {
            "anyOf": [
                _ADDRESS_SCHEMA,
                {"type": "array", "items": _ADDRESS_SCHEMA, "minItems": 1, "uniqueItems": True},
            ]
        }
    ),
]
Owners = Annotated[
    tuple[str, ...], PlainValidator(read_owners), WithJsonSchema({**_NAMES_SCHEMA, "minItems": 1})
]
Between = Annotated[
    tuple[str, ...] | Literal["all"],
    PlainValidator(read_between),
    WithJsonSchema({"anyOf": [{"const": ALL}, {**_NAMES_SCHEMA, "minItems": 2}]}),
]
Port = Annotated[int, PlainValidator(read_port), _number(1, MAX_PORT)]
VniNumber = Annotated[Vni, PlainValidator(read_vni), _number(0, MAX_VNI)]
Bits = Annotated[tuple[int, int], PlainValidator(read_bits), _text(f"^{BITS}$", "24-31")]
After = Annotated[
    Seconds, PlainValidator(span_reader(MIN_AFTER, MAX_AFTER)), _text(SPAN_PATTERN, "1h", "1h30m")
]
Hard = Annotated[
    Seconds, PlainValidator(span_reader(MIN_AFTER, MAX_HARD)), _text(SPAN_PATTERN, "8h")
]
SoftBytes = Annotated[int, PlainValidator(read_soft_bytes), _text(SIZE_PATTERN, "256GiB", "none")]
SoftPackets = Annotated[
    int,
    PlainValidator(read_soft_packets),
    WithJsonSchema(
        {"anyOf": [{"type": "integer", "minimum": MIN_SOFT_PACKETS}, {"const": "none"}]}
    ),
]
IkeRekey = Annotated[
    Seconds, PlainValidator(span_reader(MIN_IKE_REKEY, MAX_AFTER)), _text(SPAN_PATTERN, "4h")
]
Reauth = Annotated[
    Seconds | None,
    PlainValidator(optional_span_reader(MIN_IKE_REKEY, MAX_HARD)),
    _text(_OR_NEVER, "24h", NEVER),
]
DeadAfter = Annotated[
    Seconds | None,
    PlainValidator(optional_span_reader(MIN_DEAD, MAX_DEAD)),
    _text(_OR_NEVER, "5s", NEVER),
]
FilePath = Annotated[
    str, PlainValidator(read_file_path), _text(f"^{FILE_PATH}$", "/etc/tunsec/psk")
]
Jitter = Annotated[float, PlainValidator(read_jitter), _text(PERCENT_PATTERN, "10%")]

KindWord = Annotated[Kind, PlainValidator(choice(Kind, "kind of flow")), _words(Kind)]
ModeWord = Annotated[Mode, PlainValidator(choice(Mode, "mode")), _words(Mode)]
KeyingWord = Annotated[Keying, PlainValidator(choice(Keying, "keying")), _words(Keying)]
AeadWord = Annotated[AeadWish, PlainValidator(choice(AeadWish, "AEAD")), _words(AeadWish)]
OnReconnectWord = Annotated[
    OnReconnect, PlainValidator(choice(OnReconnect, "rule for reconnects")), _words(OnReconnect)
]
OffloadWord = Annotated[
    OffloadWish, PlainValidator(choice(OffloadWish, "offload")), _words(OffloadWish)
]
SequenceNumbersWord = Annotated[
    SequenceNumbers,
    PlainValidator(choice(SequenceNumbers, "length of sequence numbers")),
    _words(SequenceNumbers),
]
LocalSendersWord = Annotated[
    LocalSenders,
    PlainValidator(choice(LocalSenders, "rule for local senders")),
    _words(LocalSenders),
]
OtherTenantsWord = Annotated[
    OtherTenants,
    PlainValidator(choice(OtherTenants, "rule for other tenants")),
    _words(OtherTenants),
]
StrangersWord = Annotated[
    Strangers, PlainValidator(choice(Strangers, "rule for strangers")), _words(Strangers)
]
IkeAuthWord = Annotated[
    IkeAuth, PlainValidator(choice(IkeAuth, "proof of identity")), _words(IkeAuth)
]
RevocationWord = Annotated[
    RevocationWish,
    PlainValidator(choice(RevocationWish, "rule for revocation")),
    _words(RevocationWish),
]
PpkWord = Annotated[Ppk, PlainValidator(choice(Ppk, "rule for a PPK")), _words(Ppk)]


class _Entry(BaseModel):
    """A mapping of the language: its keys and no others."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class HostEntry(_Entry):
    """A host of the cluster, by its DNS name."""

    address: Addresses = Field(description="Underlay addresses that the host speaks from.")
    identity: Identity | None = Field(
        default=None, description="DNS name in its certificate. Default: the host's name."
    )


class ServiceAddressEntry(_Entry):
    """An address that moves between hosts."""

    address: Addresses = Field(description="The address that moves, one or a list.")
    owners: Owners = Field(description="Hosts that may hold it.")


class RekeyEntry(_Entry):
    """When traffic keys are replaced."""

    after: After | None = Field(
        default=None, description="Replace keys after this long. Default 1h, at least 1s."
    )
    bytes: SoftBytes | None = Field(
        default=None, description="Replace keys after this much traffic, or none. Default 256GiB."
    )
    packets: SoftPackets | None = Field(
        default=None,
        description="Replace keys after this many packets, or none. Default 4294967296.",
    )
    jitter: Jitter | None = Field(
        default=None,
        description="Up to this part of 'after' early, so that hosts spread. Default 10%.",
    )
    hard: Hard | None = Field(
        default=None,
        description="Keys end here even if not replaced. Default 8 x after, at least 10m.",
    )


class DefaultsEntry(_Entry):
    """What holds for every flow that does not say otherwise."""

    mode: ModeWord = Field(default=Mode.ESP, description="How flows are protected.")
    keying: KeyingWord = Field(default=Keying.DIRECTORY, description="How hosts agree on ESP keys.")
    aead: AeadWord = Field(
        default=AeadWish.AUTO, description="The AEAD, or auto: the fastest of both."
    )
    rekey: RekeyEntry = Field(default=RekeyEntry(), description="When traffic keys are replaced.")
    on_reconnect: OnReconnectWord | None = Field(
        default=None,
        description="What a new connection needs; else keep.",
    )
    offload: OffloadWord = Field(default=OffloadWish.NONE, description="What the NIC does of ESP.")
    sequence_numbers: SequenceNumbersWord = Field(
        default=SequenceNumbers.EXTENDED,
        description="Length of ESP's sequence numbers; 32-bit for a NIC that knows no others.",
    )
    local_senders: LocalSendersWord = Field(
        default=LocalSenders.TUNNEL_ONLY, description="Who on a host may send on a tunnel's port."
    )
    strangers: StrangersWord = Field(
        default=Strangers.BLOCKED,
        description="What becomes of clear tunnel packets from and to hosts outside of a flow.",
    )
    other_tenants: OtherTenantsWord = Field(
        default=OtherTenants.BLOCKED, description="What becomes of VNIs that no tenant names."
    )
    ppk: PpkWord = Field(
        default=Ppk.NONE, description="Mix a cluster secret into the keys of every pair."
    )


class IkeEntry(_Entry):
    """What holds for the IKE_SAs of all flows with `keying: ike`."""

    auth: IkeAuthWord = Field(
        default=IkeAuth.CERTIFICATE, description="How hosts prove who they are."
    )
    psk_file: FilePath | None = Field(
        default=None, description="The secret that all hosts share, for 'auth: psk'."
    )
    rekey: IkeRekey = Field(
        default=Seconds(4 * 3600.0),
        description="Replace the keys of IKE_SAs after this long, at least 60s.",
        json_schema_extra={"default": "4h"},
    )
    reauth: Reauth = Field(
        default=None,
        description="Prove identity anew after this long, or never.",
        json_schema_extra={"default": NEVER},
    )
    dead_after: DeadAfter = Field(
        default=MIN_DEAD,
        description="A peer whose charon is silent for this long loses its SAs, or never.",
        json_schema_extra={"default": "5s"},
    )
    revocation: RevocationWord = Field(
        default=RevocationWish.RELAXED,
        description="Strict refuses a certificate of which no revocation list tells.",
    )


class MarksEntry(_Entry):
    """Packet marks that tunsec may use."""

    bits: Bits = Field(
        default=(24, 31),
        description="Bits of the packet mark, LOW-HIGH.",
        json_schema_extra={"default": "24-31"},
    )


class FlowEntry(_Entry):
    """Traffic that must be protected, and between which hosts."""

    kind: KindWord = Field(description="What the kernel tunnels.")
    between: Between = Field(description="Hosts and service addresses, or all (hosts).")
    port: Port | None = Field(
        default=None,
        description="Needed for tcp and udp; default 4789 for vxlan, 6081 for geneve.",
    )
    mode: ModeWord | None = Field(default=None, description="How the flow is protected.")
    keying: KeyingWord | None = Field(default=None, description="How hosts agree on ESP keys.")
    aead: AeadWord | None = Field(
        default=None, description="The AEAD, or auto: the fastest of both."
    )
    rekey: RekeyEntry = Field(default=RekeyEntry(), description="When traffic keys are replaced.")
    tenants: dict[TenantKey, VniNumber] | None = Field(
        default=None, description="Own keys for each VNI: tenant name to VNI."
    )
    other_tenants: OtherTenantsWord | None = Field(
        default=None, description="What becomes of VNIs that no tenant names."
    )
    on_reconnect: OnReconnectWord | None = Field(
        default=None, description="What a new connection of the flow needs."
    )
    offload: OffloadWord | None = Field(default=None, description="What the NIC does of ESP.")
    sequence_numbers: SequenceNumbersWord | None = Field(
        default=None,
        description="Length of ESP's sequence numbers; 32-bit for a NIC that knows no others.",
    )
    local_senders: LocalSendersWord | None = Field(
        default=None, description="Who on a host may send on the tunnel's port."
    )
    strangers: StrangersWord | None = Field(
        default=None,
        description="What becomes of clear tunnel packets from and to hosts outside of the flow.",
    )


class PolicyFile(_Entry):
    """A tunsec policy: which flows between which hosts must be protected, and how."""

    version: Version = Field(description="Version of the language.")
    hosts: dict[HostKey, HostEntry] = Field(description="Every host of the cluster.", min_length=1)
    service_addresses: dict[HostKey, ServiceAddressEntry] = Field(
        default={}, description="Addresses that move between hosts."
    )
    defaults: DefaultsEntry = Field(default=DefaultsEntry(), description="Holds for every flow.")
    ike: IkeEntry = Field(default=IkeEntry(), description="Holds for all IKE_SAs.")
    marks: MarksEntry = Field(default=MarksEntry(), description="Packet marks that tunsec may use.")
    flows: dict[FlowKey, FlowEntry] = Field(description="What is protected.", min_length=1)
