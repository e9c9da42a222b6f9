"""Comparison of contenders: choose a learning rate for each, then run all of them on every task, budget and seed."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fedsvd.comparison.workers import Job, Workers
from fedsvd.config.compare import CompareConfig
from fedsvd.config.compose import compose
from fedsvd.config.task import TASKS
from fedsvd.errors import ConfigError, RunError
from fedsvd.runs.folder import write_rows

Rows = Sequence[Mapping[str, Any]]


def run_comparison(
    base: Sequence[str], settings: CompareConfig, folder: Path, on_progress: Callable[[str, int, int], None]
) -> list[dict[str, Any]]:
    """Execute all runs that have no result in ``folder/results.jsonl`` yet, and return the rows of this comparison.

    A run that fails for another reason than divergence has no accuracy: its row has the reason under ``failed``, and it
    is run again by the next comparison in the folder.

    Args:
        base: Overrides that all runs share.
        settings: The configuration group ``compare``.
        folder: Directory of ``results.jsonl``, to which the row of each finished run is appended. An interrupted
            comparison resumes from it.
        on_progress: Called with the phase, the number of finished runs and the total number of runs.

    Raises:
        ConfigError: The overrides of a run are invalid (raised before anything runs), or the folder holds runs with
            other overrides.
        RunError: A worker process was killed, or all runs that would choose a learning rate failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "results.jsonl"
    tuning = tuning_jobs(settings)
    _check_overrides(base, settings, tuning)
    with Workers(settings.num_workers) as workers:
        _run_missing(workers, base, settings, tuning, path, on_progress)
        rates = chosen_learning_rates(_check_tuning(select_rows(tuning, read_rows(path))))
        final = final_jobs(settings, rates)
        _run_missing(workers, base, settings, final, path, on_progress)
    return select_rows([*tuning, *final], read_rows(path))


def tuning_jobs(settings: CompareConfig) -> list[Job]:
    """Return the runs from which learning rates are chosen."""
    return [
        Job("tuning", task, contender, epsilon, settings.tuning_seed, rate)
        for task in ([settings.tuning_task] if settings.tuning_task else settings.chosen_tasks)
        for contender in settings.chosen_contenders
        for epsilon in settings.tuning_epsilons
        for rate in settings.learning_rates
    ]


def final_jobs(settings: CompareConfig, rates: Mapping[tuple[str, str, float], float]) -> list[Job]:
    """Return the reported runs, ordered by task and seed, since runs of one task and seed share cached data."""
    return [
        Job(
            "final",
            task,
            contender,
            epsilon,
            seed,
            rates[settings.tuning_task or task, contender, nearest_budget(epsilon, settings)],
        )
        for task in settings.chosen_tasks
        for seed in settings.seeds
        for contender in settings.chosen_contenders
        for epsilon in settings.epsilons
    ]


def chosen_learning_rates(rows: Rows) -> dict[tuple[str, str, float], float]:
    """Return the learning rate of highest accuracy per task, contender and tuning budget; the smallest on ties."""
    best: dict[tuple[str, str, float], tuple[float, float]] = {}
    for row in rows:
        if row["phase"] == "tuning" and row["accuracy"] is not None:
            key, value = (row["task"], row["contender"], row["epsilon"]), (row["accuracy"], -row["learning_rate"])
            best[key] = max(best.get(key, (-math.inf, 0.0)), value)
    return {key: -value[1] for key, value in best.items()}


def _check_tuning(rows: Rows) -> Rows:
    """Return the rows of the tuning runs.

    Raises:
        RunError: A contender has no result from which to choose its learning rate.
    """
    cells: dict[tuple[str, str, float], list[Mapping[str, Any]]] = {}
    for row in rows:
        cells.setdefault((row["task"], row["contender"], row["epsilon"]), []).append(row)
    for (task, contender, epsilon), cell in cells.items():
        if all(row["accuracy"] is None for row in cell):
            raise RunError(
                f"no learning rate of {contender} on {task} at ε = {epsilon or math.inf:g} has a result: all "
                f"{len(cell)} runs failed ({cell[0]['failed']}). Remove the cause, then run the same command again."
            )
    return rows


def nearest_budget(epsilon: float, settings: CompareConfig) -> float:
    """Return the tuning budget nearest to ``epsilon`` by ratio.

    Runs without privacy (0) use the rate that was tuned without privacy, if it is among the tuning budgets.
    """

    def distance(other: float) -> float:
        if not epsilon or not other:
            return 0.0 if epsilon == other else math.inf
        return abs(math.log(epsilon / other))

    return min(settings.tuning_epsilons, key=distance)


def overrides(job: Job, base: Sequence[str], settings: CompareConfig) -> list[str]:
    """Return the overrides of one run; ``fedsvd train`` with these overrides repeats it."""
    privacy = ["privacy=dp_sgd", f"privacy.target_epsilon={job.epsilon:g}"] if job.epsilon else ["privacy=none"]
    contender = settings.contenders[job.contender]
    if not job.epsilon:
        # Without privacy, there is no noise to share.
        contender = [item for item in contender if not item.startswith("privacy.noise_share=")]
    return [
        *base,
        *settings.tasks[job.task],
        *privacy,
        *contender,
        f"seed={job.seed}",
        f"train.learning_rate={job.learning_rate:g}",
        f"data.evaluate_on={'validation' if job.phase == 'tuning' else 'test'}",
    ]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read all complete rows; a row that was only partly written is skipped, so that its run is repeated."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return rows


def select_rows(jobs: Iterable[Job], rows: Rows) -> list[dict[str, Any]]:
    """Return the rows of the given jobs, without those of earlier comparisons in the same folder."""
    selected = set(jobs)
    return [dict(row) for row in rows if _job(row) in selected]


def _job(row: Mapping[str, Any]) -> Job:
    return Job(**{name: row[name] for name in Job.__annotations__})


def _check_overrides(base: Sequence[str], settings: CompareConfig, jobs: Iterable[Job]) -> None:
    from fedsvd.launch import check_config

    # The schema has validated learning rates and seeds, so one job per task, contender and budget is enough.
    for job in {(job.task, job.contender, job.epsilon): job for job in jobs}.values():
        config = compose(overrides(job, base, settings))
        check_config(config)
        if TASKS[config.task].metrics[0].key != "accuracy":
            raise ConfigError(
                f"model.task = {config.model.task} is not possible with fedsvd compare, which compares accuracies: use "
                "a sweep (fedsvd train -m) and fedsvd report."
            )


def _run_missing(
    workers: Workers,
    base: Sequence[str],
    settings: CompareConfig,
    jobs: Sequence[Job],
    path: Path,
    on_progress: Callable[[str, int, int], None],
) -> None:
    # Runs that failed are run again.
    rows = [row for row in read_rows(path) if row["accuracy"] is not None]
    # Also removes a partly written last line, so that the next row does not continue it.
    write_rows(path, rows)
    done: dict[Job, list[str]] = {_job(row): row["overrides"] for row in rows}
    for job in jobs:
        if job in done and done[job] != overrides(job, base, settings):
            raise ConfigError(
                f"{path} holds runs of {job.contender} on {job.task} with other overrides ({' '.join(done[job])}): "
                "choose another directory with run_dir=DIR."
            )
    missing = [job for job in jobs if job not in done]
    num_done = len(jobs) - len(missing)
    on_progress(jobs[0].phase, num_done, len(jobs))

    def save(job: Job, result: Mapping[str, Any]) -> None:
        nonlocal num_done
        with path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({**asdict(job), **result}) + "\n")
        num_done += 1
        on_progress(jobs[0].phase, num_done, len(jobs))

    try:
        workers.run(split_jobs(missing, settings.num_workers), lambda job: overrides(job, base, settings), save)
    except BrokenProcessPool as error:
        raise RunError(
            f"a worker process was killed, most often because memory ran out ({error}). Finished runs are in {path}: "
            f"run the same command again, if necessary with compare.num_workers below {settings.num_workers}."
        ) from error


def split_jobs(jobs: Sequence[Job], num_workers: int) -> list[list[Job]]:
    """Split jobs into groups for the workers.

    Jobs of one task and seed share cached data, so they form one group. If there are fewer such groups than workers,
    each group is divided among all workers.
    """
    groups: dict[tuple[str, int], list[Job]] = {}
    for job in jobs:
        groups.setdefault((job.task, job.seed), []).append(job)
    if len(groups) >= num_workers:
        return list(groups.values())
    return [group[first::num_workers] for group in groups.values() for first in range(num_workers)]
