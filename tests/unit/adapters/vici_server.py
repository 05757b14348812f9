"""A VICI server that says what a test tells it to."""

import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from vici.protocol import Message, Packet, Transport

VERSION = {"daemon": "charon", "version": "6.0.1", "sysname": "Linux", "release": "7.3.4"}
Handler = Callable[[dict[str, Any]], dict[str, Any] | bytes | None]


class Server:
    """Speaks VICI as it is told. Answers None are no answer, bytes go out as they are."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.unknown_events = {"alert"}
        self.commands: dict[str, Handler] = {"version": lambda _: VERSION}
        self.asked: list[str] = []
        self.clients: list[socket.socket] = []
        self.listening = socket.socket(socket.AF_UNIX)
        self.listening.bind(str(path))
        self.listening.listen()
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def close(self) -> None:
        """As a crash: every connection breaks."""
        self.path.unlink(missing_ok=True)
        # A thread that is left in accept() would go on with the next socket of this number.
        with suppress(OSError):
            self.listening.shutdown(socket.SHUT_RDWR)
        self._accepting.join()
        self.listening.close()
        for client in self.clients:
            with suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
            client.close()

    def tell(self, event: str, body: dict[str, Any]) -> None:
        """An event for every client, whatever it registered for."""
        for client in self.clients:
            packet = struct.pack("!BB", Packet.EVENT, len(event)) + event.encode()
            with suppress(OSError):
                Transport(client).send(packet + Message.serialize(body))

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self.listening.accept()
                self.clients.append(client)
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        transport = Transport(client)
        with suppress(OSError, struct.error):
            while True:
                packet = transport.receive()
                kind, size = packet[0], packet[1]
                name = packet[2 : 2 + size].decode()
                if kind in (Packet.EVENT_REGISTER, Packet.EVENT_UNREGISTER):
                    unknown = name in self.unknown_events
                    answer = Packet.EVENT_UNKNOWN if unknown else Packet.EVENT_CONFIRM
                    transport.send(struct.pack("!B", answer))
                    continue
                self.asked.append(name)
                self._answer(client, name)

    def _answer(self, client: socket.socket, name: str) -> None:
        handler = self.commands.get(name)
        if handler is None:
            Transport(client).send(struct.pack("!B", Packet.CMD_UNKNOWN))
            return
        body = handler({})
        if isinstance(body, bytes):
            client.sendall(body)
        elif body is not None:
            packet = struct.pack("!B", Packet.CMD_RESPONSE) + Message.serialize(body)
            Transport(client).send(packet)
