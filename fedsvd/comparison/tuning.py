"""The choice of each contender's learning rate and clipping norm, from runs evaluated on validation texts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedsvd.comparison.workers import Job
from fedsvd.config.compare import CompareConfig, at_an_end
from fedsvd.errors import RunError

Rows = Sequence[Mapping[str, Any]]
# Task, contender and tuning budget.
Cell = tuple[str, str, float]


@dataclass(frozen=True)
class Choice:
    """What tuning chose for one cell.

    Attributes:
        learning_rate: The learning rate.
        clipping_factor: The clipping norm, as a multiple of ``privacy.max_grad_norm``.
    """

    learning_rate: float
    clipping_factor: float = 1.0


def tuning_jobs(settings: CompareConfig) -> list[Job]:
    """Return the runs from which learning rates are chosen."""
    return [
        Job("tuning", task, contender, epsilon, settings.tuning_seed, rate)
        for task in ([settings.tuning_task] if settings.tuning_task else settings.chosen_tasks)
        for contender in settings.chosen_contenders
        for epsilon in settings.tuning_epsilons
        for rate in settings.grid(contender, epsilon)
    ]


def extension_jobs(settings: CompareConfig, rows: Rows) -> list[Job]:
    """Return runs with one more learning rate for each cell whose best rate is at an end of those tried.

    Args:
        settings: The configuration group ``compare``.
        rows: The rows of all tuning runs so far, without those of other clipping norms.
    """
    cells = _tuning_cells(rows)
    return [
        Job("tuning", *cell, settings.tuning_seed, rate)
        for cell, choice in choose(rows).items()
        if (rate := _next_rate(sorted({row["learning_rate"] for row in cells[cell]}), choice.learning_rate)) is not None
    ]


def _next_rate(rates: Sequence[float], best: float) -> float | None:
    """Return the rate that continues the ascending ``rates`` beyond ``best``; None if ``best`` is inside them."""
    if not at_an_end(rates, best):
        return None
    neighbour = rates[1] if best == rates[0] else rates[-2]
    # Two digits: the same rate in each comparison, and one that can be read.
    return float(f"{best * best / neighbour:.2g}")


def clipping_jobs(settings: CompareConfig, rates: Mapping[Cell, Choice]) -> list[Job]:
    """Return the runs from which clipping norms are chosen, given the chosen learning rates.

    The learning rate times the clipping norm stays the same: where most gradients are clipped, the norm changes the
    step no more than the rate does, and both could not be told apart.
    """
    return [
        Job("tuning", task, contender, epsilon, settings.tuning_seed, choice.learning_rate / factor, factor)
        for (task, contender, epsilon), choice in rates.items()
        for factor in settings.clipping_factors or ()
        if epsilon
    ]


def choose(rows: Rows) -> dict[Cell, Choice]:
    """Return the settings of highest accuracy per task, contender and tuning budget; on ties the smallest rate.

    Raises:
        RunError: A contender has no result from which to choose.
    """
    chosen = {}
    for (task, contender, epsilon), cell in _tuning_cells(rows).items():
        results = [row for row in cell if row["accuracy"] is not None]
        if not results:
            raise RunError(
                f"no learning rate of {contender} on {task} at ε = {epsilon or math.inf:g} has a result: all "
                f"{len(cell)} runs failed ({cell[0]['failed']}). Remove the cause, then run the same command again."
            )
        best = max(results, key=lambda row: (row["accuracy"], -row["learning_rate"]))
        chosen[task, contender, epsilon] = Choice(best["learning_rate"], best.get("clipping_factor", 1.0))
    return chosen


def _tuning_cells(rows: Rows) -> dict[Cell, list[Mapping[str, Any]]]:
    cells: dict[Cell, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["phase"] == "tuning":
            cells.setdefault((row["task"], row["contender"], row["epsilon"]), []).append(row)
    return cells


def tune(settings: CompareConfig, execute: Callable[[Sequence[Job]], Rows]) -> dict[Cell, Choice]:
    """Choose the settings of each contender.

    Args:
        settings: The configuration group ``compare``.
        execute: Function that runs jobs and returns their rows.

    Raises:
        RunError: All runs that would choose a contender's learning rate failed.
    """
    rows: list[Mapping[str, Any]] = []
    jobs = tuning_jobs(settings)
    for _ in range(1 + settings.grid_extensions):
        if not jobs:
            break
        rows += execute(jobs)
        jobs = extension_jobs(settings, rows)
    if jobs := clipping_jobs(settings, choose(rows)):
        rows += execute(jobs)
    return choose(rows)
