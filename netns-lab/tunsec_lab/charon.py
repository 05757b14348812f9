"""A real charon on a host of a lab, with the settings that tunsec recommends.

Each has its own /run (its pid file is there) and a VICI socket in the host's run folder, which
tests and daemons of that host see too. Its log is its output.
"""

from pathlib import Path
from typing import Final

from tunsec_lab.host import Host
from tunsec_lab.process import Process

CHARON: Final = "/usr/lib/ipsec/charon"
RECOMMENDED: Final = Path(__file__).parents[2] / "systemd" / "charon-tunsec.conf"
# Loading everything that is installed breaks traffic (kernel-libipsec, bypass-lan, farp).
PLUGINS: Final = (
    "openssl random nonce x509 revocation constraints pubkey pkcs1 pem kernel-netlink "
    "socket-default vici updown kdf hmac gcm aes sha2 curve25519"
)
READY: Final = r"spawning \d+ worker threads"
START_SECONDS: Final = 20.0


class LabCharon:
    """charon of one host: start it, kill it, freeze it, start it again.

    `settings` are lines inside strongswan.conf's `charon { }`, read after the recommended ones.
    """

    def __init__(self, host: Host, *, settings: str = "", plugins: str = PLUGINS) -> None:
        self.host = host
        self.settings = settings
        self.plugins = plugins
        self.process: Process | None = None

    @property
    def socket(self) -> Path:
        """Of VICI."""
        return self.host.run_dir / "charon.vici"

    @property
    def url(self) -> str:
        """For --charon."""
        return self.socket.as_uri().replace("file://", "unix://")

    @property
    def running(self) -> Process:
        """The process; an error when it was never started."""
        assert self.process is not None, f"charon of {self.host.name} was not started"
        return self.process

    def start(self) -> "LabCharon":
        """Returns when it answers on its socket."""
        config = self.host.folder / "strongswan.conf"
        config.write_text(self._config())
        self.process = self.host.spawn(
            [CHARON], name="charon", own_run=True, env={"STRONGSWAN_CONF": str(config)}
        )
        self.process.wait_for_line(READY, timeout=START_SECONDS)
        return self

    def kill9(self) -> None:
        """As a crash: nothing is taken down."""
        self.running.kill9()

    def stop(self) -> int:
        """As systemd does: peers are told, SAs are deleted."""
        return self.running.terminate()

    def freeze(self) -> None:
        """Alive, but it does not answer."""
        self.running.freeze()

    def thaw(self) -> None:
        """Let it go on."""
        self.running.thaw()

    def log(self) -> str:
        """All it said since its last start."""
        return self.running.output()

    def _config(self) -> str:
        return "\n".join(
            (
                f"include {RECOMMENDED}",
                "charon {",
                f"  load = {self.plugins}",
                "  filelog {",
                "    stderr {",  # stdout is buffered, whatever flush_line says
                "      default = 1",
                "      ike_name = yes",
                "    }",
                "  }",
                "  plugins {",
                "    vici {",
                f"      socket = unix://{self.socket}",
                "    }",
                "  }",
                self.settings,
                "}",
                "",
            )
        )
