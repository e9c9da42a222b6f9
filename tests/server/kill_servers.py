"""Ends the whole of `fedsvd train` at chosen moments, resumes it, and prints as JSON what each run folder then holds.

A run is a forked process in which one function kills the process, or takes the disk away, when it is called. Nothing of
fedsvd knows of it. usage: kill_servers.py FOLDER
"""

import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import server.checkpoint
import server.evaluation
from fedsvd.cli import main as fedsvd
from fedsvd.config.compose import compose
from fedsvd.methods import build_method
from fedsvd.methods.fedsvd import FedSVD
from fedsvd.privacy.ledger import Ledger
from fedsvd.runs.folder import RunFolder, read_rows
from fedsvd.runtime.data import load_client_data, load_test_batches
from fedsvd.runtime.model import initial_adapter

# The third of five rounds is the one that breaks.
BROKEN, ROUNDS = 3, 5
COMMON = ["experiment=smoke", f"train.num_rounds={ROUNDS}", "train.momentum=0.5", "train.server_optimizer=momentum"]
OPEN = [*COMMON, "privacy=none", "train.head=private"]
# Noise that is given, so that nobody need look for it, and a budget for as many rounds as it takes.
PRIVATE = [*COMMON, "privacy.accountant=rdp", "privacy.noise_multiplier=2", "privacy.target_epsilon=100"]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def full_disk() -> None:
    """Let every write beyond some bytes fail, as it does on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def at_call(
    owner: Any, name: str, happen: Callable[[], None], when: Callable[..., bool], *, after: bool = False
) -> None:
    """Replace a function by one that does the same, and lets something happen before or after it."""
    original = getattr(owner, name)

    def wrapped(*arguments: Any, **options: Any) -> Any:
        chosen = when(*arguments, **options)
        if chosen and not after:
            happen()
        result = original(*arguments, **options)
        if chosen and after:
            happen()
        return result

    setattr(owner, name, wrapped)


def saves(folder: Path, checkpoint: Any) -> bool:
    return bool(checkpoint.server_round == BROKEN)


def renames(source: Path, target: Path) -> bool:
    return Path(target).name == f"round-{BROKEN:06d}"


def writes_rows(path: Path, rows: Any) -> bool:
    return bool(rows[-1]["server_round"] == BROKEN)


def steps(method: Any, adapter: Any, replies: Any, server_round: int, state: Any) -> bool:
    return server_round == BROKEN


def last_rename(source: Path, target: Path) -> bool:
    return Path(target).name == f"round-{ROUNDS:06d}"


# What breaks, and how.
POINTS: dict[str, Callable[[], None]] = {
    "in mid-aggregation": lambda: at_call(FedSVD, "server_step", die, steps),
    "after the step": lambda: at_call(FedSVD, "server_step", die, steps, after=True),
    "between a checkpoint's files": lambda: at_call(
        server.checkpoint, "write_json", die, lambda path, state: state["server_round"] == BROKEN
    ),
    "right before the rename": lambda: at_call(Path, "rename", die, renames),
    "right after the rename": lambda: at_call(Path, "rename", die, renames, after=True),
    "before the rows": lambda: at_call(server.evaluation, "write_rows", die, writes_rows),
    "after the last checkpoint": lambda: at_call(Path, "rename", die, last_rename, after=True),
    "while an old checkpoint is deleted": lambda: at_call(
        server.checkpoint.shutil, "rmtree", die, lambda path, **options: Path(path).name.endswith("round-000000")
    ),
    "disk full": lambda: at_call(server.evaluation, "save_checkpoint", full_disk, saves),
}  # fmt: skip


def run(folder: Path, words: list[str], prepare: Callable[[], None] = lambda: None) -> int:
    """Run `fedsvd train` in a fork; return its exit status, or less than 0 where a signal ended it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    process = os.fork()
    if not process:
        status = 70
        try:
            log = folder.with_suffix(".log").open("a")
            with log, redirect_stdout(log), redirect_stderr(log):
                prepare()
                status = fedsvd(["train", *words])
                log.flush()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def held(folder: Path, words: list[str]) -> dict[str, Any]:
    """What a finished run left behind."""
    found = RunFolder(folder)
    rows = [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in read_rows(found.metrics)]
    ledgers = {}
    if "privacy=none" not in words:
        for number in (0, 1):
            with Ledger.open(found.ledger(number), load_client_data(compose(words), number).fingerprint) as ledger:
                entries = ledger.entries()
            ledgers[number] = {
                "rounds": [e.server_round for e in entries],
                "steps": sum(e.spend.steps for e in entries),
            }
        told = json.loads(found.privacy.read_text())["clients"]
        for number, ledger in ledgers.items():
            ledger["told"] = told[str(number)]["steps"]
    return {
        "adapter": (found.adapter / "adapter_model.safetensors").read_bytes().hex(),
        "rows": rows,
        "ledgers": ledgers,
        "checkpoints": sorted(path.name for path in found.checkpoints.iterdir()),
    }


def one(folder: Path, words: list[str], point: str) -> dict[str, Any]:
    start = [*words, f"hydra.run.dir={folder}"]
    status = run(folder, start, POINTS[point])
    left = sorted(path.name for path in RunFolder(folder).checkpoints.iterdir())
    log = folder.with_suffix(".log").read_text()
    resumed = run(folder, [f"resume={folder}"])
    return {"status": status, "left": left, "log": log, "resumed": resumed, **held(folder, words),
            "later": folder.with_suffix(".log").read_text()[len(log):]}  # fmt: skip


def main(folder: Path) -> None:
    config = compose(OPEN)
    # Loaded once, before the forks.
    load_client_data(config, 0), load_client_data(config, 1)
    load_test_batches(config)
    initial_adapter(config, build_method(config.method))
    results: dict[str, Any] = {}
    status = run(folder / "whole", [*OPEN, f"hydra.run.dir={folder / 'whole'}"])
    results["whole"] = {"status": status, **held(folder / "whole", OPEN)}
    for number, point in enumerate(POINTS):
        results[point] = one(folder / f"open-{number}", OPEN, point)
    for number, point in enumerate(("in mid-aggregation", "right before the rename", "right after the rename")):
        results[f"{point}, private"] = one(folder / f"private-{number}", PRIVATE, point)
    print(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
