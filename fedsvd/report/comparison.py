"""The outcome of a comparison: tables with standard errors, paired differences, a plot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from scipy import stats

from fedsvd.config.compare import CompareConfig
from fedsvd.report.plots import PALETTE
from fedsvd.runs.folder import write_text

Rows = Sequence[Mapping[str, Any]]
_MARKERS = "osD^v<>PX*ph"


def write_report(rows: Rows, settings: CompareConfig, folder: Path, command: str) -> Path:
    """Write ``comparison.md`` and ``comparison.png``, and return the former.

    Args:
        rows: Of ``results.jsonl``.
        settings: The group ``compare``.
        folder: Where to write.
        command: What was typed.
    """
    plot_comparison(rows, settings, folder / "comparison.png")
    parts = [f"`{command}`", *(_task_part(rows, settings, task) for task in settings.chosen_tasks)]
    path = folder / "comparison.md"
    write_text(path, "\n\n".join(parts) + "\n")
    return path


def accuracies(rows: Rows, task: str, contender: str, epsilon: float) -> dict[int, float]:
    """Return the final accuracies of one cell by seed."""
    wanted = ("final", task, contender, epsilon)
    keys = ("phase", "task", "contender", "epsilon")
    return {row["seed"]: row["accuracy"] for row in rows if tuple(row[key] for key in keys) == wanted}


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and its standard error (nan for a single value)."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, math.nan
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))


def paired(ours: Mapping[int, float], theirs: Mapping[int, float]) -> tuple[float, float, float]:
    """Return mean difference, its standard error, and the p value of a two-sided paired t test over common seeds."""
    seeds = sorted(ours.keys() & theirs.keys())
    differences = [ours[seed] - theirs[seed] for seed in seeds]
    mean, error = mean_and_error(differences)
    if len(seeds) < 2 or not error:
        return mean, error, math.nan
    test = stats.ttest_rel([ours[seed] for seed in seeds], [theirs[seed] for seed in seeds])
    return mean, error, float(test.pvalue)


def plot_comparison(rows: Rows, settings: CompareConfig, path: Path) -> None:
    """Draw accuracy over ε, a panel a task, a line a contender, with standard errors."""
    figure = Figure(figsize=(5.2 * len(settings.chosen_tasks), 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(settings.chosen_tasks), squeeze=False)[0]
    budgets = sorted(settings.epsilons, key=lambda epsilon: epsilon or math.inf)
    for axis, task in zip(axes, settings.chosen_tasks, strict=True):
        for index, contender in enumerate(settings.chosen_contenders):
            cells = [list(accuracies(rows, task, contender, epsilon).values()) for epsilon in budgets]
            points = [(x, *mean_and_error(cell)) for x, cell in enumerate(cells) if cell]
            if not points:
                continue
            x, means, errors = zip(*points, strict=True)
            # A little aside of each other, so that bars do not hide bars.
            shifted = [value + 0.03 * (index - len(settings.chosen_contenders) / 2) for value in x]
            axis.errorbar(
                shifted, means, yerr=[0 if math.isnan(error) else error for error in errors], label=contender,
                color=PALETTE[index % len(PALETTE)], marker=_MARKERS[index % len(_MARKERS)], markersize=5,
                linestyle="-" if index < len(PALETTE) else "--", linewidth=1.2, capsize=2,
            )  # fmt: skip
        axis.set_title(task)
        axis.set_xticks(range(len(budgets)), [f"{epsilon:g}" if epsilon else "∞" for epsilon in budgets])
        axis.set_xlabel("ε")
        axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("held-out accuracy")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _task_part(rows: Rows, settings: CompareConfig, task: str) -> str:
    heads = [f"ε = {epsilon:g}" if epsilon else "ε = ∞" for epsilon in settings.epsilons]
    lines = [
        f"## {task}",
        "",
        f"Held-out accuracy in percent, mean ± standard error over {len(settings.seeds)} seeds.",
        "",
        f"| | {' | '.join(heads)} | learning rates |",
        "|---" * (len(heads) + 2) + "|",
    ]
    for contender in settings.chosen_contenders:
        cells = [_cell(list(accuracies(rows, task, contender, epsilon).values())) for epsilon in settings.epsilons]
        lines.append(f"| {contender} | {' | '.join(cells)} | {_rates(rows, task, contender)} |")
    lines += [
        "",
        f"Difference to {settings.baseline} in points, paired by seed (p of a two-sided t test, not corrected for the "
        "number of comparisons).",
        "",
        f"| | {' | '.join(heads)} |",
        "|---" * (len(heads) + 1) + "|",
    ]
    for contender in settings.chosen_contenders:
        if contender != settings.baseline:
            cells = [_difference(rows, settings, task, contender, epsilon) for epsilon in settings.epsilons]
            lines.append(f"| {contender} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(values: Sequence[float]) -> str:
    if not values:
        return "–"
    mean, error = mean_and_error(values)
    return f"{100 * mean:.1f}" + ("" if math.isnan(error) else f" ± {100 * error:.1f}")


def _difference(rows: Rows, settings: CompareConfig, task: str, contender: str, epsilon: float) -> str:
    ours, theirs = (accuracies(rows, task, name, epsilon) for name in (contender, settings.baseline))
    if not ours.keys() & theirs.keys():
        return "–"
    mean, error, p = paired(ours, theirs)
    said = f"{100 * mean:+.1f}"
    return said if math.isnan(error) else f"{said} ± {100 * error:.1f}" + ("" if math.isnan(p) else f" (p {p:.3f})")


def _rates(rows: Rows, task: str, contender: str) -> str:
    wanted = [r for r in rows if (r["phase"], r["task"], r["contender"]) == ("final", task, contender)]
    rates = {("∞" if not row["epsilon"] else "private"): row["learning_rate"] for row in wanted}
    return ", ".join(f"{key}: {rate:g}" for key, rate in rates.items())
