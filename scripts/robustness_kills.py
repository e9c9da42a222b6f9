"""Kills: SIGKILL at random moments of a client, a node's trainer, and clients that share a ledger.

Every result that left a process must be in the ledger, exactly once and marked, and no replayed message is answered.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
REAL, LEDGER = ROOT / "tests/client/kill_real_clients.py", ROOT / "tests/unit/privacy/kill_ledger_clients.py"


def drive(driver: Path, *arguments: str) -> dict[str, Any]:
    """Run a driver, which forks, in a process with a single thread."""
    path = os.pathsep.join(str(folder) for folder in (ROOT, ROOT / "tests" / "helpers"))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": path}
    completed = subprocess.run(
        [sys.executable, str(driver), *arguments], capture_output=True, text=True, check=False, env=environment
    )
    if completed.returncode:
        raise RuntimeError(completed.stderr[-4000:])
    figures: dict[str, Any] = json.loads(completed.stdout)
    return figures


def kill_real(process: str, kills: int, work: Path) -> dict[str, Any]:
    """Kill the process that answers messages (``client``), or the trainer that answers for it (``trainer``)."""
    folder = work / process
    folder.mkdir(parents=True)
    result = drive(REAL, str(folder), str(kills), process)
    charged = dict(result["charged"])
    released = [name for name, reason in result["replies"] if reason is None]
    reasons = [reason for _, reason in result["replies"] if reason is not None]
    replays = sum("ReplayedMessageError" in reason for reason in reasons)
    faults = [f"{name} was released without a charge" for name in released if not charged.get(name)]
    faults += ["a message was charged twice"] * (len(charged) < len(result["charged"]))
    faults += ["a message was answered twice"] * (len(set(released)) < len(released))
    faults += [reason for reason in reasons if not ("ReplayedMessageError" in reason or "TrainerError" in reason)]
    counts = {
        "charged": len(charged),
        "charged_and_lost": len(charged.keys() - set(released)),
        "replays_refused": replays,
    }
    return {"tried": result["killed"], **counts, "faults": faults}


def kill_ledger_clients(kills: int, work: Path) -> dict[str, Any]:
    """Kill clients that share a ledger, while they open, migrate and charge it."""
    folder = work / "ledger-clients"
    folder.mkdir(parents=True)
    result = drive(LEDGER, str(folder), str(kills))
    counts = {"charged": result["charged"], "charged_and_lost": result["charged"] - result["released"]}
    counts["replays_refused"] = result["replays_refused"]
    return {"tried": result["trials"], **counts, "faults": result["violations"]}


def kill_all(kills: int, work: Path) -> dict[str, Any]:
    """Return the figures of all three, by what is killed."""
    real = {process: kill_real(process, kills, work) for process in ("trainer", "client")}
    return real | {"clients of one ledger": kill_ledger_clients(kills, work)}
