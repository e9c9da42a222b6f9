"""Repeatedly kill ledger clients with SIGKILL, and print a comparison of their charges and released results as JSON.

A client is a forked process: it reserves, "trains" (a pause), marks the result as released, and "replies" (writes a
line to disk). It reports the start of each phase in a pipe. The parent process kills it at a random moment.
Usage: kill_ledger_clients.py FOLDER TRIALS
"""

import json
import os
import random
import select
import signal
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedsvd.errors import BudgetExceededError, LedgerError, ReplayedMessageError
from fedsvd.privacy.accounting import Spend, epsilon
from fedsvd.privacy.ledger import Budget, Ledger

SPEND, DELTA, MAX_CHARGES = Spend(1.0, 0.05, 5), 1e-5, 60
BUDGET_EPSILON = epsilon([SPEND] * MAX_CHARGES, DELTA, "rdp")
BUDGET = Budget(BUDGET_EPSILON, DELTA, BUDGET_EPSILON, DELTA, "rdp")
PHASES = ("open", "reserve", "train", "mark", "reply", "replied")
TRIALS_PER_LEDGER = 8


@dataclass
class Result:
    trials: int = 0
    killed_in: Counter[str] = field(default_factory=Counter)
    released: int = 0
    charged: int = 0
    replays_refused: int = 0
    violations: list[str] = field(default_factory=list)


def client(folder: Path, messages: Sequence[str], pipe: int) -> None:
    """Run one client until it is killed or has handled all messages."""

    def enter(phase: str) -> None:
        os.write(pipe, bytes([PHASES.index(phase)]))

    for message in messages:
        enter("open")
        with Ledger.open(folder / "ledger", "data") as ledger:
            enter("reserve")
            try:
                ledger.reserve("run", 1, message, SPEND, BUDGET)
            except (ReplayedMessageError, BudgetExceededError) as error:
                _append(folder / "declined", f"{message} {type(error).__name__}")
                continue
            enter("train")
            time.sleep(0.001)
            enter("mark")
            ledger.mark_released(message)
        enter("reply")
        _append(folder / "released", f"{message} {os.urandom(4).hex()}")
        enter("replied")


def _append(path: Path, line: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(descriptor, f"{line}\n".encode())
    os.fsync(descriptor)
    os.close(descriptor)


def start(folder: Path, messages: Sequence[str]) -> tuple[int, int]:
    reading, writing = os.pipe()
    process = os.fork()
    if process:
        os.close(writing)
        return process, reading
    status = 1
    try:
        os.close(reading)
        client(folder, messages, writing)
        status = 0
    finally:
        os._exit(status)


def kill_at_random_moment(process: int, reading: int, rng: random.Random) -> str:
    """Wait until the client has entered a random phase, kill it after a random delay, and return its last phase."""
    target, visits, last = rng.randrange(len(PHASES)), rng.randrange(1, 4), "start"
    while visits:
        ready, _, _ = select.select([reading], [], [], 30)
        report = os.read(reading, 1) if ready else b""
        if not report:
            break
        last = PHASES[report[0]]
        visits -= report[0] == target
    # Kill at once, or after up to about the duration of a reserve, so that the kill can hit any of its writes.
    if rng.random() < 0.7:
        time.sleep(rng.random() ** 2 * 0.012)
    os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    while report := os.read(reading, 64):
        last = PHASES[report[-1]]
    os.close(reading)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        return "failed"
    return last if os.WIFSIGNALED(status) else "ended before"


def check(folder: Path, result: Result) -> None:
    """Compare the released results with the charges."""
    if not (folder / "ledger").exists():
        if (folder / "released").exists():
            result.violations.append("a result was released without a ledger")
        return
    with Ledger.open(folder / "ledger", "data") as ledger:
        entries = ledger.entries()
    connection = sqlite3.connect(folder / "ledger")
    if connection.execute("PRAGMA integrity_check").fetchone() != ("ok",):
        result.violations.append("corrupted")
    connection.close()
    released = [line.split()[0] for line in _lines(folder / "released")]
    charged = {entry.message_id: entry for entry in entries}
    if len(charged) != len(entries):
        result.violations.append("a message charged twice")
    if len(set(released)) != len(released):
        result.violations.append(f"two results for one charge: {released}")
    for message in released:
        if message not in charged or charged[message].released_at is None:
            result.violations.append(f"{message} was released without a charge and a mark")
    if epsilon([entry.spend for entry in entries], DELTA, "rdp") > BUDGET_EPSILON:
        result.violations.append(f"budget exceeded: {len(entries)} charges")


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def stress_one_ledger(folder: Path, rng: random.Random, result: Result) -> None:
    folder.mkdir()
    messages: list[str] = []
    for trial in range(TRIALS_PER_LEDGER):
        # Some messages are repeated, and in every other trial two processes handle the same messages at once.
        repeated, new = rng.sample(messages, min(2, len(messages))), [f"{trial}-{number}" for number in range(20)]
        messages += new
        started = [start(folder, repeated + new) for _ in range(1 + trial % 2)]
        for process, reading in started:
            result.killed_in[kill_at_random_moment(process, reading, rng)] += 1
            result.trials += 1
        check(folder, result)
    # The last client must find a working ledger, and can use up the budget but not exceed it.
    process, reading = start(folder, [*messages, *(f"last-{number}" for number in range(MAX_CHARGES + 1))])
    os.waitpid(process, 0)
    os.close(reading)
    check(folder, result)
    with Ledger.open(folder / "ledger", "data") as ledger:
        charged = len(ledger.entries())
    if charged != MAX_CHARGES:
        result.violations.append(f"{charged} charges at the end instead of {MAX_CHARGES}")
    result.charged += charged
    result.released += len(_lines(folder / "released"))
    result.replays_refused += sum("Replayed" in line for line in _lines(folder / "declined"))


def main(folder: Path, trials: int) -> None:
    # Fill the accountant's cache once, because forked processes inherit it.
    for count in range(MAX_CHARGES + 2):
        epsilon([SPEND] * count, DELTA, "rdp")
    rng, result = random.Random(), Result()
    try:
        while result.trials < trials:
            stress_one_ledger(folder / str(result.trials), rng, result)
    except LedgerError as error:
        result.violations.append(str(error))
    print(json.dumps(vars(result)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
