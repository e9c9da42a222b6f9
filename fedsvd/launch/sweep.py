"""Sweeps: plan the runs of a sweep, and run, resume or skip each of them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fedsvd.config.compose import check_overrides, compose, read_yaml, sweep_choices
from fedsvd.config.data_keys import check_new_keys
from fedsvd.config.flat import flatten
from fedsvd.config.paths import absolute_paths, override_key
from fedsvd.config.quoting import path_override, read_path
from fedsvd.config.run_names import SWEEP_FILE
from fedsvd.config.search_path import merge_search_paths, search_paths
from fedsvd.config.task import last_value, score_metric
from fedsvd.errors import ConfigError, DivergedError, FedSVDError, InUseError, RunError
from fedsvd.launch.resume import check_directory
from fedsvd.launch.sweep_directories import check_existing_runs, existing_names
from fedsvd.launch.sweep_settings import first_choices, sweep_settings
from fedsvd.runs.folder import RunFolder, read_json, read_rows, write_json
from fedsvd.runs.ownership import create_directory, is_resumable, owned
from fedsvd.runs.record import FINISHED, record_failure
from fedsvd.runs.storage import storage_errors

_SWEEP_DIR, _MAX_FAILURES = "hydra.sweep.dir", "hydra.sweeper.max_failure_rate"


@dataclass(frozen=True)
class SweepPlan:
    """A sweep that is about to run.

    Attributes:
        arguments: Command-line arguments for Hydra.
        folder: The sweep directory.
        total: Number of runs; for a search, number of trials.
        working_directory: The directory that swept relative paths refer to.
    """

    arguments: tuple[str, ...]
    folder: Path
    total: int
    working_directory: Path


def plan_sweep(overrides: Sequence[str]) -> SweepPlan:
    """Determine the directory and the number of runs of a sweep, and store its arguments for resuming.

    The directory of a run is named only after the swept values (``privacy.target_epsilon=1,seed=0``), so that each run
    has the same directory whenever the sweep is started. A run of a sweep that is extended by another key keeps its
    directory.

    Args:
        overrides: The overrides of the sweep; may include ``resume=DIR`` of an earlier sweep.

    Raises:
        ConfigError: An override is invalid, an option with a sweep of its own is swept, the directory to resume is not
            that of a sweep, a required extra is not installed, or the directory holds runs with other settings, or
            runs that this sweep would repeat.
        ResumeError: ``hydra.sweep.dir`` is another directory than that of the sweep to resume.
    """
    is_new = _resumed_folder(overrides) is None
    overrides, working_directory = _with_saved_overrides(list(overrides))
    check_overrides(overrides, multirun=True)
    settings = sweep_settings(overrides)
    sweeper: Any = OmegaConf.to_container(settings.hydra.sweeper)
    params = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
    # As in Hydra, the command line overrides what an experiment sweeps.
    params = [item for item in params if override_key(item) not in sweep_choices(overrides)]
    complete = [*params, *overrides]
    check_overrides(complete, multirun=True)
    choices = sweep_choices(complete)
    _check_configurations(complete, choices, is_new=is_new)
    swept = [key for key, values in choices.items() if len(values) > 1]
    overrides = absolute_paths(overrides, compose([*search_paths(overrides), *first_choices(choices)]), swept=swept)
    choices |= sweep_choices(overrides)
    fixed = {key: values[0] for key, values in choices.items() if key not in swept}
    trials = int(sweeper.get("n_trials") or 0)
    total = trials or math.prod(map(len, choices.values()))
    folder = _sweep_directory(settings)
    check_existing_runs(folder, fixed)
    with contextlib.chdir(working_directory):
        names = existing_names(folder, choices, search_paths(overrides), is_search=trials > 0)
    saved = [item for item in overrides if override_key(item) != _SWEEP_DIR]
    record = {"words": saved, "total": total, "working_directory": str(working_directory), "names": names}
    write_json(folder / SWEEP_FILE, record)
    added = [path_override(_SWEEP_DIR, folder), f"hydra.job.config.override_dirname.exclude_keys=[{','.join(fixed)}]"]
    # A search continues after a failed trial.
    tolerant = [f"{_MAX_FAILURES}=1.0"] if "max_failure_rate" in sweeper and not _is_set(_MAX_FAILURES, saved) else []
    return SweepPlan(("--multirun", *saved, *added, *tolerant), folder, total, working_directory)


def run_or_resume(overrides: Sequence[str], folder: Path) -> float:
    """Start or resume one run of a sweep, or skip it if it is finished; return its accuracy.

    Output goes to ``output.log``. A run that fails is recorded as failed, and the sweep continues.

    Args:
        overrides: The overrides of the run.
        folder: The run directory.

    Returns:
        The last held-out accuracy; 0 if training diverged, since a search must avoid its settings; NaN if the run
        failed for another reason or another process is running it, since this says nothing about its settings.
    """
    paths = RunFolder(folder)
    try:
        if read_json(paths.record).get("state") == FINISHED and paths.adapter.is_dir():
            return _accuracy(paths)
        with owned(folder):
            return _run_recorded(overrides, paths)
    except InUseError:
        return math.nan  # Another process is running it and records the result.
    except RunError as error:
        record_failure(paths, error)
        return math.nan


def _run_recorded(overrides: Sequence[str], paths: RunFolder) -> float:
    try:
        with storage_errors(paths.root), _stdout_to(paths.root / "output.log"):
            return _run(_with_resume(overrides, paths), paths.root)
    except FedSVDError as error:
        record_failure(paths, error)
        return 0.0 if isinstance(error, DivergedError) else math.nan


def _run(overrides: Sequence[str], folder: Path) -> float:
    # Imported here, since skipping a finished run does not need it.
    from fedsvd import launch

    return launch.run(compose(list(overrides)), overrides, folder)


def _resumed_folder(overrides: Sequence[str]) -> Path | None:
    folders = [item.removeprefix("resume=") for item in overrides if item.startswith("resume=")]
    return Path(read_path(folders[-1])) if folders and folders[-1] != "null" else None


def _with_saved_overrides(overrides: list[str]) -> tuple[list[str], Path]:
    """Put the saved overrides of the sweep that ``resume`` names, if any, before the new ones.

    Returns:
        The overrides, and the directory that swept relative paths refer to.
    """
    folder = _resumed_folder(overrides)
    if folder is None:
        return overrides, Path.cwd()
    sweep = read_json(folder / SWEEP_FILE)
    saved = sweep.get("words")
    if saved is None:
        raise ConfigError(
            f"resume = {str(folder)!r} is not a sweep directory: it holds no {SWEEP_FILE}. Give the directory that "
            "the sweep printed, or leave out -m to resume a single run."
        )
    check_directory(folder, overrides, [_SWEEP_DIR])
    new = [item for item in overrides if not item.startswith("resume=")]
    before = Path(sweep.get("working_directory", ""))
    complete = [*merge_search_paths([*saved, *new]), path_override(_SWEEP_DIR, folder.resolve())]
    return complete, before if before.is_dir() else Path.cwd()


def _is_set(key: str, overrides: Sequence[str]) -> bool:
    return any(override_key(item) == key for item in overrides)


def _sweep_directory(settings: DictConfig) -> Path:
    """Return the sweep directory; one that is named after the time is created, and belongs to this sweep alone."""
    folder = Path(str(settings.hydra.sweep.dir)).absolute()
    pattern = OmegaConf.to_container(settings, resolve=False)["hydra"]["sweep"]["dir"]  # type: ignore[call-overload,index]
    return create_directory(folder, _SWEEP_DIR) if "${now:" in pattern else folder.resolve()


def _check_configurations(overrides: Sequence[str], choices: Mapping[str, Sequence[str]], *, is_new: bool) -> None:
    """Check each choice, with the first choices of the other keys, before any run starts.

    Raises:
        ConfigError: See `fedsvd.launch.check_config` and, for a new sweep, `fedsvd.config.data_keys.check_new_keys`.
    """
    # Imported here, since it loads torch.
    from fedsvd.launch import check_config

    added, first = search_paths(overrides), {key: values[0] for key, values in choices.items()}
    others = [{**first, key: choice} for key, values in choices.items() for choice in values[1:]]
    for run in ([*added, *items.values()] for items in (first, *others)):
        config = compose(run)
        check_config(config)
        if is_new:
            check_new_keys(config, run)


def _with_resume(overrides: Sequence[str], paths: RunFolder) -> list[str]:
    """Add the override that resumes the run, if it has something to resume."""
    if not is_resumable(paths.root):
        return list(overrides)
    return [*overrides, path_override("resume", paths.root)]


def _accuracy(paths: RunFolder) -> float:
    score = last_value(read_rows(paths.metrics), score_metric(flatten(read_yaml(paths.config))))
    return math.nan if score is None else score


@contextlib.contextmanager
def _stdout_to(path: Path) -> Iterator[None]:
    with path.open("a", encoding="utf-8") as log, contextlib.redirect_stdout(log):
        yield


def unfinished_runs(folder: Path) -> list[tuple[str, str]]:
    """Return name and reason of each run of a sweep that failed or that another process is still running."""
    runs = []
    for path in sorted(folder.rglob("run.json")):
        record = read_json(path)
        if record.get("state") != FINISHED:
            reason = record.get("reason") or "not finished; another process may be running it"
            runs.append((path.parent.relative_to(folder).as_posix(), str(reason)))
    return runs
