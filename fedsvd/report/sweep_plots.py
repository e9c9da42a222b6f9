"""Figures on many runs: accuracy over ε, over rounds, and over what a search tried."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, PercentFormatter, StrMethodFormatter

from fedsvd.report.comparison import mean_and_error
from fedsvd.report.loaded_runs import Run
from fedsvd.report.plots import INKS, MARKERS
from fedsvd.report.run_plots import new_figure, tidy

# From a label to the accuracies at each budget; infinity is no privacy.
Cells = Mapping[str, Mapping[float, Sequence[float]]]


def budget_of(run: Run) -> float:
    """Return a run's ε as a number that can be ordered."""
    return math.inf if run.budget is None else run.budget


def budget_text(budget: float) -> str:
    """Write an ε."""
    return "∞" if math.isinf(budget) else f"{budget:g}"


def style(index: int) -> dict[str, object]:
    """Return how the line of one label looks: colours, markers and dashes come round at different times."""
    return {
        "color": INKS[index % len(INKS)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": ("-", "--", ":", "-.")[index // len(INKS) % 4],
        "linewidth": 1.4,
        "markersize": 5,
    }


def over_epsilon_figure(cells: Cells) -> Figure:
    """Draw mean accuracy over ε, a line a label, with standard errors and every single run as a dot."""
    figure = new_figure(7.5, 4.6)
    axes = figure.subplots()
    budgets = sorted({budget for by_budget in cells.values() for budget in by_budget})
    for index, (label, by_budget) in enumerate(cells.items()):
        # A little aside of each other, so that bars do not hide bars.
        aside = 0.36 * ((index + 0.5) / len(cells) - 0.5)
        told = [(budgets.index(budget) + aside, values) for budget, values in sorted(by_budget.items())]
        means = [mean_and_error(values) for _, values in told]
        errors = [0.0 if math.isnan(error) else error for _, error in means]
        x = [place for place, _ in told]
        axes.errorbar(x, [mean for mean, _ in means], yerr=errors, label=label, capsize=3, **style(index))  # type: ignore[arg-type]
        dots = [(place, value) for place, values in told if len(values) > 1 for value in values]
        if dots:
            across, up = zip(*dots, strict=True)
            axes.scatter(across, up, s=9, color=INKS[index % len(INKS)], alpha=0.45, linewidths=0)
    axes.set_xticks(range(len(budgets)), [budget_text(budget) for budget in budgets])
    axes.set_xlim(-0.5, len(budgets) - 0.5)
    axes.set_xlabel("privacy budget ε of each client (∞: no privacy)")
    axes.set_ylabel("held-out accuracy")
    _in_percent(axes)
    figure.legend(loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return figure


def over_rounds_figure(lines: Mapping[str, Sequence[Run]]) -> Figure:
    """Draw mean accuracy over rounds and the range over runs: a panel a budget, a line a label, as over ε."""
    budgets = sorted({budget_of(run) for runs in lines.values() for run in runs})
    across = min(len(budgets), 3)
    down = math.ceil(len(budgets) / across)
    figure = new_figure(7.5 if across == 1 else 3.2 * across + 0.6, 1.0 + 3.2 * down)
    panels = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True).reshape(-1)
    for axes, budget in zip(panels, budgets, strict=False):
        for index, (label, runs) in enumerate(lines.items()):
            _draw_rounds(axes, [run for run in runs if budget_of(run) == budget], label, index)
        axes.set_title(f"ε = {budget_text(budget)}", fontsize=10)
        axes.set_xlabel("round")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _in_percent(axes)
    for axes in panels[len(budgets) :]:
        axes.remove()
    for axes in panels[::across]:
        axes.set_ylabel("held-out accuracy")
    named = {label: line for axes in panels for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(list(named.values()), list(named), loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return figure


def _draw_rounds(axes: Axes, runs: Sequence[Run], label: str, index: int) -> None:
    by_round: dict[int, list[float]] = {}
    for run in runs:
        for row in run.measured:
            by_round.setdefault(row["server_round"], []).append(row["accuracy"])
    if not by_round:
        return
    rounds = sorted(by_round)
    means = [sum(by_round[number]) / len(by_round[number]) for number in rounds]
    axes.plot(rounds, means, label=label, **style(index))  # type: ignore[arg-type]
    if len(runs) > 1:
        least, most = ([pick(by_round[number]) for number in rounds] for pick in (min, max))
        axes.fill_between(rounds, least, most, color=INKS[index % len(INKS)], alpha=0.12, linewidth=0)


def search_figure(runs: Sequence[Run], keys: Sequence[str]) -> Figure:
    """Draw accuracy over each number that a search varied, a panel a key, the best run marked."""
    figure = new_figure(3.1 * len(keys) + 0.6, 3.4)
    panels = figure.subplots(1, len(keys), squeeze=False, sharey=True)[0]
    best = max(runs, key=lambda run: run.accuracy or 0.0)
    for axes, key in zip(panels, keys, strict=True):
        values = [float(run.config[key]) for run in runs]
        axes.scatter(values, [run.accuracy for run in runs], s=22, color=INKS[0], alpha=0.75, linewidths=0)
        axes.scatter(
            [float(best.config[key])], [best.accuracy], s=110, facecolors="none", edgecolors=INKS[1], linewidths=2
        )
        if min(values) > 0 and max(values) / min(values) > 8:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
        elif all(value.is_integer() for value in values):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel(key)
        _in_percent(axes)
    panels[0].set_ylabel("held-out accuracy")
    return figure


def _in_percent(axes: Axes) -> None:
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    tidy(axes)
