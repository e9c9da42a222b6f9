"""What ClientApp process and trainer say to each other: frames on a Unix socket.

A frame is a byte for its kind, eight bytes for the length of its content, and the content: JSON, or Flower's own
serialization of messages and contexts. Nothing is pickled.

::

    ClientApp   REQUEST                    MESSAGE CONTEXT
    trainer               ACCEPTED                          LOG … CONTEXT, REPLY or FAILED
                       or REPLACED, REFUSED
"""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from dataclasses import asdict, dataclass
from enum import IntEnum
from typing import Any

from fedsvd import errors

# To be increased with every change of frames or their contents.
VERSION = 1
_HEADER = struct.Struct(">BQ")
# Protocol buffers are smaller.
_MAX_LENGTH = 2**31
_CHUNK = 2**20


class Kind(IntEnum):
    """Kind of a frame."""

    REQUEST = 1  # JSON of a `Request`
    ACCEPTED = 2  # the trainer works on this message from here on; JSON of an `Acceptance`
    REPLACED = 3  # the trainer ends, since it is bound to something else; JSON of the names of what differs
    REFUSED = 4  # JSON of the reason
    MESSAGE = 5
    CONTEXT = 6
    LOG = 7  # JSON of the attributes of a log record
    REPLY = 8
    FAILED = 9  # the handler has raised an exception; JSON of the name of its class and of its message


@dataclass(frozen=True)
class Request:
    """The first frame.

    Attributes:
        version: `VERSION` of the ClientApp's side.
        fingerprint: See `fedsvd.trainer.fingerprint`.
        bundle: Directory of the Flower app, to import the handler from.
        handler: ``module:function`` that answers a message.
        deadline: Unix time after which nobody waits for the reply.
        idle_s: See `fedsvd.trainer.settings.TrainerSettings`.
        log_level: Level of the log records to send.
        task_id: Flower's ID of the task.
    """

    version: int
    fingerprint: dict[str, str]
    bundle: str
    handler: str
    deadline: float
    idle_s: float
    log_level: int
    task_id: int


@dataclass(frozen=True)
class Acceptance:
    """The trainer's answer to a request.

    Attributes:
        pid: The trainer's process ID.
        namespace: The namespace of this ID; None where the system has none.
    """

    pid: int
    namespace: str | None


class Channel:
    """Frames over a socket.

    Attributes:
        socket: The connected socket.
        deadline: Time of `time.monotonic` after which sending and receiving raise a `TimeoutError`.
    """

    def __init__(self, connected: socket.socket, deadline: float) -> None:
        self.socket = connected
        self.deadline = deadline
        self._sending = threading.Lock()

    def send(self, kind: Kind, content: bytes) -> None:
        """Send a frame; any thread may do so.

        Raises:
            TimeoutError: If the deadline has passed.
            ConnectionError: If the other side is gone.
        """
        with self._sending:
            for part in (_HEADER.pack(kind, len(content)), content):
                view = memoryview(part)
                while view:
                    self._set_timeout()
                    view = view[self.socket.send(view[:_CHUNK]) :]

    def send_json(self, kind: Kind, content: Any) -> None:
        """Send a frame with JSON; raises as `send`."""
        self.send(kind, json.dumps(content).encode())

    def receive(self) -> tuple[Kind, bytes]:
        """Receive a frame.

        Raises:
            TimeoutError: If the deadline has passed.
            ConnectionError: If the other side is gone, or what it sends is not a frame.
        """
        number, length = _HEADER.unpack(self._receive_exactly(_HEADER.size))
        if length > _MAX_LENGTH or number not in list(Kind):
            raise ConnectionError(f"a frame of kind {number} and {length} bytes was received")
        return Kind(number), self._receive_exactly(length)

    def expect(self, kind: Kind) -> bytes:
        """Receive a frame of this kind; raises as `receive`."""
        received, content = self.receive()
        if received is not kind:
            raise ConnectionError(f"expected {kind.name}, received {received.name}")
        return content

    def close(self) -> None:
        """Close the connection."""
        self.socket.close()

    def _receive_exactly(self, length: int) -> bytes:
        content = bytearray(length)
        view = memoryview(content)
        while view:
            self._set_timeout()
            count = self.socket.recv_into(view, min(len(view), _CHUNK))
            if not count:
                raise ConnectionError("the connection was closed")
            view = view[count:]
        return bytes(content)

    def _set_timeout(self) -> None:
        remaining = self.deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError("the deadline has passed")
        self.socket.settimeout(remaining)


def request_from_json(content: bytes) -> Request:
    """Read a request.

    Raises:
        ValueError: If it is of another version.
    """
    values = json.loads(content)
    if values.get("version") != VERSION:
        raise ValueError(f"the request has version {values.get('version')} of the protocol, and not {VERSION}")
    return Request(**values)


def send_request(channel: Channel, request: Request) -> None:
    """Send a request; raises as `Channel.send`."""
    channel.send_json(Kind.REQUEST, asdict(request))


def failure_to_json(error: Exception) -> bytes:
    """Serialize an exception of a handler."""
    return json.dumps({"kind": type(error).__name__, "message": str(error)}).encode()


def failure_from_json(content: bytes) -> Exception:
    """Return the exception of a handler: one of `fedsvd.errors` as it was, any other as a `RuntimeError`."""
    failure = json.loads(content)
    kind = getattr(errors, failure["kind"], None)
    if isinstance(kind, type) and issubclass(kind, errors.FedSVDError):
        return kind(failure["message"])
    return RuntimeError(f"{failure['kind']}: {failure['message']}")
