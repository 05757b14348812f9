"""What outlives the daemon: the policy in force, released and retired flows, newest sequences,
what charon was given, who holds service addresses.

No key and no secret is ever in here. A disk that is full or gone is reported and changes nothing
that works.
"""

import hashlib
import ipaddress
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tunsec.daemon.journal import fields
from tunsec.daemon.scope import Retired
from tunsec.keying.claims import KnownClaims
from tunsec.keying.newest import Newest
from tunsec.model.flow import Kind
from tunsec.model.guard import GuardedFlow
from tunsec.model.names import FlowName
from tunsec.model.selector import PortMatch, Selector
from tunsec.model.sp import Sp, SpAction, SpDirection, SpId

POLICY: Final = "policy.yaml"
FLOWS: Final = "flows.json"
SEQUENCES: Final = "sequences.json"
CHARON: Final = "charon.json"
CLAIMS: Final = "claims.json"

log = logging.getLogger("tunsec.memory")


@dataclass(frozen=True, slots=True)
class KnownPolicy:
    """The last good policy, and the hash of the policy file when it was taken."""

    text: str
    source: str
    file_hash: str


@dataclass(frozen=True, slots=True)
class KnownFlows:
    """Flows an admin released, and flows that the policy dropped."""

    released: frozenset[FlowName] = frozenset()
    retired: tuple[Retired, ...] = ()


@dataclass(frozen=True, slots=True)
class KnownCharon:
    """charon was given something. What no name tells: `own_key` is the id of the private key in
    it, when it was ours to load."""

    own_key: str | None = None


def text_hash(text: str) -> str:
    """SHA-256 of a policy's text in hex."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


class Memory:
    """The state folder. Reading never fails on bad content: it is set aside and said so."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._written: dict[str, bytes] = {}
        self.trouble = ""

    def newest(self) -> Newest:
        """The newest sequence numbers, empty when there are none."""
        raw = self._read(SEQUENCES)
        if raw is None:
            return Newest()
        try:
            return Newest.decode(raw)
        except ValueError as error:
            self._set_aside(SEQUENCES, str(error))
            return Newest()

    def remember_newest(self, newest: Newest) -> None:
        """Keep the newest sequence numbers."""
        self._write(SEQUENCES, newest.encode())

    def claims(self) -> KnownClaims:
        """The newest claims on service addresses, empty when there are none."""
        raw = self._read(CLAIMS)
        if raw is None:
            return KnownClaims()
        try:
            return KnownClaims.decode(raw)
        except ValueError as error:
            self._set_aside(CLAIMS, str(error))
            return KnownClaims()

    def remember_claims(self, known: KnownClaims) -> None:
        """Keep the newest claims."""
        if known.claims or known.served or CLAIMS in self._written:
            self._write(CLAIMS, known.encode())

    def policy(self) -> KnownPolicy | None:
        """The last good policy, if one was kept."""
        raw = self._read(POLICY)
        if raw is None:
            return None
        head, _, text = raw.decode("utf-8", "surrogateescape").partition("\n")
        try:
            known = json.loads(head.removeprefix("# "))
            return KnownPolicy(text, str(known["source"]), str(known["file"]))
        except (ValueError, KeyError, TypeError) as error:
            self._set_aside(POLICY, str(error))
            return None

    def remember_policy(self, known: KnownPolicy) -> None:
        """Keep the policy in force."""
        head = json.dumps({"source": known.source, "file": known.file_hash})
        self._write(POLICY, f"# {head}\n{known.text}".encode("utf-8", "surrogateescape"))

    def flows(self) -> KnownFlows:
        """Released and retired flows."""
        raw = self._read(FLOWS)
        if raw is None:
            return KnownFlows()
        try:
            known = json.loads(raw)
            return KnownFlows(
                frozenset(FlowName(name) for name in known["released"]),
                tuple(_retired(one) for one in known["retired"]),
            )
        except (ValueError, KeyError, TypeError) as error:
            self._set_aside(FLOWS, str(error))
            return KnownFlows()

    def remember_flows(self, known: KnownFlows) -> None:
        """Keep released and retired flows."""
        body = {
            "released": sorted(known.released),
            "retired": [_plain(one) for one in known.retired],
        }
        self._write(FLOWS, json.dumps(body, indent=1).encode())

    def charon(self) -> KnownCharon | None:
        """What charon was given and has not been taken back."""
        raw = self._read(CHARON)
        if raw is None:
            return None
        try:
            own_key = json.loads(raw)["own_key"]
            return KnownCharon(None if own_key is None else str(own_key))
        except (ValueError, KeyError, TypeError) as error:
            self._set_aside(CHARON, str(error))
            return None

    def remember_charon(self, known: KnownCharon | None) -> None:
        """Keep what charon was given; None: all was taken back."""
        if known is None:
            self._remove(CHARON)
        else:
            self._write(CHARON, json.dumps({"own_key": known.own_key}).encode())

    def _read(self, name: str) -> bytes | None:
        try:
            raw = (self._folder / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            self._fail(f"{self._folder / name} cannot be read: {error.strerror}")
            return None
        self._written[name] = raw
        return raw

    def _write(self, name: str, body: bytes) -> None:
        """Atomically; a failure leaves what was there, is reported once and tried again later."""
        if self._written.get(name) == body:
            return
        path = self._folder / name
        fresh = path.with_name(f".{name}.new")
        try:
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(body)
                stream.flush()
                os.fsync(stream.fileno())
            fresh.replace(path)
        except OSError as error:
            self._fail(f"{path} cannot be written: {error.strerror}: make room, check its owner")
            return
        self._written[name] = body
        if self.trouble:
            log.info("state folder well again")
            self.trouble = ""

    def _remove(self, name: str) -> None:
        self._written.pop(name, None)
        try:
            (self._folder / name).unlink(missing_ok=True)
        except OSError as error:
            self._fail(f"{self._folder / name} cannot be removed: {error.strerror}")

    def _fail(self, trouble: str) -> None:
        if self.trouble != trouble:
            log.error("state folder trouble", extra=fields({"error": trouble}))
            self.trouble = trouble

    def _set_aside(self, name: str, error: str) -> None:
        path = self._folder / name
        bad = path.with_name(f"{name}.bad")
        log.error("state file set aside", extra=fields({"file": bad, "error": error}))
        try:
            path.replace(bad)
        except OSError as failed:
            self._fail(f"{path} cannot be set aside: {failed.strerror}")


def _plain(gone: Retired) -> dict[str, Any]:
    guarded = gone.guarded
    return {
        "flow": gone.flow,
        "kind": guarded.kind,
        "proto": guarded.proto,
        "ports": list(guarded.ports),
        "either_side": guarded.either_side,
        "peers": sorted(str(peer) for peer in guarded.peers),
        "tunnel_only": guarded.tunnel_only,
        "strangers_blocked": guarded.strangers_blocked,
        "blocks": [
            {
                "direction": sp.id.direction,
                "priority": sp.priority,
                "src": str(sp.id.selector.src),
                "dst": str(sp.id.selector.dst),
                "proto": sp.id.selector.proto,
                "sport": [sp.id.selector.sport.port, sp.id.selector.sport.mask],
                "dport": [sp.id.selector.dport.port, sp.id.selector.dport.mask],
            }
            for sp in gone.blocks
        ],
    }


def _retired(known: Mapping[str, Any]) -> Retired:
    return Retired(
        FlowName(str(known["flow"])),
        tuple(
            Sp(
                SpId(
                    Selector(
                        ipaddress.ip_network(block["src"]),
                        ipaddress.ip_network(block["dst"]),
                        int(block["proto"]),
                        PortMatch(*map(int, block["sport"])),
                        PortMatch(*map(int, block["dport"])),
                    ),
                    SpDirection(block["direction"]),
                ),
                int(block["priority"]),
                SpAction.BLOCK,
            )
            for block in known["blocks"]
        ),
        GuardedFlow(
            FlowName(str(known["flow"])),
            Kind(known["kind"]),
            int(known["proto"]),
            tuple(int(port) for port in known["ports"]),
            bool(known["either_side"]),
            frozenset(ipaddress.ip_address(peer) for peer in known["peers"]),
            bool(known["tunnel_only"]),
            strangers_blocked=bool(known.get("strangers_blocked", False)),
        ),
    )
