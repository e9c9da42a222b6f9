"""Run the real ClientApp in processes that are killed with SIGKILL, and print charges and replies as JSON.

usage: kill_real_clients.py FOLDER TRIALS client|trainer

Either the process that answers a message is killed, or the trainer to which another process passes it. Both are forked
from a process that has loaded model and data, so that hundreds of kills take minutes.
"""

import itertools
import json
import os
import random
import signal
import socket
import sqlite3
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from flwr.app import Context, Message, MessageType, RecordDict

from client.app import app
from fedsvd.compat.flower import set_message_id, set_task_identity
from fedsvd.config.compose import compose
from fedsvd.data import fingerprint
from fedsvd.errors import TrainerError
from fedsvd.lora.adapter import Part
from fedsvd.methods import build_method
from fedsvd.privacy.ledger import Ledger
from fedsvd.runtime.data import load_client_data, load_partition
from fedsvd.runtime.model import initial_adapter
from fedsvd.trainer import connection, service, sockets
from fedsvd.trainer.settings import read_settings
from fedsvd.trainer.watcher import ProcessIdentity, Watcher
from fedsvd.wire import payload, train_messages
from fedsvd.wire.train_messages import TrainTask

# Each trial sends one new message, for a round of its own.
OVERRIDES = ["experiment=smoke", f"train.num_rounds={sys.argv[2]}", "train.local_steps=3", "privacy.accountant=rdp"]
ROOT = Path(__file__).resolve().parents[2]
B: frozenset[Part] = frozenset({"B"})
# Number of earlier messages that are sent again in each trial, besides the last one.
REPLAYS = 5


def answer_by_trainer(message: Message, context: Context) -> Message:
    """Pass a message to the trainer of the socket in the node configuration, as the ClientApp does on a real node."""
    settings = read_settings(context.node_config)
    try:
        return connection.answer(message, context, settings, ROOT, "client.handlers:answer")
    except TrainerError as error:
        return Message(train_messages.declined_reply(f"TrainerError: {error}"), reply_to=message)


def answer_messages(folder: Path, names: list[str], answer: Callable[[Message, Context], Message]) -> None:
    """Answer messages as Flower would deliver them, and record each reply."""
    config = compose(OVERRIDES)
    factors = payload.pack(initial_adapter(config, build_method(config.method)), B)
    node_config = {"partition-id": 0, "num-partitions": 2, "ledger": str(folder / "ledger")}
    node_config |= {"max-epsilon": 6.0, "max-delta": 1e-5, "trainer": str(folder / "socket")}
    # Replay the messages in a loop until the process, or its trainer, is killed.
    for name in itertools.cycle(names):
        task = TrainTask(1 + int(name.partition("-")[2]), B, B)
        message = Message(train_messages.train_request(task, factors), 2, MessageType.TRAIN)
        set_message_id(message, name)
        context = Context(7, 2, node_config, RecordDict(), {"overrides": " ".join(OVERRIDES)})
        reply = answer(message, context)
        reason = train_messages.declined_reason(reply.content)
        descriptor = os.open(folder / "replies", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(descriptor, f"{json.dumps([name, reason])}\n".encode())
        os.fsync(descriptor)
        os.close(descriptor)
        if str(reason).startswith("TrainerError"):
            return


def fork(run: Callable[[], object]) -> int:
    process = os.fork()
    if not process:
        status = 1
        try:
            run()
            status = 0
        finally:
            os._exit(status)
    return process


def start(folder: Path, names: list[str], listener: socket.socket | None) -> list[int]:
    """Start the process to kill and, if it is a trainer, the one that passes messages to it."""
    if listener is None:
        return [fork(lambda: answer_messages(folder, names, app))]
    executor = ProcessIdentity.of(os.getpid())
    trainer = fork(lambda: service.serve(listener, Watcher(executor), preloaded=False))
    return [trainer, fork(lambda: answer_messages(folder, names, answer_by_trainer))]


def kill_after(processes: list[int], seconds: float, event: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 60
    while not event() and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(seconds)
    for process in processes:
        os.kill(process, signal.SIGKILL)
        # The process that waits for the killed trainer records the loss.
        time.sleep(0.2 if len(processes) > 1 else 0.0)
    statuses = [os.waitpid(process, 0)[1] for process in processes]
    return os.WIFSIGNALED(statuses[0])


def main(folder: Path, trials: int, killed_process: str) -> None:
    config = compose(OVERRIDES)
    # Fill the caches before forking.
    load_client_data(config, 0)
    initial_adapter(config, build_method(config.method))
    set_task_identity(1, 7, 2)
    listener = sockets.listen(folder / "socket") if killed_process == "trainer" else None
    rng, killed = random.Random(), 0
    ledger, replies = folder / "ledger", folder / "replies"
    for trial in range(trials):
        # One new message first, then the last one, which may not have been charged, and some of the earlier ones.
        earlier = rng.sample(range(trial - 1), min(REPLAYS, trial - 1)) if trial > 1 else []
        names = [f"message-{number}" for number in [trial, *range(max(trial - 1, 0), trial), *earlier]]
        # After the charge of the new message, before its result; at any moment; or after more replies than messages, so
        # that at least one is to a replay.
        events = [_has_more_charges(ledger), ledger.exists, _has_more_lines(replies, len(names) + 1)]
        # A message takes longer by way of a trainer.
        seconds = rng.random() * (0.05 if trial % 3 == 0 else 0.8 if listener else 0.25)
        killed += kill_after(start(folder, names, listener), seconds, events[trial % 3])
    with Ledger.open(ledger, fingerprint(load_partition(config, 0))) as opened_ledger:
        charged = [[entry.message_id, entry.released_at is not None] for entry in opened_ledger.entries()]
    answers = [json.loads(line) for line in _lines(replies)]
    print(json.dumps({"killed": killed, "charged": charged, "replies": answers}))


def _has_more_lines(path: Path, count: int) -> Callable[[], bool]:
    target = len(_lines(path)) + count
    return lambda: len(_lines(path)) >= target


def _has_more_charges(ledger: Path) -> Callable[[], bool]:
    before = _charges(ledger)
    return lambda: _charges(ledger) > before


def _charges(ledger: Path) -> int:
    """Return the number of charges in a ledger, while a client may write to it."""
    if not ledger.exists():
        return 0
    with closing(sqlite3.connect(f"file:{ledger}?mode=ro", uri=True, timeout=30)) as connection:
        try:
            return int(connection.execute("SELECT COUNT(*) FROM spend").fetchone()[0])
        except sqlite3.OperationalError:
            return 0


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
