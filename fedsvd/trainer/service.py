"""The trainer's process: it answers one message at a time, and keeps what it has loaded for the next one.

usage: python -m fedsvd.trainer.service --listener FD --executor PID:START [--preload]
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict

from flwr.app import Context, Message

from fedsvd.compat import flower
from fedsvd.errors import FedSVDError
from fedsvd.trainer import protocol
from fedsvd.trainer.fingerprint import changed_parts
from fedsvd.trainer.protocol import Acceptance, Channel, Kind, Request
from fedsvd.trainer.records import records_to
from fedsvd.trainer.watcher import ProcessIdentity, Watcher, pid_namespace

# The name of this module is "__main__".
logger = logging.getLogger("fedsvd.trainer.service")

_Handler = Callable[[Message, Context], Message]

# What a trainer that was started beforehand imports before its first message.
PRELOADED = ("torch", "transformers", "peft", "opacus", "datasets")
_APP_PACKAGES = ("fedsvd", "client", "server")
# The ClientApp process that has started a trainer sends its message at once.
_FIRST_MESSAGE_S = 60.0
_REQUEST_S = 10.0
# The ClientApp process kills a trainer at the deadline. This many seconds later the trainer ends itself, in case that
# process is gone. It does so from a thread that needs no lock of the interpreter.
_GRACE_S = 10.0
_EXIT_S = 30.0


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the trainer until it is idle, replaced, or its executor is gone."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--listener", type=int, required=True, help="file descriptor of the listening socket")
    parser.add_argument("--executor", type=ProcessIdentity.parse, required=True)
    parser.add_argument("--preload", action="store_true")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    faulthandler.enable()
    watcher = Watcher(options.executor)
    if options.preload:
        for name in PRELOADED:
            importlib.import_module(name)
    listener = socket.socket(fileno=options.listener)
    serve(listener, watcher, preloaded=options.preload)
    # Closed by the end of this process: until its memory is free, others wait here and do not start another trainer.
    listener.detach()
    # Libraries' exit handlers must not delay it.
    faulthandler.dump_traceback_later(_EXIT_S, exit=True)


def serve(listener: socket.socket, watcher: Watcher, *, preloaded: bool) -> None:
    """Answer messages until there is none for a while, or one that this process must not answer.

    Args:
        listener: The listening socket.
        watcher: Ends this process if nobody waits for the reply that it works on.
        preloaded: Whether `fedsvd.trainer.supervisor` has started this process. It then waits for its first message for
            any time, and has imported this package from elsewhere than from the app's bundle.
    """
    bound: Request | None = None
    handler: _Handler | None = None
    while (channel := _next_channel(listener, bound, preloaded)) is not None:
        request = _receive_request(channel)
        if request is None:
            channel.close()
            continue
        if bound is not None and (changed := changed_parts(bound.fingerprint, request.fingerprint)):
            with suppress(OSError):
                channel.send_json(Kind.REPLACED, changed)
            channel.close()
            return
        if bound is None and preloaded:
            _forget_modules()
        bound = request
        # The other side may be gone.
        with suppress(OSError), _deadline(channel, request):
            handler = _answer(channel, request, handler, watcher)
        channel.close()


def _next_channel(listener: socket.socket, bound: Request | None, preloaded: bool) -> Channel | None:
    if bound is not None and not bound.idle_s:
        return None
    if bound is None:
        listener.settimeout(None if preloaded else _FIRST_MESSAGE_S)
    else:
        listener.settimeout(bound.idle_s)
    try:
        return Channel(listener.accept()[0], time.monotonic() + _REQUEST_S)
    except TimeoutError:
        return None


def _receive_request(channel: Channel) -> Request | None:
    try:
        return protocol.request_from_json(channel.expect(Kind.REQUEST))
    except ValueError as error:
        with suppress(OSError):
            channel.send_json(Kind.REFUSED, f"{error}: start the trainer with the version of fedsvd that the run uses")
    except OSError:
        # A process that only checks whether a trainer listens, or that was killed.
        pass
    return None


@contextmanager
def _deadline(channel: Channel, request: Request) -> Iterator[None]:
    remaining = max(request.deadline - time.time(), 0.0) + _GRACE_S
    channel.deadline = time.monotonic() + remaining
    faulthandler.dump_traceback_later(remaining, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def _answer(channel: Channel, request: Request, handler: _Handler | None, watcher: Watcher) -> _Handler | None:
    """Answer one message, and return the handler for the next one."""
    channel.send_json(Kind.ACCEPTED, asdict(Acceptance(os.getpid(), pid_namespace())))
    message = flower.message_from_bytes(channel.expect(Kind.MESSAGE))
    context = flower.context_from_bytes(channel.expect(Kind.CONTEXT))
    flower.set_task_identity(request.task_id, context.run_id, context.node_id)
    watcher.watch(channel.socket)
    with records_to(channel, request.log_level):
        try:
            handler = handler or _load_handler(request)
            result = Kind.REPLY, flower.message_to_bytes(handler(message, context))
        except Exception as error:
            # The ClientApp process raises it again, but has no traceback of this process.
            if not isinstance(error, FedSVDError):
                logger.exception("unexpected error in the trainer")
            result = Kind.FAILED, protocol.failure_to_json(error)
    # From here on the other side may hang up, since it has all that it waits for.
    watcher.watch(None)
    # As without a trainer, changes are kept even if the handler has failed.
    channel.send(Kind.CONTEXT, flower.context_to_bytes(context))
    channel.send(*result)
    return handler


def _load_handler(request: Request) -> _Handler:
    module, _, name = request.handler.partition(":")
    os.chdir(request.fingerprint["working directory"])
    if request.bundle not in sys.path:
        sys.path.insert(0, request.bundle)
    handler: _Handler = getattr(importlib.import_module(module), name)
    return handler


def _forget_modules() -> None:
    """Let the app's packages be imported again, from its bundle."""
    for name in [name for name in sys.modules if name.partition(".")[0] in _APP_PACKAGES]:
        del sys.modules[name]


if __name__ == "__main__":
    main()
