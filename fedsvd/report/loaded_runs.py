"""Run folders, read back: one, or all that lie below a sweep's folder."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsvd.config.compose import as_dict, compose, read_yaml
from fedsvd.errors import RunError
from fedsvd.runs.folder import RunFolder, read_json, read_rows

# Where a run lies says nothing about what it is.
_PLACES = ("run_dir", "resume")


@dataclass(frozen=True)
class Run:
    """What a run left behind.

    Attributes:
        folder: Its folder.
        name: The folder's name below the one that was asked for.
        config: Values by dotted key.
        overrides: What it was composed from.
        rows: Of ``metrics.jsonl``, at least one.
        privacy: ``privacy.json``; empty without privacy.
        record: ``run.json``; empty for runs that kept none.
        clients: Of ``partitions.json``; empty where the clients were not simulated.
        samples: Of ``samples.json``; empty but for language models.
    """

    folder: Path
    name: str
    config: Mapping[str, Any]
    overrides: Sequence[str]
    rows: Sequence[Mapping[str, Any]]
    privacy: Mapping[str, Any]
    record: Mapping[str, Any]
    clients: Sequence[Mapping[str, Any]]
    samples: Sequence[Mapping[str, str]] = ()

    @property
    def measured(self) -> list[Mapping[str, Any]]:
        """The rows that were evaluated."""
        return [row for row in self.rows if row["accuracy"] is not None]

    @property
    def accuracy(self) -> float | None:
        """The last held-out accuracy."""
        return self.measured[-1]["accuracy"] if self.measured else None

    @property
    def epsilon(self) -> float | None:
        """The largest ε that a client has spent."""
        spent = [row["epsilon"] for row in self.rows if row["epsilon"] is not None]
        return max(spent) if spent else None

    @property
    def budget(self) -> float | None:
        """The ε that the run was allowed; None without privacy."""
        private = self.config["privacy.name"] != "none"
        return float(self.config["privacy.target_epsilon"]) if private else None

    @property
    def state(self) -> str:
        """``finished``, ``failed``, or ``unfinished``."""
        told = self.record.get("state")
        if told in ("finished", "failed"):
            return str(told)
        done = self.rows[-1]["server_round"] >= self.config["train.num_rounds"]
        return "finished" if told is None and done else "unfinished"


def find_runs(folders: Sequence[Path]) -> list[Run]:
    """Read all runs that the folders are or hold.

    Raises:
        RunError: A folder that is not there or holds no run with a row, or a file that cannot be read.
    """
    runs = []
    for folder in folders:
        if not folder.is_dir():
            raise RunError(f"{folder} is not a folder; give the folder of a run, or one that holds runs.")
        found = [read_run(path, folder) for path in sorted(_run_folders(folder))]
        if not found:
            raise RunError(
                f"{folder} holds no run that has written a row (no metrics.jsonl in it or below it); give the folder "
                "of a run, or one that holds runs."
            )
        runs += found
    return list({run.folder.resolve(): run for run in runs}.values())


def read_run(folder: Path, below: Path) -> Run:
    """Read one run folder.

    Raises:
        RunError: Its rows cannot be read.
        ConfigError: Its configuration cannot be read.
    """
    paths = RunFolder(folder)
    try:
        rows = read_rows(paths.metrics)
    except (OSError, ValueError) as error:
        raise RunError(f"{paths.metrics} cannot be read ({error}): it must hold a JSON object a line.") from error
    name = folder.name if folder == below else folder.relative_to(below).as_posix()
    return Run(
        folder,
        name,
        flat(read_yaml(paths.config)),
        _list(paths.overrides),  # A run that Flower's own command started has none.
        rows,
        read_json(paths.privacy),
        read_json(paths.record),
        read_json(paths.partitions).get("clients", []),
        _list(paths.samples),
    )


def _list(path: Path) -> list[Any]:
    try:
        return list(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return []


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values by dotted key; tuples become lists, as in YAML."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return result


def changed_keys(run: Run) -> list[tuple[str, Any, Any]]:
    """Return key, default and value for all that differs from what ``fedsvd train`` alone would run."""
    default = flat(as_dict(compose()))
    pairs = [(key, default.get(key, "–"), value) for key, value in run.config.items() if key not in _PLACES]
    return [(key, old, new) for key, old, new in pairs if old != new]


def varied_keys(runs: Sequence[Run]) -> list[str]:
    """Return the keys in which runs differ."""
    keys = dict.fromkeys(key for run in runs for key in run.config if key not in _PLACES)
    return [key for key in keys if len({json.dumps(run.config.get(key)) for run in runs}) > 1]


def _run_folders(folder: Path) -> Iterator[Path]:
    if (folder / "metrics.jsonl").is_file():
        if (folder / "metrics.jsonl").stat().st_size:
            yield folder
        return
    for path in folder.iterdir():
        if path.is_dir() and not path.name.startswith("."):
            yield from _run_folders(path)
