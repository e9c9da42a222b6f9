"""Repeatedly kill ledger clients with SIGKILL, and print a comparison of their charges and released results as JSON.

A client is a forked process: it reserves, "trains" (a pause), marks the result as released, and "replies" (writes a
line to disk). It reports the start of each phase in a pipe. The parent process kills it at a random moment. Every
ledger starts with charges of schema version 1, which the first write migrates; the data change with every message, and
in half of the ledgers the owner opens a new account, also in a process that is killed.
Usage: kill_ledger_clients.py FOLDER TRIALS
"""

import itertools
import json
import os
import random
import select
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ledger_v1 import schema_version, write_ledger_v1

from fedsvd.errors import BudgetExceededError, LedgerError, ReplayedMessageError
from fedsvd.privacy.accounting import Spend, epsilon
from fedsvd.privacy.ledger import Budget, Ledger
from fedsvd.privacy.ledger_accounts import open_account
from fedsvd.privacy.ledger_entries import LedgerState

SPEND, DELTA, MAX_CHARGES, V1_CHARGES = Spend(1.0, 0.05, 5), 1e-5, 60, 3
BUDGET_EPSILON = epsilon([SPEND] * MAX_CHARGES, DELTA, "rdp")
BUDGET = Budget(BUDGET_EPSILON, DELTA, BUDGET_EPSILON, DELTA, "rdp")
PHASES = ("open", "migrate", "change", "reserve", "train", "mark", "reply", "replied", "account")
REPEATED_PHASES = [phase for phase in PHASES if phase not in ("migrate", "account")]
TRIALS_PER_LEDGER = 8
# The budget of every third ledger is used up in the end, after this number of replays.
USED_UP, REPLAYS = 3, 20


@dataclass
class Result:
    trials: int = 0
    killed_in: Counter[str] = field(default_factory=Counter)
    released: int = 0
    charged: int = 0
    replays_refused: int = 0
    # After a kill in the first write to a ledger of version 1: how often it was still of version 1, and how often not.
    not_migrated: int = 0
    migrated: int = 0
    changes: int = 0
    accounts: int = 0
    ledgers: int = 0
    violations: list[str] = field(default_factory=list)


def client(folder: Path, messages: Sequence[str], pipe: int) -> None:
    """Run one client until it is killed or has handled all messages."""

    def enter(phase: str) -> None:
        os.write(pipe, bytes([PHASES.index(phase)]))

    for number, message in enumerate(messages):
        enter("open")
        # Replays of earlier messages come with other data, too.
        data = f"data {number // 2 % 3} of account {len(_lines(folder / 'accounts'))}"
        with Ledger.open(folder / "ledger", data) as ledger:
            if schema_version(folder / "ledger") == 1:
                enter("migrate")
            elif ledger.fingerprint != data:
                enter("change")
            else:
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


def owner(folder: Path, pipe: int) -> None:
    """Open a new account, and note it for the clients."""
    os.write(pipe, bytes([PHASES.index("account")]))
    open_account(folder / "ledger", "other people")
    _append(folder / "accounts", "opened")


def _append(path: Path, line: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(descriptor, f"{line}\n".encode())
    os.fsync(descriptor)
    os.close(descriptor)


def start(folder: Path, messages: Sequence[str] | None) -> tuple[int, int]:
    """Fork a client with these messages, or the owner if there are none."""
    reading, writing = os.pipe()
    process = os.fork()
    if process:
        os.close(writing)
        return process, reading
    status = 1
    try:
        os.close(reading)
        owner(folder, writing) if messages is None else client(folder, messages, writing)
        status = 0
    finally:
        os._exit(status)


def kill_at_random_moment(process: int, reading: int, rng: random.Random, phase: str | None = None) -> str:
    """Wait until a process has entered a phase, kill it after a random delay, and return its last phase.

    Without ``phase``, the phase is random.
    """
    # Only the first write to a ledger of version 1 migrates, and only the owner opens an account.
    target, last = PHASES.index(phase or rng.choice(REPEATED_PHASES)), "start"
    visits = 1 if phase else rng.randrange(1, 4)
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


def check(folder: Path, result: Result) -> LedgerState:
    """Compare the released results with the charges, and return these; opening the ledger checks its digests."""
    with Ledger.open(folder / "ledger", "data of the check") as ledger:
        state = ledger.state()
    entries = state.entries
    if [entry.message_id for entry in entries[:V1_CHARGES]] != [f"v1 {number}" for number in range(V1_CHARGES)]:
        result.violations.append("charges of version 1 are lost")
    released = [line.split()[0] for line in _lines(folder / "released")]
    charged = {entry.message_id: entry for entry in entries}
    if len(charged) != len(entries):
        result.violations.append("a message charged twice")
    if len(set(released)) != len(released):
        result.violations.append(f"two results for one charge: {released}")
    for message in released:
        if message not in charged or charged[message].released_at is None:
            result.violations.append(f"{message} was released without a charge and a mark")
    for account in range(1, state.account + 1):
        in_account = [entry for entry in entries if entry.account == account]
        if epsilon([entry.spend for entry in in_account], DELTA, "rdp") > BUDGET_EPSILON:
            result.violations.append(f"budget exceeded: {len(in_account)} charges to account {account}")
    changed = ["data"] + [entry.fingerprint for entry in entries]
    for before, after in itertools.pairwise(changed):
        if before != after and not any(
            event.kind == "data" and (event.new_fingerprint, event.old_fingerprint) == (after, before)
            for event in state.events
        ):
            result.violations.append(f"no event for the change from {before} to {after}")
    return state


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def stress_one_ledger(folder: Path, rng: random.Random, result: Result) -> None:
    folder.mkdir()
    write_ledger_v1(folder / "ledger", "data", [SPEND] * V1_CHARGES)
    messages: list[str] = []
    account_trial = rng.randrange(3, TRIALS_PER_LEDGER) if rng.random() < 0.5 else None
    for trial in range(TRIALS_PER_LEDGER):
        # Some messages are repeated, and in every other trial two processes handle the same messages at once.
        repeated, new = rng.sample(messages, min(2, len(messages))), [f"{trial}-{number}" for number in range(20)]
        messages += new
        is_v1 = schema_version(folder / "ledger") == 1
        started = [start(folder, repeated + new) for _ in range(1 + trial % 2)]
        for process, reading in started:
            phase = kill_at_random_moment(process, reading, rng, "migrate" if is_v1 else None)
            result.killed_in[phase] += 1
            result.trials += 1
        if is_v1:
            is_migrated = schema_version(folder / "ledger") == 2
            result.migrated += is_migrated
            result.not_migrated += not is_migrated
        if trial == account_trial:
            _open_account_while_killed(folder, rng, result)
        check(folder, result)
    if result.ledgers % USED_UP == 0:
        _use_up_budget(folder, rng.sample(messages, REPLAYS), result)
    result.ledgers += 1
    state = check(folder, result)
    result.charged += len(state.entries) - V1_CHARGES
    result.changes += sum(event.kind == "data" for event in state.events)
    result.accounts += state.account - 1
    result.released += len(_lines(folder / "released"))
    result.replays_refused += sum("Replayed" in line for line in _lines(folder / "declined"))


def _open_account_while_killed(folder: Path, rng: random.Random, result: Result) -> None:
    """Kill the owner's process while it opens an account; it has been opened or not, and the ledger works."""
    process, reading = start(folder, None)
    result.killed_in[kill_at_random_moment(process, reading, rng, "account")] += 1
    with Ledger.open(folder / "ledger", "data of the check") as ledger:
        account = ledger.state().account
    if account == 1:
        account = open_account(folder / "ledger", "other people")
    if account != 2:
        result.violations.append(f"account {account} instead of 2")
    if not _lines(folder / "accounts"):
        _append(folder / "accounts", "opened")


def _use_up_budget(folder: Path, messages: Sequence[str], result: Result) -> None:
    """Let a last client use up the budget: it must find a working ledger, and must not exceed the budget."""
    process, reading = start(folder, [*messages, *(f"last-{number}" for number in range(MAX_CHARGES + 1))])
    os.waitpid(process, 0)
    os.close(reading)
    if (charges := len(check(folder, result).counting)) != MAX_CHARGES:
        result.violations.append(f"{charges} charges at the end instead of {MAX_CHARGES}")


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
