"""Result of ``fedsvd compare``: tables with standard errors, paired differences and a plot.

A contender is a method with its options, as named in ``compare.contenders``; a cell is one contender on one task at
one ε.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.container import ErrorbarContainer
from matplotlib.ticker import PercentFormatter
from scipy import stats

from fedsvd.config.compare import CompareConfig, at_an_end
from fedsvd.config.task import TASKS, Metric
from fedsvd.report.figures import literal_legend, log_failure, new_figure, save_png, set_literal
from fedsvd.report.literal import code_span, markdown_text
from fedsvd.report.plateau import plateau_section
from fedsvd.report.plots import PALETTE
from fedsvd.report.statistics import mean_and_error, mean_with_error, paired_difference
from fedsvd.runs.folder import write_text

Rows = Sequence[Mapping[str, Any]]
_MARKERS = "osD^v<>PX*ph"


def write_report(rows: Rows, settings: CompareConfig, folder: Path, command: str) -> Path:
    """Write ``comparison.md`` and ``comparison.png`` and return the path of the former.

    Args:
        rows: Rows of ``results.jsonl``.
        settings: Configuration group ``compare``.
        folder: Output directory.
        command: Command line of the comparison, quoted at the top of the report.
    """
    plot_comparison(rows, settings, folder / "comparison.png")
    parts = [code_span(command), *(_task_section(rows, settings, task) for task in settings.chosen_tasks)]
    if len(settings.chosen_contenders) > 1:
        parts.append(_rank_section(rows, settings))
    metrics = {task: task_metric(rows, task) for task in settings.chosen_tasks}
    if plateau := plateau_section(rows, settings, metrics):
        parts.append(plateau)
    path = folder / "comparison.md"
    write_text(path, "\n\n".join(parts) + "\n")
    return path


def accuracies(rows: Rows, task: str, contender: str, epsilon: float) -> dict[int, float]:
    """Return the final accuracies of one cell, keyed by seed; runs that failed have none."""
    cell = _cell_rows(rows, task, contender, epsilon)
    return {row["seed"]: row["accuracy"] for row in cell if row["accuracy"] is not None}


def _cell_rows(rows: Rows, task: str, contender: str, epsilon: float) -> Rows:
    cell, keys = ("final", task, contender, epsilon), ("phase", "task", "contender", "epsilon")
    return [row for row in rows if tuple(row[key] for key in keys) == cell]


def mean_ranks(rows: Rows, settings: CompareConfig, epsilon: float) -> dict[str, tuple[float, float]]:
    """Return each contender's mean rank by accuracy at one ε, and its standard error.

    All contenders that are run at this ε are ranked for each task and seed for which all have a result; 1 is the best,
    and equal accuracies share the mean of their ranks. Empty if there is no such task and seed, or no contender.
    """
    contenders = [name for name in settings.chosen_contenders if settings.runs_at(name, epsilon)]
    if not contenders:
        return {}
    ranks: list[list[float]] = []
    for task in settings.chosen_tasks:
        cells = [accuracies(rows, task, contender, epsilon) for contender in contenders]
        seeds = sorted(set.intersection(*(set(cell) for cell in cells)))
        ranks += [stats.rankdata([-cell[seed] for cell in cells]).tolist() for seed in seeds]
    return {name: mean_and_error(column) for name, column in zip(contenders, zip(*ranks, strict=True), strict=False)}


@log_failure
def plot_comparison(rows: Rows, settings: CompareConfig, path: Path) -> None:
    """Plot accuracy against ε with standard errors: one panel per task, one line per contender."""
    figure = new_figure(5.2 * len(settings.chosen_tasks), 4.8)
    axes = figure.subplots(1, len(settings.chosen_tasks), squeeze=False)[0]
    budgets = sorted(settings.epsilons, key=lambda epsilon: epsilon or math.inf)
    legend: dict[str, ErrorbarContainer] = {}
    for axis, task in zip(axes, settings.chosen_tasks, strict=True):
        for index, contender in enumerate(settings.chosen_contenders):
            cells = [list(accuracies(rows, task, contender, epsilon).values()) for epsilon in budgets]
            points = [(x, *mean_and_error(cell)) for x, cell in enumerate(cells) if cell]
            if not points:
                continue
            x, means, errors = zip(*points, strict=True)
            # Offset the lines slightly so that error bars do not overlap.
            shifted = [value + 0.03 * (index - len(settings.chosen_contenders) / 2) for value in x]
            legend[contender] = axis.errorbar(
                shifted, means, yerr=[0 if math.isnan(error) else error for error in errors],
                color=PALETTE[index % len(PALETTE)], marker=_MARKERS[index % len(_MARKERS)], markersize=5,
                linestyle="-" if index < len(PALETTE) else "--", linewidth=1.2, capsize=2,
            )  # fmt: skip
        set_literal(axis.title, task)
        axis.set_xticks(range(len(budgets)), [f"{epsilon:g}" if epsilon else "∞" for epsilon in budgets])
        axis.set_xlabel("ε")
        metric = task_metric(rows, task)
        if metric.is_share:
            axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axis.set_ylabel(f"held-out {metric.label}")
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    handles, names = list(legend.values()), list(legend)
    literal_legend(figure, handles, names, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    save_png(figure, path)


def task_metric(rows: Rows, task: str) -> Metric:
    """Return the metric in which a task's results are; rows of earlier versions are of classification."""
    kinds = [row["model_task"] for row in rows if row["task"] == task and "model_task" in row]
    return TASKS[kinds[0] if kinds else "sequence_classification"].metrics[0]


def _headings(settings: CompareConfig) -> list[str]:
    return [f"ε = {epsilon:g}" if epsilon else "ε = ∞" for epsilon in settings.epsilons]


def _rank_section(rows: Rows, settings: CompareConfig) -> str:
    headings = _headings(settings)
    lines = [
        "## Mean ranks",
        "",
        "Rank among all contenders (1 is the best), mean ± standard error over tasks and seeds.",
        "",
        f"| | {' | '.join(headings)} |",
        "|---" * (len(headings) + 1) + "|",
    ]
    columns = [mean_ranks(rows, settings, epsilon) for epsilon in settings.epsilons]
    for contender in settings.chosen_contenders:
        cells = []
        for column in columns:
            mean, error = column.get(contender, (math.nan, math.nan))
            text = "–" if math.isnan(mean) else f"{mean:.1f}"
            cells.append(text if math.isnan(error) else f"{text} ± {error:.1f}")
        lines.append(f"| {markdown_text(contender)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _task_section(rows: Rows, settings: CompareConfig, task: str) -> str:
    headings, metric = _headings(settings), task_metric(rows, task)
    unit, points = (" in percent", "percentage points") if metric.is_share else ("", metric.label)
    lines = [
        f"## {markdown_text(task)}",
        "",
        f"Held-out {metric.label}{unit}, mean ± standard error over {len(settings.seeds)} seeds.",
        "",
        f"| | {' | '.join(headings)} | learning rate (× clipping norm) |",
        "|---" * (len(headings) + 2) + "|",
    ]
    for contender in settings.chosen_contenders:
        cells = [_cell(rows, metric, task, contender, epsilon) for epsilon in settings.epsilons]
        lines.append(
            f"| {markdown_text(contender)} | {' | '.join(cells)} | {_tuned_settings(rows, settings, task, contender)} |"
        )
    if whole := [markdown_text(name) for name in settings.chosen_contenders if settings.is_client_level(name)]:
        lines += ["", f"ε of {', '.join(whole)} is for each client's whole data set, all others for each example."]
    lines += [
        "",
        f"Difference from {markdown_text(settings.baseline)} in {points}, paired by seed (p value of a "
        "two-sided t test, not corrected for multiple comparisons).",
        "",
        f"| | {' | '.join(headings)} |",
        "|---" * (len(headings) + 1) + "|",
    ]
    for contender in settings.chosen_contenders:
        if contender != settings.baseline:
            cells = [_difference(rows, settings, metric, task, contender, epsilon) for epsilon in settings.epsilons]
            lines.append(f"| {markdown_text(contender)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(rows: Rows, metric: Metric, task: str, contender: str, epsilon: float) -> str:
    values = list(accuracies(rows, task, contender, epsilon).values())
    failed = len(_cell_rows(rows, task, contender, epsilon)) - len(values)
    mark = f" ({failed} failed)" if failed else ""
    if not values:
        return f"–{mark}"
    return mean_with_error(*mean_and_error(values), metric) + mark


def _difference(rows: Rows, settings: CompareConfig, metric: Metric, task: str, contender: str, epsilon: float) -> str:
    own, baseline = (accuracies(rows, task, name, epsilon) for name in (contender, settings.baseline))
    if not own.keys() & baseline.keys():
        return "–"
    mean, error, p = paired_difference(own, baseline)
    p_value = "" if math.isnan(p) else f" (p {p:.3f})" if p >= 0.0005 else " (p < 0.001)"
    return mean_with_error(mean, error, metric, sign="+") + p_value


def _tuned_settings(rows: Rows, settings: CompareConfig, task: str, contender: str) -> str:
    if settings.own_learning_rate(contender) is not None:
        return "not tuned"
    final, tuning = (
        [row for row in rows if (row["phase"], row["task"], row["contender"]) == (phase, of, contender)]
        for phase, of in (("final", task), ("tuning", settings.tuning_task or task))
    )
    tuned = {}
    private = {settings.nearest_tuning_epsilon(epsilon) for epsilon in settings.epsilons if epsilon}
    for row in final:
        factor = row.get("clipping_factor", 1.0)
        clipping = "" if factor == 1 else f" (× {factor:g})"
        budget = settings.nearest_tuning_epsilon(row["epsilon"])
        tried = [other for other in tuning if other["epsilon"] == budget and other.get("clipping_factor", 1.0) == 1]
        # The clipping norm was tried at the chosen rate, divided by the factor.
        best = min(tried, key=lambda other: abs(other["learning_rate"] - row["learning_rate"] * factor), default=row)
        mark = ", an end of its grid" if at_an_end([r["learning_rate"] for r in tried], best["learning_rate"]) else ""
        label = "∞" if not row["epsilon"] else "private" if len(private) < 2 else f"ε = {row['epsilon']:g}"
        tuned[label] = f"{row['learning_rate']:g}{clipping}{mark}"
    return ", ".join(f"{key}: {text}" for key, text in tuned.items())
