"""Interrupt `fedsvd train` at chosen points, resume it, and print the contents of each run directory as JSON.

Each run is a forked process in which one function is patched to kill the process or to simulate a full disk. The code
of fedsvd is unchanged. usage: kill_servers.py FOLDER
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

# The third of four rounds is interrupted.
INTERRUPTED, ROUNDS = 3, 4
COMMON = [
    "experiment=smoke", "plots=false", f"train.num_rounds={ROUNDS}", "train.momentum=0.5",
    "train.server_optimizer=momentum", "data.max_train_examples=60", "data.max_test_examples=20",
]  # fmt: skip
# The sampled clients and the learning rate depend on the round.
NON_PRIVATE = [
    *COMMON, "privacy=none", "train.head=private", "federation.num_clients=3", "federation.clients_per_round=2",
    "train.lr_scheduler_type=cosine", "train.warmup_rounds=2",
]  # fmt: skip
# A fixed noise multiplier, which needs no calibration, and a budget for any number of repeated rounds.
PRIVATE = [*COMMON, "privacy.accountant=rdp", "privacy.noise_multiplier=2", "privacy.target_epsilon=100"]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def full_disk() -> None:
    """Make each write beyond the first bytes of a file fail, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def patch(owner: Any, name: str, action: Callable[[], None], when: Callable[..., bool], *, after: bool = False) -> None:
    """Replace a function by one that also runs ``action`` before or after it, for the calls that ``when`` selects."""
    original = getattr(owner, name)

    def wrapped(*arguments: Any, **options: Any) -> Any:
        selected = when(*arguments, **options)
        if selected and not after:
            action()
        result = original(*arguments, **options)
        if selected and after:
            action()
        return result

    setattr(owner, name, wrapped)


def saves_interrupted_round(folder: Path, checkpoint: Any, keep: int | None) -> bool:
    return bool(checkpoint.server_round == INTERRUPTED)


def renames_interrupted_round(source: Path, target: Path) -> bool:
    return Path(target).name == f"round-{INTERRUPTED:06d}"


def writes_interrupted_row(path: Path, rows: Any) -> bool:
    return bool(rows[-1]["server_round"] == INTERRUPTED)


def steps_interrupted_round(method: Any, adapter: Any, replies: Any, server_round: int, state: Any) -> bool:
    return server_round == INTERRUPTED


def renames_last_round(source: Path, target: Path) -> bool:
    return Path(target).name == f"round-{ROUNDS:06d}"


DELETION = "while an old checkpoint is deleted"
# Points of interruption.
POINTS: dict[str, Callable[[], None]] = {
    "during aggregation": lambda: patch(FedSVD, "server_step", die, steps_interrupted_round),
    "between a checkpoint's files": lambda: patch(
        server.checkpoint, "write_json", die, lambda path, state: state["server_round"] == INTERRUPTED
    ),
    "right before the rename": lambda: patch(Path, "rename", die, renames_interrupted_round),
    "right after the rename": lambda: patch(Path, "rename", die, renames_interrupted_round, after=True),
    "before the rows": lambda: patch(server.evaluation, "write_rows", die, writes_interrupted_row),
    "after the last checkpoint": lambda: patch(Path, "rename", die, renames_last_round, after=True),
    DELETION: lambda: patch(
        server.checkpoint.shutil, "rmtree", die, lambda path, **options: Path(path).name.endswith("round-000000")
    ),
    "disk full": lambda: patch(server.evaluation, "save_checkpoint", full_disk, saves_interrupted_round),
}  # fmt: skip


def run(folder: Path, overrides: list[str], prepare: Callable[[], None] = lambda: None) -> int:
    """Run `fedsvd train` in a fork; return its exit status, negative if a signal ended it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    process = os.fork()
    if not process:
        status = 70
        try:
            log = folder.with_suffix(".log").open("a")
            with log, redirect_stdout(log), redirect_stderr(log):
                prepare()
                status = fedsvd(["train", *overrides])
                log.flush()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def run_contents(folder: Path, overrides: list[str]) -> dict[str, Any]:
    """Return the contents of a finished run directory."""
    paths = RunFolder(folder)
    rows = [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in read_rows(paths.metrics)]
    ledgers = {}
    if "privacy=none" not in overrides:
        for number in (0, 1):
            with Ledger.open(paths.ledger(number), load_client_data(compose(overrides), number).fingerprint) as ledger:
                entries = ledger.entries()
            ledgers[number] = {
                "rounds": [e.server_round for e in entries],
                "steps": sum(e.spend.steps for e in entries),
            }
        reported = json.loads(paths.privacy.read_text())["clients"]
        for number, ledger in ledgers.items():
            ledger["reported"] = reported[str(number)]["steps"]
    return {
        "adapter": (paths.adapter / "adapter_model.safetensors").read_bytes().hex(),
        "best": {path.name: path.read_bytes().hex() for path in paths.best_adapter.glob("*")},
        "rows": rows,
        "ledgers": ledgers,
        "checkpoints": sorted(path.name for path in paths.checkpoints.iterdir()),
    }


def interrupt_and_resume(folder: Path, overrides: list[str], point: str) -> dict[str, Any]:
    start = [*overrides, f"hydra.run.dir={folder}"]
    status = run(folder, start, POINTS[point])
    remaining = sorted(path.name for path in RunFolder(folder).checkpoints.iterdir())
    log = folder.with_suffix(".log").read_text()
    resumed = run(folder, [f"resume={folder}"])
    return {"status": status, "remaining": remaining, "log": log, "resumed": resumed, **run_contents(folder, overrides),
            "later": folder.with_suffix(".log").read_text()[len(log):]}  # fmt: skip


def main(folder: Path) -> None:
    config = compose(NON_PRIVATE)
    # Fill the caches before forking.
    for number in range(config.federation.num_clients):
        load_client_data(config, number)
    load_test_batches(config)
    initial_adapter(config, build_method(config.method))
    results: dict[str, Any] = {}
    status = run(folder / "uninterrupted", [*NON_PRIVATE, f"hydra.run.dir={folder / 'uninterrupted'}"])
    results["uninterrupted"] = {"status": status, **run_contents(folder / "uninterrupted", NON_PRIVATE)}
    for number, point in enumerate(POINTS):
        # The best round may be the one whose checkpoint is to be deleted.
        overrides = [*NON_PRIVATE, "train.keep_best=false"] if point == DELETION else NON_PRIVATE
        results[point] = interrupt_and_resume(folder / f"non-private-{number}", overrides, point)
    for number, point in enumerate(("during aggregation", "right before the rename", "right after the rename")):
        results[f"{point}, private"] = interrupt_and_resume(folder / f"private-{number}", PRIVATE, point)
    print(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
