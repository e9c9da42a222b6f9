"""Comparison of contenders: tune each one, then run all of them on every task, budget and seed."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

from fedsvd.comparison.tuning import Cell, Choice, tune, tuning_jobs
from fedsvd.comparison.workers import Job, Workers
from fedsvd.config import Config
from fedsvd.config.compare import CompareConfig
from fedsvd.config.compose import compose
from fedsvd.config.data_keys import check_new_keys
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
    _check_overrides(base, settings, is_new=not path.exists())
    executed: list[Job] = []
    with Workers(settings.num_workers) as workers:

        def execute(jobs: Sequence[Job]) -> list[dict[str, Any]]:
            _run_missing(workers, base, settings, jobs, path, on_progress)
            executed.extend(jobs)
            return select_rows(jobs, read_rows(path))

        execute(final_jobs(settings, tune(settings, execute)))
    return select_rows(executed, read_rows(path))


def final_jobs(settings: CompareConfig, choices: Mapping[Cell, Choice]) -> list[Job]:
    """Return the reported runs, ordered by task and seed, since runs of one task and seed share cached data."""

    def job(task: str, contender: str, epsilon: float, seed: int) -> Job:
        own = settings.own_learning_rate(contender)
        tuned_on = settings.tuning_task or task
        choice = Choice(own) if own else choices[tuned_on, contender, settings.nearest_tuning_epsilon(epsilon)]
        factor = choice.clipping_factor if epsilon else 1.0
        return Job("final", task, contender, epsilon, seed, choice.learning_rate, factor)

    return [
        job(task, contender, epsilon, seed)
        for task in settings.chosen_tasks
        for seed in settings.seeds
        for contender in settings.chosen_contenders
        for epsilon in settings.epsilons
        if settings.runs_at(contender, epsilon)
    ]


def overrides(job: Job, base: Sequence[str], settings: CompareConfig) -> list[str]:
    """Return the overrides of one run; ``fedsvd train`` with these overrides repeats it."""
    shared = [*base, *settings.tasks[job.task], *settings.run_overrides(job.contender, job.epsilon, job.task)]
    if job.clipping_factor != 1:
        shared += _rescaled_clipping(compose([*shared, f"seed={job.seed}"]), job.clipping_factor)
    rate = [] if settings.own_learning_rate(job.contender) else [f"train.learning_rate={job.learning_rate:g}"]
    split = "validation" if job.phase == "tuning" else "test"
    return [*shared, f"seed={job.seed}", *rate, f"data.evaluate_on={split}"]


def _rescaled_clipping(config: Config, factor: float) -> list[str]:
    """Return overrides that multiply the clipping norm and leave the head's step on clipped gradients as it is."""
    rate = config.train.head_learning_rate
    head = [] if rate is None else [f"train.head_learning_rate={rate / factor:g}"]
    return [f"privacy.max_grad_norm={config.privacy.max_grad_norm * factor:g}", *head]


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
    # Rows of earlier versions have no clipping factor.
    return Job(**{name: row[name] for name in Job.__annotations__ if name in row})


def _check_overrides(base: Sequence[str], settings: CompareConfig, *, is_new: bool) -> None:
    from fedsvd.launch import check_config

    kinds: dict[str, str] = {}
    for job in _sample_jobs(settings):
        words = overrides(job, base, settings)
        try:
            config = compose(words)
            check_config(config)
            if is_new:
                check_new_keys(config, words)
        except ConfigError as error:
            # It may name a setting that comes from the contender, the task or the budget.
            budget = f"ε = {job.epsilon or math.inf:g}"
            raise ConfigError(f"{job.contender} on {job.task} at {budget} cannot run: {error}") from None
        _check_budget(config, job)
        kinds.setdefault(job.task, config.task)
        if config.task != kinds[job.task]:
            raise ConfigError(
                f"compare.contenders.{job.contender} predicts for model.task = {config.task} what others on "
                f"compare.tasks.{job.task} predict for {kinds[job.task]}: their metrics cannot be compared. Set "
                "model.task in the task only."
            )


def _sample_jobs(settings: CompareConfig) -> list[Job]:
    """Return one job per task, contender and budget: the schema has validated learning rates and seeds."""
    jobs: dict[Cell, Job] = {}
    for task, contender, epsilon in product(settings.chosen_tasks, settings.chosen_contenders, settings.epsilons):
        if settings.runs_at(contender, epsilon):
            rate = settings.own_learning_rate(contender) or settings.grid(contender, epsilon)[0]
            jobs[task, contender, epsilon] = Job("final", task, contender, epsilon, settings.seeds[0], rate)
    for job in tuning_jobs(settings):
        jobs.setdefault((job.task, job.contender, job.epsilon), job)
    return list(jobs.values())


def _check_budget(config: Config, job: Job) -> None:
    """Check that a run has the privacy under which the report shows it."""
    privacy = config.privacy
    budget = 0.0 if privacy.name == "none" else privacy.target_epsilon
    # As in the overrides of the run.
    if budget != float(f"{job.epsilon:g}"):
        raise ConfigError(
            f"compare.contenders.{job.contender} on compare.tasks.{job.task} has privacy.name = {privacy.name} and "
            f"privacy.target_epsilon = {privacy.target_epsilon:g}, but the report shows it under ε = "
            f"{job.epsilon or math.inf:g}: leave privacy to compare.epsilons, where 0 means none."
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
    done: dict[Job, list[str]] = {_job(row): row["overrides"] for row in rows}
    for job in jobs:
        if job in done and done[job] != overrides(job, base, settings):
            raise ConfigError(
                f"{path} holds runs of {job.contender} on {job.task} with other overrides ({' '.join(done[job])}): "
                "choose another directory with run_dir=DIR."
            )
    # Also removes a partly written last line, so that the next row does not continue it.
    write_rows(path, rows)
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

    Jobs of one task and seed share cached data, so they form one group. Groups that would be left for some of the
    workers only are divided among all of them.
    """
    groups: dict[tuple[str, int], list[Job]] = {}
    for job in jobs:
        groups.setdefault((job.task, job.seed), []).append(job)
    ordered = list(groups.values())
    whole = len(ordered) - len(ordered) % num_workers
    return ordered[:whole] + [group[first::num_workers] for group in ordered[whole:] for first in range(num_workers)]
