"""A run's folder: where everything that a run leaves behind lies, written so that a crash tears nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run.

    Attributes:
        root: Hydra's output directory, or the folder that ``run_dir`` names.
    """

    root: Path

    @property
    def config(self) -> Path:
        """The resolved configuration (YAML)."""
        return self.root / "config.yaml"

    @property
    def overrides(self) -> Path:
        """The overrides that it was composed from (JSON list); resuming starts from them."""
        return self.root / "overrides.json"

    @property
    def classes(self) -> Path:
        """Names of the classes, in the order of the model's outputs (JSON list)."""
        return self.root / "classes.json"

    @property
    def samples(self) -> Path:
        """What a language model answers to a few held-out prompts, before and after training."""
        return self.root / "samples.json"

    @property
    def record(self) -> Path:
        """When it ran, with which versions, on which held-out data, and whether it came to its end."""
        return self.root / "run.json"

    @property
    def tracking(self) -> Path:
        """The run's name at the service that is told of it."""
        return self.root / "tracking.json"

    @property
    def partitions(self) -> Path:
        """Who holds what, where the clients are simulated: examples by class, and fingerprints."""
        return self.root / "partitions.json"

    @property
    def metrics(self) -> Path:
        """One JSON row a round."""
        return self.root / "metrics.jsonl"

    @property
    def privacy(self) -> Path:
        """What each client has spent."""
        return self.root / "privacy.json"

    @property
    def adapter(self) -> Path:
        """The final PEFT adapter."""
        return self.root / "adapter"

    @property
    def checkpoints(self) -> Path:
        """One folder a kept round."""
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
        """Who holds what, where the clients are simulated."""
        return self.root / "plots" / "partitions.png"

    @property
    def remote(self) -> Path:
        """Flower's number of a run on real nodes, and its folder on the server (JSON)."""
        return self.root / "remote.json"

    @property
    def remote_log(self) -> Path:
        """What the ServerApp of a run on real nodes printed."""
        return self.root / "server.log"

    @property
    def audit(self) -> Path:
        """What an audit found."""
        return self.root / "audit.json"

    @property
    def roc_plot(self) -> Path:
        """An audit's attacks: true against false positives."""
        return self.root / "plots" / "roc.png"

    @property
    def server_ledger(self) -> Path:
        """The server's account of rounds under client-level privacy."""
        return self.root / "server" / "ledger.sqlite"

    def ledger(self, partition_id: int) -> Path:
        """A simulated client's private ledger; a real client keeps its own elsewhere."""
        return self.root / "clients" / str(partition_id) / "ledger.sqlite"

    def personal(self, partition_id: int) -> Path:
        """A client's factors that it never sends."""
        return self.root / "clients" / str(partition_id) / "personal.safetensors"


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all, and make it durable."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    fsync_path(path.parent)


def fsync_path(path: Path) -> None:
    """Make a file's content, or a folder's entries, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON document whole or not at all."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; an empty one where there is no file, or none that can be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write JSON rows whole or not at all."""
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read JSON rows."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def run_root(run_dir: str | None, run_id: int) -> Path:
    """Return a run's folder: the configured one, or one named after Flower's run below the working directory."""
    return Path(run_dir) if run_dir else Path.cwd() / "runs" / f"flower-{run_id}"


def ledger_path(ledger_dir: str | None, root: Path, partition_id: int) -> Path:
    """Return a simulated client's ledger: in the folder that is kept from run to run, or else in the run's own."""
    return Path(ledger_dir) / f"{partition_id}.sqlite" if ledger_dir else RunFolder(root).ledger(partition_id)
