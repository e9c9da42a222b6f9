"""The parts of a report on many runs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from fedsvd.report.comparison import mean_and_error
from fedsvd.report.document import Block, Grid, Paragraph, Section, drawing
from fedsvd.report.loaded_runs import Run, changed_keys, varied_keys
from fedsvd.report.privacy_statement import TITLE, composed, statement
from fedsvd.report.run_sections import factors, provenance, run_sections, spends, text, who_holds_what
from fedsvd.report.sweep_plots import budget_of, budget_text, over_epsilon_figure, over_rounds_figure, search_figure
from fedsvd.report.tables import rounded_up

# What the axes of the plots stand for, and what follows from it.
_ON_AXES = ("seed", "privacy.name", "privacy.target_epsilon", "privacy.max_epsilon")
_MOST_LABELS = 12
_MOST_LINES = 14


def report_sections(runs: Sequence[Run]) -> list[Section]:
    """Return the sections of a report on one run or many."""
    if len(runs) == 1:
        return run_sections(runs[0])
    labels = labelled(runs)
    sections = [_summary(runs, labels), _what_ran(runs), _table(runs)]
    numbers = [key for key in varied_keys(runs) if key not in _ON_AXES and _all_numbers(runs, key)]
    done = [run for run in runs if run.accuracy is not None]
    if numbers and done and (len(labels) > _MOST_LABELS or _is_search(runs, labels)):
        sections.append(_search(done, numbers[:4]))
    elif done:
        sections += [_over_epsilon(labelled(done)), _over_rounds(labelled(done))]
    sections += [_costs(runs, labels), *_best_run(_best(done)), _statement(runs)]
    return sections


def labelled(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Group runs by what differs between them beside ε and seed: by method, and by other keys that vary."""
    methods = {run.config["method.name"] for run in runs}
    keys = []
    for key in varied_keys(runs):
        if key in _ON_AXES or key == "method.name":
            continue
        # Options that only one method has tell nothing that its name does not.
        within = [{json.dumps(run.config.get(key)) for run in runs if run.config["method.name"] == m} for m in methods]
        if not key.startswith("method.") or any(len(values) > 1 for values in within):
            keys.append(key)
    groups: dict[str, list[Run]] = {}
    for run in runs:
        extra = [f"{key.rpartition('.')[2]}={text(run.config[key])}" for key in keys if key in run.config]
        groups.setdefault(", ".join([run.config["method.name"], *extra]), []).append(run)
    return groups


def _summary(runs: Sequence[Run], labels: Mapping[str, Sequence[Run]]) -> Section:
    seeds, budgets = sorted({run.config["seed"] for run in runs}), sorted({budget_of(run) for run in runs})
    if len(labels) > _MOST_LABELS:
        settings = f"of {', '.join(key for key in varied_keys(runs) if key not in _ON_AXES)}"
    else:
        settings = f"({', '.join(labels)})"
    told = f"ε = {', '.join(map(budget_text, budgets))}, {len(seeds)} seed{'s' if len(seeds) > 1 else ''}"
    blocks: list[Block] = [Paragraph(f"{len(runs)} runs: {len(labels)} settings {settings}, {told}.")]
    best = _best([run for run in runs if run.accuracy is not None])
    if best is not None:
        blocks.append(Paragraph(f"The best single run reached {best.accuracy:.1%}: {best.name}."))
    for state in ("unfinished", "failed"):
        these = [run for run in runs if run.state == state]
        if these:
            named = ", ".join(run.name for run in these[:10]) + (", …" if len(these) > 10 else "")
            blocks.append(Paragraph(f"{len(these)} {state}: {named}. Figures hold what they have reached.", "warning"))
    return Section("Summary", blocks)


def _what_ran(runs: Sequence[Run]) -> Section:
    varied = varied_keys(runs)
    common = [[key, text(old), text(new)] for key, old, new in changed_keys(runs[0]) if key not in varied]
    tried = [
        [key, ", ".join(_shortened(dict.fromkeys(text(run.config[key]) for run in runs if key in run.config)))]
        for key in varied
    ]
    blocks: list[Block] = [Grid(["key", "values"], tried, "What differs between the runs")] if tried else []
    if common:
        blocks.append(Grid(["key", "default", "all runs"], common, "What all runs share, where it is not the default"))
    return Section("What was run", [*blocks, provenance(runs[0])])


def _shortened(values: Mapping[str, None]) -> list[str]:
    told = list(values)
    return told if len(told) <= 12 else [*told[:11], f"… ({len(told)} in all)"]


def _table(runs: Sequence[Run]) -> Section:
    keys = [key for key in varied_keys(runs) if key not in ("privacy.max_epsilon", "privacy.name")]
    keys = [key for key in keys if key == "method.name" or not key.startswith("method.")][:6]
    rows = [
        [
            run.name,
            *(text(run.config.get(key)) for key in keys),
            "–" if run.accuracy is None else f"{run.accuracy:.1%}",
            "–" if run.epsilon is None else rounded_up(run.epsilon, 2),
            f"{run.rows[-1]['server_round']}/{run.config['train.num_rounds']}",
            run.state,
        ]
        for run in sorted(runs, key=lambda run: -(run.accuracy or 0.0))
    ]
    headings = ["run", *(key.rpartition(".")[2] if key != "method.name" else "method" for key in keys)]
    return Section("All runs", [Grid([*headings, "accuracy", "ε spent", "rounds", "state"], rows)])


def _over_epsilon(labels: Mapping[str, Sequence[Run]]) -> Section:
    cells: dict[str, dict[float, list[float]]] = {}
    for label, runs in labels.items():
        for run in runs:
            cells.setdefault(label, {}).setdefault(budget_of(run), []).append(run.accuracy or 0.0)
    budgets = sorted({budget for by_budget in cells.values() for budget in by_budget})
    rows = [[label, *(_cell(by_budget.get(budget, [])) for budget in budgets)] for label, by_budget in cells.items()]
    figure = drawing(
        over_epsilon_figure(cells),
        "Held-out accuracy over ε: means over seeds, bars of one standard error, a dot for each run.",
        "The table has the numbers.",
    )
    grid = Grid(
        ["", *(f"ε = {budget_text(budget)}" for budget in budgets)], rows,
        "Held-out accuracy in percent, mean ± standard error (number of runs)",
    )  # fmt: skip
    return Section("Accuracy over ε", [figure, grid])


def _cell(values: Sequence[float]) -> str:
    if not values:
        return "–"
    mean, error = mean_and_error(values)
    return f"{100 * mean:.1f}" + ("" if math.isnan(error) else f" ± {100 * error:.1f}") + f" ({len(values)})"


def _over_rounds(labels: Mapping[str, Sequence[Run]]) -> Section:
    caption = "Held-out accuracy over rounds, by budget: means over seeds, shaded from the least to the most."
    figure = over_rounds_figure(dict(list(labels.items())[:_MOST_LINES]))
    blocks: list[Block] = [drawing(figure, caption, "The table of all runs has the last values.")]
    if len(labels) > _MOST_LINES:
        blocks.append(Paragraph(f"The first {_MOST_LINES} of {len(labels)} settings.", "note"))
    return Section("Accuracy over rounds", blocks)


def _search(runs: Sequence[Run], keys: Sequence[str]) -> Section:
    best = _best(runs)
    assert best is not None  # noqa: S101 - there are runs
    told = ", ".join(f"{key} = {text(best.config[key])}" for key in keys)
    figure = drawing(
        search_figure(runs, keys),
        "Held-out accuracy of every run over each number that was varied; the ring is the best.",
        f"Best: {told}.",
    )
    return Section("What the search found", [Paragraph(f"Best of {len(runs)}: {told}: {best.accuracy:.1%}."), figure])


def _best_run(run: Run | None) -> list[Section]:
    """Return what is shown of one run alone: its spends, its data, its factors."""
    if run is None:
        return []
    return [
        replace(section, title=f"Best run: {section.title[0].lower()}{section.title[1:]}")
        for section in (*spends(run), *who_holds_what(run), *factors(run))
    ]


def _costs(runs: Sequence[Run], labels: Mapping[str, Sequence[Run]]) -> Section:
    def mean(these: Sequence[Run], *keys: str) -> float:
        return sum(float(row[key]) for run in these for row in run.rows for key in keys) / len(these)

    rows = [
        [
            label,
            f"{mean(these, 'bytes_down'):,.0f}",
            f"{mean(these, 'bytes_up'):,.0f}",
            f"{mean(these, 'seconds_train'):.1f}",
            f"{mean(these, 'seconds_aggregate'):.2f}",
            f"{mean(these, 'seconds_evaluate'):.1f}",
        ]
        for label, these in labels.items()
    ]
    headings = ["", "bytes down", "bytes up", "s training", "s server step", "s evaluation"]
    caution = (
        "Seconds are no comparison of methods: what runs of one process share, such as the states of frozen layers, "
        "counts for the first of them."
    )
    return Section("Bytes and seconds", [Grid(headings, rows[:40], "Means a run"), Paragraph(caution, "note")])


def _statement(runs: Sequence[Run]) -> Section:
    private = [run for run in runs if run.budget is not None]
    open_runs = len(runs) - len(private)
    blocks: list[Block] = []
    total = composed(runs)
    if total is not None:
        blocks.append(
            Paragraph(
                f"{len(private)} runs were private, each for itself. Where they were made on the same private text and "
                f"all their outcomes are shown, what they cost adds up: together at most ε = "
                f"{rounded_up(total['epsilon'], 2)} at δ = {total['delta']:g} (basic composition over the largest "
                "spend of each). A single run's statement holds for that run alone, and choosing the best of many by "
                "looking at private data is covered by the sum, not by the chosen run's ε."
            )
        )
    if open_runs:
        blocks.append(Paragraph(f"{open_runs} runs were made without privacy: they give no guarantee.", "warning"))
    chosen = max(private, key=lambda run: run.epsilon or 0.0) if private else runs[0]
    blocks.append(Paragraph(f"The statement of one run follows, {chosen.name}, the one that spent most:"))
    return Section(TITLE, [*blocks, *statement(chosen).blocks])


def _best(runs: Sequence[Run]) -> Run | None:
    return max(runs, key=lambda run: run.accuracy or 0.0, default=None)


def _all_numbers(runs: Sequence[Run], key: str) -> bool:
    return all(isinstance(v := run.config.get(key), int | float) and not isinstance(v, bool) for run in runs)


def _is_search(runs: Sequence[Run], labels: Mapping[str, Any]) -> bool:
    """Say whether nearly every run is a setting of its own, as in a search."""
    return len(runs) > 4 and len(labels) > 0.8 * len(runs)
