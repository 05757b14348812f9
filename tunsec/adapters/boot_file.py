"""What was found out about this kernel, kept in a file until the host boots again."""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


def read_boot_file(path: Path) -> dict[str, object]:
    """What was kept since the host booted; empty when there is nothing, or nothing to be read."""
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    if not isinstance(document, dict) or document.get("boot_id") != _boot_id():
        return {}
    return document


def write_boot_file(path: Path, document: dict[str, object]) -> None:
    """Keep it; that it cannot be kept costs finding it out again and nothing else."""
    fresh = path.with_suffix(f".{os.getpid()}")
    with suppress(OSError):
        fresh.write_text(json.dumps({"boot_id": _boot_id(), **document}))
        fresh.replace(path)


def _boot_id() -> str:
    return BOOT_ID.read_text().strip()
