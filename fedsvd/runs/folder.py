"""The run directory: paths of all files that a run writes, and functions that write them atomically."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class RunFolder:
    """Paths in the directory of one run.

    Attributes:
        root: Hydra's output directory, or the directory given by ``run_dir``.
    """

    root: Path

    @property
    def config(self) -> Path:
        """The resolved configuration (YAML)."""
        return self.root / "config.yaml"

    @property
    def overrides(self) -> Path:
        """The overrides that the configuration was composed from (JSON list); resuming starts from them."""
        return self.root / "overrides.json"

    @property
    def classes(self) -> Path:
        """Names of the classes, in the order of the model's outputs (JSON list)."""
        return self.root / "classes.json"

    @property
    def samples(self) -> Path:
        """A language model's answers to a few held-out prompts, before and after training."""
        return self.root / "samples.json"

    @property
    def record(self) -> Path:
        """Start and end time, package versions, held-out data and final state; see `fedsvd.runs.record`."""
        return self.root / "run.json"

    @property
    def tracking(self) -> Path:
        """The run's identifier at its experiment tracking service."""
        return self.root / "tracking.json"

    @property
    def partitions(self) -> Path:
        """Simulated clients only: number of examples per class and data fingerprint of each client."""
        return self.root / "partitions.json"

    @property
    def metrics(self) -> Path:
        """One JSON row per round."""
        return self.root / "metrics.jsonl"

    @property
    def statuses(self) -> Path:
        """What each client is doing, or has done last; see `fedsvd.runs.client_status`."""
        return self.root / "sites.json"

    @property
    def report(self) -> Path:
        """The report of the rounds so far, a page for a browser."""
        return self.root / "report.html"

    @property
    def privacy(self) -> Path:
        """The privacy budget that each client has spent."""
        return self.root / "privacy.json"

    @property
    def adapter(self) -> Path:
        """The final PEFT adapter."""
        return self.root / "adapter"

    @property
    def best_adapter(self) -> Path:
        """The PEFT adapter of the best evaluated round, with `fedsvd.runs.best_round.BestRound` as JSON."""
        return self.root / "adapter-best"

    @property
    def standardization(self) -> Path:
        """The standardization of a classifier's features by public text (``model.standardize=public``)."""
        return self.root / "standardization.safetensors"

    @property
    def checkpoints(self) -> Path:
        """One directory per stored round."""
        return self.root / "checkpoints"

    @property
    def accuracy_plot(self) -> Path:
        """Accuracy and ε over rounds."""
        return self.root / "plots" / "accuracy.png"

    @property
    def diagnostics_plot(self) -> Path:
        """Singular values, ranks, angles, clipping and noise over rounds."""
        return self.root / "plots" / "diagnostics.png"

    @property
    def partitions_plot(self) -> Path:
        """Simulated clients only: number of examples per class of each client."""
        return self.root / "plots" / "partitions.png"

    @property
    def remote(self) -> Path:
        """Flower's run ID of a run on real nodes, and its directory on the server (JSON)."""
        return self.root / "remote.json"

    @property
    def remote_log(self) -> Path:
        """Output of the ServerApp of a run on real nodes."""
        return self.root / "server.log"

    @property
    def audit(self) -> Path:
        """Results of an audit."""
        return self.root / "audit.json"

    @property
    def roc_plot(self) -> Path:
        """ROC curves of an audit's attacks."""
        return self.root / "plots" / "roc.png"

    @property
    def server_ledger(self) -> Path:
        """The server's privacy ledger under client-level privacy."""
        return self.root / "server" / "ledger.sqlite"

    @property
    def account(self) -> Path:
        """The name of the run in its clients' ledgers under client-level privacy."""
        return account_path(self.server_ledger)

    def ledger(self, partition_id: int) -> Path:
        """A simulated client's privacy ledger; a real client stores its ledger on its own machine."""
        return self.root / "clients" / str(partition_id) / "ledger.sqlite"

    def personal(self, partition_id: int) -> Path:
        """Factors that a client keeps and never sends."""
        return self.root / "clients" / str(partition_id) / "personal.safetensors"


def account_path(ledger: Path) -> Path:
    """Return the file beside a server's ledger with the name of its run in the clients' ledgers."""
    return ledger.with_name("account")


def write_text(path: Path, text: str) -> None:
    """Write a file atomically and durably."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def replace_text(path: Path, text: str) -> None:
    """Write a file atomically, but not durably: after a power failure, it may be empty."""
    with replaced(path, durable=False) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def replaced(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield the path of a temporary file in the same directory, which replaces ``path`` atomically at the end.

    If the context raises, ``path`` stays as it is, and the temporary file is deleted.

    Args:
        path: The file to create or replace.
        durable: Whether the new content outlives a power failure.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        if durable:
            fsync_path(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        fsync_path(path.parent)


def fsync_path(path: Path) -> None:
    """Flush a file's content, or a directory's entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON document atomically."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def overwrite_json(path: Path, value: Any) -> None:
    """Write a JSON document over an existing file, not atomically: it needs no space beyond the file's own blocks."""
    with path.open("r+", encoding="utf-8") as stream:
        stream.write(json.dumps(value, indent=2, sort_keys=True) + "\n")
        stream.truncate()


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; return an empty dict if the file is missing or is not a readable JSON object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as JSON lines, atomically."""
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read rows from a file of JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def read_rows_if_any(path: Path) -> list[dict[str, Any]]:
    """Read rows as `read_rows` does; none if the file is missing or damaged, since a checkpoint has the rows, too."""
    try:
        return read_rows(path)
    except (OSError, ValueError):
        return []


def run_root(run_dir: str | None, run_id: int) -> Path:
    """Return ``run_dir`` if given, else ``runs/flower-RUN_ID`` in the working directory."""
    return Path(run_dir) if run_dir else Path.cwd() / "runs" / f"flower-{run_id}"


def ledger_path(ledger_dir: str | None, root: Path, partition_id: int) -> Path:
    """Return the path of a simulated client's ledger: in ``ledger_dir`` if given, else in the run directory."""
    return Path(ledger_dir) / f"{partition_id}.sqlite" if ledger_dir else RunFolder(root).ledger(partition_id)
