"""Many runs that differ in one thing at a time: each contender's learning rate is chosen first, then all are run."""

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
from fedsvd.errors import ConfigError, RunError
from fedsvd.runs.folder import write_rows

Rows = Sequence[Mapping[str, Any]]


def run_comparison(
    base: Sequence[str], settings: CompareConfig, folder: Path, tell: Callable[[str, int, int], None]
) -> list[dict[str, Any]]:
    """Run whatever is not in ``folder/results.jsonl`` yet, and return the rows of this comparison.

    Args:
        base: Overrides that all runs share.
        settings: The group ``compare``.
        folder: Where rows are appended as runs end; one that was cut off goes on where it was.
        tell: Called with phase, runs done and runs in all.

    Raises:
        ConfigError: Overrides that do not compose, before anything runs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "results.jsonl"
    tuning = tuning_jobs(settings)
    _check(base, settings, tuning)
    with Workers(settings.num_workers) as workers:
        _run_missing(workers, base, settings, tuning, path, tell)
        final = final_jobs(settings, chosen_learning_rates(select_rows(tuning, read_rows(path))))
        _run_missing(workers, base, settings, final, path, tell)
    return select_rows([*tuning, *final], read_rows(path))


def tuning_jobs(settings: CompareConfig) -> list[Job]:
    """Return the runs by which learning rates are chosen."""
    return [
        Job("tuning", task, contender, epsilon, settings.tuning_seed, rate)
        for task in ([settings.tuning_task] if settings.tuning_task else settings.chosen_tasks)
        for contender in settings.chosen_contenders
        for epsilon in settings.tuning_epsilons
        for rate in settings.learning_rates
    ]


def final_jobs(settings: CompareConfig, rates: Mapping[tuple[str, str, float], float]) -> list[Job]:
    """Return the runs that are reported, those of one task and seed together (they share what is computed once)."""
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
    """Return for each task, contender and tuning budget the rate that did best; of equals the smallest."""
    best: dict[tuple[str, str, float], tuple[float, float]] = {}
    for row in rows:
        if row["phase"] == "tuning":
            key, value = (row["task"], row["contender"], row["epsilon"]), (row["accuracy"], -row["learning_rate"])
            best[key] = max(best.get(key, (-math.inf, 0.0)), value)
    return {key: -value[1] for key, value in best.items()}


def nearest_budget(epsilon: float, settings: CompareConfig) -> float:
    """Return the tuning budget nearest to one, by ratio; no privacy goes with no privacy where that is tuned."""

    def distance(other: float) -> float:
        if not epsilon or not other:
            return 0.0 if epsilon == other else math.inf
        return abs(math.log(epsilon / other))

    return min(settings.tuning_epsilons, key=distance)


def overrides(job: Job, base: Sequence[str], settings: CompareConfig) -> list[str]:
    """Return the overrides of one run, which ``fedsvd train`` takes as they are."""
    privacy = ["privacy=dp_sgd", f"privacy.target_epsilon={job.epsilon:g}"] if job.epsilon else ["privacy=none"]
    return [
        *base,
        *settings.tasks[job.task],
        *privacy,
        *settings.contenders[job.contender],
        f"seed={job.seed}",
        f"train.learning_rate={job.learning_rate:g}",
        f"data.evaluate_on={'validation' if job.phase == 'tuning' else 'test'}",
    ]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read the rows that are whole; a run that was cut off while its row was written is run again."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return rows


def select_rows(jobs: Iterable[Job], rows: Rows) -> list[dict[str, Any]]:
    """Return the rows of some jobs: a folder may hold other seeds, budgets and rates, of earlier comparisons."""
    wanted = set(jobs)
    return [dict(row) for row in rows if _job(row) in wanted]


def _job(row: Mapping[str, Any]) -> Job:
    return Job(**{name: row[name] for name in Job.__annotations__})


def _check(base: Sequence[str], settings: CompareConfig, jobs: Iterable[Job]) -> None:
    from fedsvd.launch import check_config

    # Rates and seeds are numbers whose range the schema has checked: one of each is enough.
    for job in {(job.task, job.contender, job.epsilon): job for job in jobs}.values():
        check_config(compose(overrides(job, base, settings)))


def _run_missing(
    workers: Workers,
    base: Sequence[str],
    settings: CompareConfig,
    jobs: Sequence[Job],
    path: Path,
    tell: Callable[[str, int, int], None],
) -> None:
    rows = read_rows(path)
    # A line that was cut off must not swallow the next one.
    write_rows(path, rows)
    done: dict[Job, list[str]] = {_job(row): row["overrides"] for row in rows}
    for job in jobs:
        if job in done and done[job] != overrides(job, base, settings):
            raise ConfigError(
                f"{path} holds runs of {job.contender} on {job.task} with other overrides ({' '.join(done[job])}): "
                "choose another folder with run_dir=FOLDER."
            )
    missing = [job for job in jobs if job not in done]
    told = len(jobs) - len(missing)
    tell(jobs[0].phase, told, len(jobs))

    def keep(job: Job, result: Mapping[str, Any]) -> None:
        nonlocal told
        with path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({**asdict(job), **result}) + "\n")
        told += 1
        tell(jobs[0].phase, told, len(jobs))

    try:
        workers.run(split_jobs(missing, settings.num_workers), lambda job: overrides(job, base, settings), keep)
    except BrokenProcessPool as error:
        raise RunError(
            f"a worker was killed, most often for want of memory ({error}). What is done is in {path}: run the "
            f"same command again, perhaps with fewer than compare.num_workers = {settings.num_workers}."
        ) from error


def split_jobs(jobs: Sequence[Job], num_workers: int) -> list[list[Job]]:
    """Split jobs so that those of one task and seed, which share what is computed once, go to one worker.

    Where there are fewer such groups than workers, each group is dealt out to all of them.
    """
    groups: dict[tuple[str, int], list[Job]] = {}
    for job in jobs:
        groups.setdefault((job.task, job.seed), []).append(job)
    if len(groups) >= num_workers:
        return list(groups.values())
    return [group[first::num_workers] for group in groups.values() for first in range(num_workers)]
