"""Read run directories for reports: one run, or all runs below a directory such as a sweep's."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsvd.config.compose import as_dict, compose, read_yaml
from fedsvd.config.flat import flatten
from fedsvd.config.run_names import SWEEP_FILE
from fedsvd.config.task import Metric, last_value, score_metric
from fedsvd.errors import RunError
from fedsvd.privacy.claim import Claim, weakest_claim
from fedsvd.privacy.round_settings import ROW_KEY
from fedsvd.report.labels import planned_rounds, trains_factors
from fedsvd.runs.folder import RunFolder, read_json, read_rows
from fedsvd.runs.intact import check_documents, check_keys

# The location of a run directory is not a setting worth reporting.
_LOCATION_KEYS = ("run_dir", "resume")


@dataclass(frozen=True)
class Run:
    """The contents of a run directory.

    Attributes:
        folder: The run directory.
        name: Path of the run directory relative to the directory that was searched.
        config: Configuration values by dotted key.
        overrides: Overrides that the configuration was composed from.
        rows: Rows of ``metrics.jsonl``, at least one.
        privacy: Content of ``privacy.json``; empty without privacy.
        claim: The guarantee of the whole run, the weakest of its rounds.
        record: Content of ``run.json``; empty for runs that wrote none.
        clients: Clients in ``partitions.json``; empty if the clients were not simulated.
        samples: Content of ``samples.json``; empty except for language models.
    """

    folder: Path
    name: str
    config: Mapping[str, Any]
    overrides: Sequence[str]
    rows: Sequence[Mapping[str, Any]]
    privacy: Mapping[str, Any]
    claim: Claim
    record: Mapping[str, Any]
    clients: Sequence[Mapping[str, Any]]
    samples: Sequence[Mapping[str, str]] = ()

    @property
    def evaluated_rows(self) -> list[Mapping[str, Any]]:
        """The rows of the rounds that have a score."""
        return [row for row in self.rows if row.get(self.metric.key) is not None]

    @property
    def metric(self) -> Metric:
        """The metric by which runs of its task are compared."""
        return score_metric(self.config)

    @property
    def score(self) -> float | None:
        """The last held-out value of that metric."""
        return last_value(self.rows, self.metric)

    @property
    def epsilon(self) -> float | None:
        """The largest ε that a client has spent; None without a guarantee."""
        return self.claim.epsilon

    @property
    def budget(self) -> float | None:
        """The configured ε budget; None without a guarantee."""
        return float(self.config["privacy.target_epsilon"]) if self.claim.is_given else None

    @property
    def is_trained(self) -> bool:
        """Whether a client's update was used in a round, or no round has ended yet."""
        rounds = [row for row in self.rows if row["server_round"]]
        return not rounds or any(row.get("clients_used", 1) for row in rounds)

    @property
    def state(self) -> str:
        """``finished``, ``failed``, or ``unfinished``; a run that used no client's update has failed, not finished."""
        recorded = self.record.get("state")
        done = self.rows[-1]["server_round"] >= planned_rounds(self.config)
        if recorded == "finished" or (recorded is None and done):
            return "finished" if self.is_trained else "failed"
        return "failed" if recorded == "failed" else "unfinished"

    @property
    def reason(self) -> str:
        """Why the run has not finished; empty if this is not known."""
        recorded = str(self.record.get("reason") or "")
        return recorded if recorded or self.is_trained else "no client's update was used in any round"


def find_runs(folders: Sequence[Path]) -> list[Run]:
    """Read all runs in the given directories, each once.

    Args:
        folders: Run directories, or directories that contain run directories at any depth.

    Raises:
        RunError: A directory is missing or contains no run with a row, or a file cannot be read.
    """
    runs = []
    for folder in folders:
        if not folder.is_dir():
            raise RunError(f"{folder} is not a directory; give a run directory, or a directory that contains runs.")
        found = [read_run(path, folder) for path in sorted(_run_folders(folder))]
        if not found:
            raise RunError(
                f"{folder} contains no run with results (no non-empty metrics.jsonl in it or below it); give a run "
                "directory, or a directory that contains runs."
            )
        runs += found
    return list({run.folder.resolve(): run for run in runs}.values())


def read_run(folder: Path, parent: Path) -> Run:
    """Read one run directory.

    Args:
        folder: The run directory.
        parent: Directory that the run's name is relative to; may be ``folder`` itself.

    Raises:
        RunError: The rows cannot be read, or those of a finished run end early.
        ConfigError: The configuration cannot be read.
    """
    paths = RunFolder(folder)
    check_documents(paths)
    try:
        rows = read_rows(paths.metrics)
    except (OSError, ValueError) as error:
        raise RunError(f"{paths.metrics} cannot be read ({error}): expected one JSON object per line.") from error
    name = folder.name if folder == parent else folder.relative_to(parent).as_posix()
    config, privacy, record = flatten(read_yaml(paths.config)), read_json(paths.privacy), read_json(paths.record)
    check_keys(paths, config)
    _check_last_round(paths, rows, config, record)
    claim = weakest_claim(rows, config, privacy.get("clients"), _interrupted(rows, config, record))
    if not claim.is_given:
        # The ε of single rounds would suggest a guarantee that the run does not give.
        rows = [{**row, "epsilon": None, "client_epsilons": {}} for row in rows]
    return Run(
        folder,
        name,
        config,
        _read_list(paths.overrides),  # Runs started by ``flwr run`` have none.
        rows,
        privacy,
        claim,
        record,
        read_json(paths.partitions).get("clients", []),
        _read_list(paths.samples),
    )


def _check_last_round(
    paths: RunFolder, rows: Sequence[Mapping[str, Any]], config: Mapping[str, Any], record: Mapping[str, Any]
) -> None:
    """Check that a finished run has rows up to its last round, since rows that are missing were charged, too."""
    last = int((record.get("stopped_early") or {}).get("server_round", planned_rounds(config)))
    if rows and rows[-1]["server_round"] < last and record.get("state") == "finished":
        raise RunError(
            f"{paths.metrics} ends with round {rows[-1]['server_round']}, but the run has finished {last} rounds: the "
            "file is truncated. Restore it from a copy."
        )


def _interrupted(rows: Sequence[Mapping[str, Any]], config: Mapping[str, Any], record: Mapping[str, Any]) -> int:
    """Return how many processes may have been interrupted, or are, in the round after the last row."""
    if not rows or rows[-1]["server_round"] >= config["train.num_rounds"] or record.get("state") == "finished":
        return 0
    counted = max((row.get(ROW_KEY) or {}).get("interrupted", 0) for row in rows)
    return 1 + int(record.get("interrupted", 0)) - int(counted)


def _read_list(path: Path) -> list[Any]:
    try:
        return list(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return []


def changed_keys(run: Run) -> list[tuple[str, Any, Any]]:
    """Return (key, default, value) for every setting that differs from ``fedsvd train`` without overrides."""
    default = flatten(as_dict(compose()))
    pairs = [(key, default.get(key, "–"), value) for key, value in run.config.items() if key not in _LOCATION_KEYS]
    return [(key, old, new) for key, old, new in pairs if old != new and _has_effect(key, run.config)]


def _has_effect(key: str, config: Mapping[str, Any]) -> bool:
    """Return whether a run uses a setting; the method's options have no effect in a run that trains no factor."""
    if key.startswith("data.class_descriptions"):
        return config.get("train.head_init") == "zero_shot"
    return not key.startswith("method.") or trains_factors(config)


def best_run(runs: Sequence[Run]) -> Run | None:
    """Return the run of highest score that has not failed; None if there is none, or their metrics differ."""
    candidates = [run for run in runs if run.score is not None and run.state != "failed"]
    if len({run.metric for run in candidates}) > 1:
        return None
    return max(candidates, key=lambda run: run.score or 0.0, default=None)


def common_metric(runs: Sequence[Run]) -> Metric:
    """Return the metric by which runs are compared; it is called a score if they have different tasks."""
    metrics = {run.metric for run in runs}
    return metrics.pop() if len(metrics) == 1 else Metric("", "score", is_share=False)


def varied_keys(runs: Sequence[Run]) -> list[str]:
    """Return the configuration keys whose values differ between runs."""
    keys = dict.fromkeys(key for run in runs for key in run.config if key not in _LOCATION_KEYS)
    return [key for key in keys if len({json.dumps(run.config.get(key)) for run in runs}) > 1]


def repeated_runs(runs: Sequence[Run]) -> list[Run]:
    """Return the runs with the settings, seed included, of an earlier one in the list."""
    first: dict[str, Run] = {}
    keys = [json.dumps([(k, v) for k, v in sorted(run.config.items()) if k not in _LOCATION_KEYS]) for run in runs]
    return [run for key, run in zip(keys, runs, strict=True) if first.setdefault(key, run) is not run]


def _run_folders(folder: Path) -> Iterator[Path]:
    if (folder / "metrics.jsonl").is_file():
        if (folder / "metrics.jsonl").stat().st_size:
            yield folder
        # A sweep of one run writes into its own directory, and may have been extended by an earlier version.
        if not (folder / SWEEP_FILE).exists():
            return
    for path in folder.iterdir():
        if path.is_dir() and not path.name.startswith("."):
            yield from _run_folders(path)
