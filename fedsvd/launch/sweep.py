"""Sweeps: plan the runs of a sweep, and run, resume or skip each of them."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import OmegaConf

from fedsvd.config.compose import check_overrides, compose, hydra_settings, sweep_choices
from fedsvd.errors import ConfigError, FedSVDError
from fedsvd.runs.folder import RunFolder, read_json, read_rows, write_json
from fedsvd.runs.record import FAILED, FINISHED

# Stores the arguments of a sweep in its directory, so that it can be resumed from the directory alone.
_SWEEP_FILE = "sweep.json"


@dataclass(frozen=True)
class SweepPlan:
    """A sweep that is about to run.

    Attributes:
        arguments: Command-line arguments for Hydra.
        folder: The sweep directory.
        total: Number of runs; for a search, number of trials.
    """

    arguments: tuple[str, ...]
    folder: Path
    total: int


def plan_sweep(overrides: Sequence[str]) -> SweepPlan:
    """Determine the directory and the number of runs of a sweep, and store its arguments for resuming.

    The directory of a run is named only after the swept values (``privacy.target_epsilon=1,seed=0``), so that each run
    has the same directory whenever the sweep is started.

    Args:
        overrides: The overrides of the sweep; may include ``resume=DIR`` of an earlier sweep.

    Raises:
        ConfigError: An override is invalid, the directory to resume is not that of a sweep, a required extra
            is not installed, or the directory holds runs with other settings.
    """
    overrides = _with_saved_overrides(list(overrides))
    check_overrides(overrides, multirun=True)
    hydra_overrides = [item for item in overrides if item.lstrip("~+").startswith("hydra")]
    first = [choices[0] for choices in sweep_choices(overrides).values()]
    settings = hydra_settings([*first, *hydra_overrides])
    sweeper: Any = OmegaConf.to_container(settings.hydra.sweeper)
    params = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
    # As in Hydra, the command line overrides what an experiment sweeps.
    choices = sweep_choices(params) | sweep_choices(overrides)
    check_overrides(
        [*(p for p in params if not sweep_choices([p]).keys() & sweep_choices(overrides).keys()), *overrides],
        multirun=True,
    )
    fixed = {key: values[0] for key, values in choices.items() if len(values) == 1}
    total = int(sweeper.get("n_trials") or math.prod(map(len, choices.values())))
    folder = Path(str(settings.hydra.sweep.dir)).resolve()
    _check_existing_runs(folder, fixed)
    saved = [item for item in overrides if not item.startswith("hydra.sweep.dir=")]
    write_json(folder / _SWEEP_FILE, {"words": saved, "total": total})
    added = [f"hydra.sweep.dir='{folder}'", f"hydra.job.config.override_dirname.exclude_keys=[{','.join(fixed)}]"]
    return SweepPlan(("--multirun", *saved, *added), folder, total)


def run_or_resume(overrides: Sequence[str], folder: Path) -> float:
    """Start or resume one run of a sweep, or skip it if it is finished; return its accuracy.

    Output goes to ``output.log``. A run that fails is recorded as failed and counts as accuracy 0, so that a learning
    rate at which training diverges does not stop the sweep.

    Args:
        overrides: The overrides of the run.
        folder: The run directory.

    Returns:
        The last held-out accuracy; 0 if the run failed or another process is running it.
    """
    paths = RunFolder(folder)
    try:
        if read_json(paths.record).get("state") == FINISHED and paths.adapter.is_dir():
            return _accuracy(paths)
        with _run_lock(folder), _stdout_to(folder / "output.log"):
            return _run(_with_resume(overrides, paths), folder)
    except Timeout:
        return 0.0  # Another process is running it and records the result.
    except FedSVDError as error:
        record = read_json(paths.record)
        write_json(paths.record, {**record, "state": FAILED, "reason": f"{type(error).__name__}: {error}"})
        return 0.0


def _run(overrides: Sequence[str], folder: Path) -> float:
    # Imported here, since skipping a finished run does not need it.
    from fedsvd import launch

    return launch.run(compose(list(overrides)), overrides, folder)


def _with_saved_overrides(overrides: list[str]) -> list[str]:
    """Put the saved overrides of the sweep that ``resume`` names, if any, before the new ones."""
    folders = [item.removeprefix("resume=") for item in overrides if item.startswith("resume=")]
    if not folders or folders[-1] == "null":
        return overrides
    folder = Path(folders[-1])
    saved = read_json(folder / _SWEEP_FILE).get("words")
    if saved is None:
        raise ConfigError(
            f"resume = {str(folder)!r} is not a sweep directory: it holds no {_SWEEP_FILE}. Give the directory that "
            "the sweep printed, or leave out -m to resume a single run."
        )
    new = [item for item in overrides if not item.startswith("resume=")]
    return [*saved, *new, f"hydra.sweep.dir='{folder.resolve()}'"]


def _check_existing_runs(folder: Path, fixed: Mapping[str, str]) -> None:
    """Check that the runs already in a directory have the overrides that this sweep does not vary.

    Raises:
        ConfigError: A run has other overrides.
    """
    for path in sorted(folder.rglob("overrides.json")):
        existing = {next(iter(sweep_choices([item]))): item for item in json.loads(path.read_text(encoding="utf-8"))}
        # Runs store the ledger folder a second time, as an absolute path.
        expected = {key: item for key, item in fixed.items() if key != "privacy.ledger_dir"}
        missing = [item for key, item in expected.items() if existing.get(key) != item]
        if missing:
            raise ConfigError(
                f"{path.parent} holds a run without {', '.join(missing)}: choose another directory for this sweep with "
                "hydra.sweep.dir=DIR."
            )


def _with_resume(overrides: Sequence[str], paths: RunFolder) -> list[str]:
    """Add the override that resumes the run, if it has a checkpoint."""
    if not any(paths.checkpoints.glob("round-*")):
        return list(overrides)
    return [*overrides, f"resume='{paths.root}'"]


def _accuracy(paths: RunFolder) -> float:
    accuracies = [row["accuracy"] for row in read_rows(paths.metrics) if row["accuracy"] is not None]
    return float(accuracies[-1])


@contextlib.contextmanager
def _stdout_to(path: Path) -> Iterator[None]:
    with path.open("a", encoding="utf-8") as log, contextlib.redirect_stdout(log):
        yield


def _run_lock(folder: Path) -> contextlib.AbstractContextManager[object]:
    """Lock a run directory; the operating system releases the lock when the process ends, even if it is killed.

    Raises:
        Timeout: Another process holds the lock.
    """
    return FileLock(folder / ".running").acquire(timeout=0)


def unfinished_runs(folder: Path) -> list[tuple[str, str]]:
    """Return name and reason of each run of a sweep that failed or that another process is still running."""
    runs = []
    for path in sorted(folder.rglob("run.json")):
        record = read_json(path)
        if record.get("state") != FINISHED:
            reason = record.get("reason") or "not finished; another process may be running it"
            runs.append((path.parent.relative_to(folder).as_posix(), str(reason)))
    return runs
