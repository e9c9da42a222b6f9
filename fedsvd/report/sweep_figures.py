"""Sections with figures of a report on many runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedsvd.report.document import Block, Paragraph, Section, TableBlock, figure_block
from fedsvd.report.loaded_runs import Run, best_run, common_metric
from fedsvd.report.run_sections import yaml_text
from fedsvd.report.statistics import mean_cell
from fedsvd.report.sweep_plots import (
    budget_or_infinity,
    format_budget,
    over_epsilon_figure,
    over_rounds_figure,
    search_figure,
)

_MAX_LINES = 14


def over_epsilon_section(labels: Mapping[str, Sequence[Run]]) -> Section:
    """Return the section with the accuracy over ε of each setting."""
    cells: dict[str, dict[float, list[float]]] = {}
    for label, runs in labels.items():
        for run in runs:
            cells.setdefault(label, {}).setdefault(budget_or_infinity(run), []).append(run.score or 0.0)
    budgets = sorted({budget for by_budget in cells.values() for budget in by_budget})
    metric = common_metric([run for runs in labels.values() for run in runs])
    rows = [
        [label, *(mean_cell(by_budget.get(budget, []), metric) for budget in budgets)]
        for label, by_budget in cells.items()
    ]
    figure = figure_block(
        over_epsilon_figure(cells, metric),
        f"Held-out {metric.label} over ε: mean over seeds, error bars of one standard error, one dot per run.",
        "See the table below.",
    )
    table = TableBlock(
        ["", *(f"ε = {format_budget(budget)}" for budget in budgets)], rows,
        f"Held-out {metric.label}{' in percent' * metric.is_share}, mean ± standard error (number of runs)",
    )  # fmt: skip
    return Section(f"{metric.title} over ε", [figure, table])


def over_rounds_section(labels: Mapping[str, Sequence[Run]]) -> Section:
    """Return the section with the accuracy over the rounds of each setting."""
    metric = common_metric([run for runs in labels.values() for run in runs])
    caption = f"Held-out {metric.label} over rounds, by budget: mean over seeds, shaded from minimum to maximum."
    figure = over_rounds_figure(dict(list(labels.items())[:_MAX_LINES]))
    blocks: list[Block] = [figure_block(figure, caption, "See the table of all runs for the final values.")]
    if len(labels) > _MAX_LINES:
        blocks.append(Paragraph(f"Shows the first {_MAX_LINES} of {len(labels)} settings.", "note"))
    return Section(f"{metric.title} over rounds", blocks)


def search_section(runs: Sequence[Run], keys: Sequence[str]) -> Section:
    """Return the section with the accuracy over each of some numeric keys; at least one run has an accuracy."""
    best = best_run(runs)
    assert best is not None  # noqa: S101 - checked by the caller
    values = ", ".join(f"{key} = {yaml_text(best.config[key])}" for key in keys)
    figure = figure_block(
        search_figure(runs, keys),
        f"Held-out {best.metric.label} of every run over each numeric setting that was varied; best one circled.",
        f"Best: {values}.",
    )
    text = f"Best of {len(runs)} runs: {values}, with {best.metric.label} {best.metric.format(best.score)}."
    return Section("Search results", [Paragraph(text), figure])
