"""The ClientApp process's side: find or start the node's trainer, pass it a message, and wait for the reply."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from flwr.app import Context, Message

from fedsvd.compat import flower
from fedsvd.errors import TrainerError
from fedsvd.trainer import protocol, sockets
from fedsvd.trainer.fingerprint import fingerprint
from fedsvd.trainer.protocol import VERSION, Acceptance, Channel, Kind, Request
from fedsvd.trainer.records import log_record
from fedsvd.trainer.settings import TrainerSettings, shares_errors
from fedsvd.trainer.watcher import ProcessIdentity, pid_namespace

logger = logging.getLogger(__name__)

# A trainer that was started beforehand may be restarting.
_ABSENT_S = 30.0
_DEATH_S = 5.0
_LOG_TAIL = 4096
# The trainers that this process has started; they outlive it.
_started: list[subprocess.Popen[bytes]] = []


def answer(message: Message, context: Context, settings: TrainerSettings, bundle: Path, handler: str) -> Message:
    """Let the node's trainer answer a message, and store its changes of ``context.state``.

    The message is passed to a trainer once: if it ends while it works on the message, the message is lost.

    Args:
        message: The message.
        context: The context of this node and run.
        settings: The node's settings of its trainer.
        bundle: Directory of the Flower app.
        handler: ``module:function`` of the app that answers a message.

    Raises:
        TrainerError: If there is no trainer, or it ends or exceeds the message's deadline. If the node has its own data
            and does not share errors, it quotes nothing that the trainer has written.
        FedSVDError: As the handler raises it.
        RuntimeError: If the handler raises any other exception.
    """
    deadline = message.metadata.created_at + message.metadata.ttl
    path = settings.socket or sockets.node_socket(context.node_id)
    log = None if settings.socket else path.with_suffix(".log")
    place = _Place(path, log, time.monotonic() + deadline - time.time(), shares_errors(context.node_config))
    level = logging.getLogger().getEffectiveLevel()
    bound = fingerprint(bundle, context)
    task = flower.current_task_id()
    request = Request(VERSION, bound, str(bundle), handler, deadline, settings.idle_s, level, task)
    channel, acceptance = _offer(request, place)
    try:
        return _exchange(channel, message, context)
    except TimeoutError:
        _kill(acceptance)
        raise TrainerError(
            f"the node's trainer (process {acceptance.pid}) worked on this message until its deadline and was ended: "
            "increase federation.round_timeout_s, or train fewer steps."
        ) from None
    except ConnectionError:
        raise _death(acceptance.pid, place, "while it worked on this message") from None
    finally:
        channel.close()


@dataclass(frozen=True)
class _Place:
    """Where a trainer is expected, and until when.

    Attributes:
        path: Its socket.
        log: Its log; None for a trainer that was started beforehand.
        ends: Time of `time.monotonic` at which nobody waits for the reply any longer.
        quotes: Whether errors may quote the log.
    """

    path: Path
    log: Path | None
    ends: float
    quotes: bool


def _offer(request: Request, place: _Place) -> tuple[Channel, Acceptance]:
    """Return a channel to a trainer that has accepted a request; replace one that is bound to something else."""
    if time.monotonic() > place.ends:
        raise TrainerError("this message arrived after its deadline; check the clocks of the server and of this node.")
    while True:
        before = len(_started)
        with ExitStack() as stack:
            channel = _connect(request, place)
            stack.callback(channel.close)
            try:
                acceptance = _ask(channel, request)
            except TimeoutError:
                raise TrainerError(
                    "the node's trainer was busy with another message until this message's deadline."
                ) from None
            except ConnectionError:
                # It was about to end, and has not accepted this message.
                if len(_started) > before:
                    raise _death(_started[-1].pid, place, "at its start") from None
                continue
            if acceptance is not None:
                stack.pop_all()
                return channel, acceptance


def _ask(channel: Channel, request: Request) -> Acceptance | None:
    """Send a request; return None if the trainer ends because it is bound to something else."""
    protocol.send_request(channel, request)
    kind, content = channel.receive()
    if kind is Kind.ACCEPTED:
        return Acceptance(**json.loads(content))
    if kind is Kind.REFUSED:
        raise TrainerError(f"the trainer refuses this message: {json.loads(content)}.")
    logger.info("the trainer is replaced, because these have changed: %s", ", ".join(json.loads(content)))
    return None


def _connect(request: Request, place: _Place) -> Channel:
    absent_until = min(place.ends, time.monotonic() + _ABSENT_S)
    while (connected := sockets.connect(place.path)) is None:
        if place.log is not None:
            return _connect_or_start(request, place, place.log)
        if time.monotonic() > absent_until:
            raise TrainerError(f"no trainer listens on {place.path}: start one with fedsvd trainer socket={place.path}")
        time.sleep(0.2)
    return Channel(connected, place.ends)


def _connect_or_start(request: Request, place: _Place, log: Path) -> Channel:
    try:
        # Of several processes, one starts the trainer.
        with FileLock(place.path.with_suffix(".lock"), timeout=max(place.ends - time.monotonic(), 0.0), mode=0o600):
            connected = sockets.connect(place.path)
            if connected is None:
                _start(request, place.path, log)
                connected = sockets.connect(place.path)
    except Timeout:
        raise TrainerError("the node's trainer was not started before this message's deadline.") from None
    except OSError as error:
        raise TrainerError(f"the node's trainer cannot be started: {error}.") from error
    if connected is None:
        raise _death(_started[-1].pid, place, "at its start")
    return Channel(connected, place.ends)


def _start(request: Request, path: Path, log: Path) -> None:
    """Start a trainer in the process group of the executor; it ends together with the executor."""
    listener = sockets.listen(path)
    bundle = os.pathsep.join(filter(None, [request.bundle, os.environ.get("PYTHONPATH")]))
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        command = [sys.executable, "-P", "-m", "fedsvd.trainer.service", "--listener", str(listener.fileno())]
        process = subprocess.Popen(  # noqa: S603
            # The first process of a container has no parent.
            [*command, "--executor", str(ProcessIdentity.of(os.getppid() or os.getpid()))],
            stdin=subprocess.DEVNULL,
            stdout=descriptor,
            stderr=descriptor,
            pass_fds=[listener.fileno()],
            env=os.environ | {"PYTHONPATH": bundle},
        )
    finally:
        os.close(descriptor)
        listener.close()
    _started.append(process)


def _exchange(channel: Channel, message: Message, context: Context) -> Message:
    channel.send(Kind.MESSAGE, flower.message_to_bytes(message))
    channel.send(Kind.CONTEXT, flower.context_to_bytes(context))
    while True:
        kind, content = channel.receive()
        if kind is Kind.LOG:
            log_record(content)
        elif kind is Kind.CONTEXT:
            context.state = flower.context_from_bytes(content).state
        elif kind is Kind.REPLY:
            return flower.message_from_bytes(content)
        elif kind is Kind.FAILED:
            raise protocol.failure_from_json(content)


def _kill(acceptance: Acceptance) -> None:
    # The ID means another process here if the trainer is in another container; it then notices the closed connection.
    if acceptance.namespace == pid_namespace():
        with suppress(ProcessLookupError):
            os.kill(acceptance.pid, signal.SIGKILL)


def _death(pid: int, place: _Place, when: str) -> TrainerError:
    """Return the error of a trainer that has ended, and log the details on the node."""
    how = _exit_status(pid)
    last = _last_line(place.log) if place.log else ""
    where = str(place.log) if place.log else "the output of fedsvd trainer"
    logger.error("the trainer (process %d) ended%s %s; the last line of %s: %s", pid, how, when, where, last or "none")
    detail = f"the last line of its log: {last}" if place.quotes and last else "see the node's log"
    return TrainerError(f"the node's trainer (process {pid}) ended{how} {when}; {detail}.")


def _exit_status(pid: int) -> str:
    """Describe how a trainer ended; empty if this process has not started it."""
    for process in _started:
        if process.pid == pid:
            with suppress(subprocess.TimeoutExpired):
                status = process.wait(_DEATH_S)
                return f" by signal {-status}" if status < 0 else f" with exit status {status}"
    return ""


def _last_line(log: Path) -> str:
    """Return the interpreter's line on a fatal error, which is followed by a traceback, or else the last line."""
    try:
        with log.open("rb") as stream:
            stream.seek(max(log.stat().st_size - _LOG_TAIL, 0))
            lines = [line.strip() for line in stream.read().decode(errors="replace").splitlines() if line.strip()]
    except OSError:
        return ""
    fatal = [line for line in lines if line.startswith(("Fatal Python error", "Timeout ("))]
    return [*lines, *fatal][-1] if lines else ""
