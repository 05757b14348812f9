"""Where tunsecd is reached."""

from pathlib import Path
from typing import Final

RUN_DIRECTORY: Final = Path("/run/tunsec")
SOCKET_NAME: Final = "control.sock"
