"""One tunsecd in a network namespace: two would undo each other's work in one kernel."""

import errno
import socket

from tunsec.model.errors import Refused, Unavailable

NAME = "\0tunsecd"


def claim_namespace() -> socket.socket:
    """Hold the namespace until the socket is closed, or its process dies however it dies.

    An abstract Unix socket belongs to the network namespace (unix(7)), as SAD, SPD and nftables
    do. Raises Refused when another tunsecd holds it.
    """
    held = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        held.bind(NAME)
    except OSError as error:
        held.close()
        if error.errno == errno.EADDRINUSE:
            raise Refused(
                "start tunsecd",
                errno=errno.EADDRINUSE,
                reason="another tunsecd runs in this network namespace: stop it first",
            ) from None
        raise Unavailable(f"cannot claim the network namespace: {error.strerror}") from error
    return held
