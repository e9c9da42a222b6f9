"""Kills ledger clients with SIGKILL, again and again, and prints as JSON what their ledgers and released results say.

A client here is a forked process: it reserves, "trains" (a pause), marks the result as released, and "replies" (a line
that is on disk). Before each phase it says so in a pipe; this process then waits for a random moment and kills it.
usage: kill_ledger_clients.py FOLDER TRIALS
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

SPEND, DELTA, FITS = Spend(1.0, 0.05, 5), 1e-5, 60
BUDGET_EPSILON = epsilon([SPEND] * FITS, DELTA, "rdp")
BUDGET = Budget(BUDGET_EPSILON, DELTA, BUDGET_EPSILON, DELTA, "rdp")
PHASES = ("open", "reserve", "train", "mark", "reply", "replied")
TRIALS_A_LEDGER = 8


@dataclass
class Result:
    trials: int = 0
    killed_in: Counter[str] = field(default_factory=Counter)
    released: int = 0
    charged: int = 0
    replays_refused: int = 0
    wrong: list[str] = field(default_factory=list)


def client(folder: Path, messages: Sequence[str], told: int) -> None:
    """One client's life; it ends at a signal or with the messages."""

    def enter(phase: str) -> None:
        os.write(told, bytes([PHASES.index(phase)]))

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


def kill_somewhere(process: int, reading: int, chance: random.Random) -> str:
    """Let it come to a phase of a message, then wait a moment, kill it, and return the phase it died in."""
    target, visits, last = chance.randrange(len(PHASES)), chance.randrange(1, 4), "start"
    while visits:
        ready, _, _ = select.select([reading], [], [], 30)
        said = os.read(reading, 1) if ready else b""
        if not said:
            break
        last = PHASES[said[0]]
        visits -= said[0] == target
    # At once, or after about as long as a reserve takes here: a kill can fall on any of its writes.
    if chance.random() < 0.7:
        time.sleep(chance.random() ** 2 * 0.012)
    os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    while said := os.read(reading, 64):
        last = PHASES[said[-1]]
    os.close(reading)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        return "failed"
    return last if os.WIFSIGNALED(status) else "ended before"


def check(folder: Path, result: Result) -> None:
    """Compare the results that left with the charges."""
    if not (folder / "ledger").exists():
        if (folder / "released").exists():
            result.wrong.append("a result without a ledger")
        return
    with Ledger.open(folder / "ledger", "data") as ledger:
        entries = ledger.entries()
    connection = sqlite3.connect(folder / "ledger")
    if connection.execute("PRAGMA integrity_check").fetchone() != ("ok",):
        result.wrong.append("corrupted")
    connection.close()
    left = [line.split()[0] for line in _lines(folder / "released")]
    charged = {entry.message_id: entry for entry in entries}
    if len(charged) != len(entries):
        result.wrong.append("a message charged twice")
    if len(set(left)) != len(left):
        result.wrong.append(f"two results of one charge: {left}")
    for message in left:
        if message not in charged or charged[message].released_at is None:
            result.wrong.append(f"{message} left without a charge and a mark")
    if epsilon([entry.spend for entry in entries], DELTA, "rdp") > BUDGET_EPSILON:
        result.wrong.append(f"exceeded: {len(entries)} charges")


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def one_ledger(folder: Path, chance: random.Random, result: Result) -> None:
    folder.mkdir()
    messages: list[str] = []
    for trial in range(TRIALS_A_LEDGER):
        # Some messages come again, and two processes get the same ones at once.
        again, new = chance.sample(messages, min(2, len(messages))), [f"{trial}-{number}" for number in range(20)]
        messages += new
        started = [start(folder, again + new) for _ in range(1 + trial % 2)]
        for process, reading in started:
            result.killed_in[kill_somewhere(process, reading, chance)] += 1
            result.trials += 1
        check(folder, result)
    # Whoever comes last finds a working ledger, fills it to the brim, and no further.
    process, reading = start(folder, [*messages, *(f"last-{number}" for number in range(FITS + 1))])
    os.waitpid(process, 0)
    os.close(reading)
    check(folder, result)
    with Ledger.open(folder / "ledger", "data") as ledger:
        charged = len(ledger.entries())
    if charged != FITS:
        result.wrong.append(f"{charged} charges in the end instead of {FITS}")
    result.charged += charged
    result.released += len(_lines(folder / "released"))
    result.replays_refused += sum("Replayed" in line for line in _lines(folder / "declined"))


def main(folder: Path, trials: int) -> None:
    # Warmed up here, once: a fork inherits what the accountant has counted.
    for count in range(FITS + 2):
        epsilon([SPEND] * count, DELTA, "rdp")
    chance, result = random.Random(), Result()
    try:
        while result.trials < trials:
            one_ledger(folder / str(result.trials), chance, result)
    except LedgerError as error:
        result.wrong.append(str(error))
    print(json.dumps(vars(result)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
