"""Figures of many runs: accuracy over ε, over rounds, and over the settings that a search varied."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, PercentFormatter, StrMethodFormatter

from fedsvd.config.task import Metric
from fedsvd.report.figures import literal_legend, new_figure, set_literal
from fedsvd.report.loaded_runs import Run, best_run, common_metric
from fedsvd.report.plots import LINE_COLORS, MARKERS
from fedsvd.report.run_plots import style_axes
from fedsvd.report.statistics import mean_and_error

# Scores by label and budget; an infinite budget means no privacy.
Cells = Mapping[str, Mapping[float, Sequence[float]]]


def budget_or_infinity(run: Run) -> float:
    """Return a run's ε budget, or infinity without privacy."""
    return math.inf if run.budget is None else run.budget


def format_budget(budget: float) -> str:
    """Format an ε budget."""
    return "∞" if math.isinf(budget) else f"{budget:g}"


def line_style(index: int) -> dict[str, object]:
    """Return the line style of one label; colors, markers and dashes repeat with different periods."""
    return {
        "color": LINE_COLORS[index % len(LINE_COLORS)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": ("-", "--", ":", "-.")[index // len(LINE_COLORS) % 4],
        "linewidth": 1.4,
        "markersize": 5,
    }


def over_epsilon_figure(cells: Cells, metric: Metric) -> Figure:
    """Plot the mean of a metric over ε with standard errors: one line per label, one dot per run."""
    figure = new_figure(7.5, 4.6)
    axes = figure.subplots()
    budgets = sorted({budget for by_budget in cells.values() for budget in by_budget})
    bars = []
    for index, by_budget in enumerate(cells.values()):
        # Offset the lines slightly so that error bars do not overlap.
        offset = 0.36 * ((index + 0.5) / len(cells) - 0.5)
        points = [(budgets.index(budget) + offset, values) for budget, values in sorted(by_budget.items())]
        means = [mean_and_error(values) for _, values in points]
        errors = [0.0 if math.isnan(error) else error for _, error in means]
        x = [position for position, _ in points]
        bars.append(axes.errorbar(x, [mean for mean, _ in means], yerr=errors, capsize=3, **line_style(index)))  # type: ignore[arg-type]
        dots = [(position, value) for position, values in points if len(values) > 1 for value in values]
        if dots:
            dot_x, dot_y = zip(*dots, strict=True)
            axes.scatter(dot_x, dot_y, s=9, color=LINE_COLORS[index % len(LINE_COLORS)], alpha=0.45, linewidths=0)
    axes.set_xticks(range(len(budgets)), [format_budget(budget) for budget in budgets])
    axes.set_xlim(-0.5, len(budgets) - 0.5)
    axes.set_xlabel("privacy budget ε per client (∞: no privacy)")
    axes.set_ylabel(f"held-out {metric.label}")
    _style(axes, metric)
    literal_legend(figure, bars, list(cells), loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return figure


def over_rounds_figure(lines: Mapping[str, Sequence[Run]]) -> Figure:
    """Plot the mean score over rounds and its range over runs: one panel per budget, one line per label.

    Labels have the same line styles as in `over_epsilon_figure`.
    """
    budgets = sorted({budget_or_infinity(run) for runs in lines.values() for run in runs})
    metric = common_metric([run for runs in lines.values() for run in runs])
    columns = min(len(budgets), 3)
    rows = math.ceil(len(budgets) / columns)
    figure = new_figure(7.5 if columns == 1 else 3.2 * columns + 0.6, 1.0 + 3.2 * rows)
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).reshape(-1)
    legend: dict[str, Line2D] = {}
    for axes, budget in zip(panels, budgets, strict=False):
        for index, (label, runs) in enumerate(lines.items()):
            line = _plot_rounds(axes, [run for run in runs if budget_or_infinity(run) == budget], index)
            if line is not None:
                legend[label] = line
        axes.set_title(f"ε = {format_budget(budget)}", fontsize=10)
        axes.set_xlabel("round")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _style(axes, metric)
    for axes in panels[len(budgets) :]:
        axes.remove()
    for axes in panels[::columns]:
        axes.set_ylabel(f"held-out {metric.label}")
    handles, labels = list(legend.values()), list(legend)
    literal_legend(figure, handles, labels, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return figure


def _plot_rounds(axes: Axes, runs: Sequence[Run], index: int) -> Line2D | None:
    by_round: dict[int, list[float]] = {}
    for run in runs:
        for row in run.evaluated_rows:
            by_round.setdefault(row["server_round"], []).append(row[run.metric.key])
    if not by_round:
        return None
    rounds = sorted(by_round)
    means = [sum(by_round[number]) / len(by_round[number]) for number in rounds]
    [line] = axes.plot(rounds, means, **line_style(index))  # type: ignore[arg-type]
    if len(runs) > 1:
        lowest, highest = ([extreme(by_round[number]) for number in rounds] for extreme in (min, max))
        axes.fill_between(rounds, lowest, highest, color=LINE_COLORS[index % len(LINE_COLORS)], alpha=0.12, linewidth=0)
    return line


def search_figure(runs: Sequence[Run], keys: Sequence[str]) -> Figure:
    """Plot the score over each numeric setting that a search varied: one panel per key, with the best run marked.

    At least one run must not have failed.
    """
    figure = new_figure(3.1 * len(keys) + 0.6, 3.4)
    panels = figure.subplots(1, len(keys), squeeze=False, sharey=True)[0]
    best, metric = best_run(runs), common_metric(runs)
    assert best is not None  # noqa: S101 - required of the caller
    for axes, key in zip(panels, keys, strict=True):
        values = [float(run.config[key]) for run in runs]
        axes.scatter(values, [run.score for run in runs], s=22, color=LINE_COLORS[0], alpha=0.75, linewidths=0)
        axes.scatter(
            [float(best.config[key])],
            [best.score],
            s=110,
            facecolors="none",
            edgecolors=LINE_COLORS[1],
            linewidths=2,
        )
        if min(values) > 0 and max(values) / min(values) > 8:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
        elif all(value.is_integer() for value in values):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        set_literal(axes.xaxis.label, key)
        _style(axes, metric)
    panels[0].set_ylabel(f"held-out {metric.label}")
    return figure


def _style(axes: Axes, metric: Metric) -> None:
    if metric.is_share:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    style_axes(axes)
