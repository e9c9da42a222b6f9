"""Sections of a report on many runs.

Runs are grouped by setting: by method and by every other varied key except ε and seed. A group's name is its label.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from fedsvd.privacy.rounding import rounded_up
from fedsvd.report.document import Block, Paragraph, Section, TableBlock
from fedsvd.report.labels import method_label, planned_rounds
from fedsvd.report.loaded_runs import Run, best_run, changed_keys, common_metric, repeated_runs, varied_keys
from fedsvd.report.privacy_statement import TITLE, statement_section, total_privacy_cost
from fedsvd.report.run_sections import (
    factor_spectrum,
    label_distribution,
    privacy_spent,
    provenance,
    run_sections,
    yaml_text,
)
from fedsvd.report.sweep_figures import over_epsilon_section, over_rounds_section, search_section
from fedsvd.report.sweep_plots import (
    budget_or_infinity,
    format_budget,
)

# Keys that the axes of the plots represent, and keys that follow from them.
_AXIS_KEYS = ("seed", "privacy.name", "privacy.target_epsilon", "privacy.max_epsilon")
_MAX_LABELS = 12


def report_sections(runs: Sequence[Run]) -> list[Section]:
    """Return the sections of a report on one run or many."""
    if len(runs) == 1:
        return run_sections(runs[0])
    labels = group_by_setting(runs)
    sections = [_summary(runs, labels), _configuration(runs), _runs_table(runs)]
    numeric_keys = [key for key in varied_keys(runs) if key not in _AXIS_KEYS and _is_numeric(runs, key)]
    # The score of a run that used no client's update is that of the initial model.
    evaluated = [run for run in runs if run.score is not None and run.is_trained]
    if numeric_keys and best_run(evaluated) and (len(labels) > _MAX_LABELS or _is_search(runs, labels)):
        sections.append(search_section(evaluated, numeric_keys[:4]))
    elif evaluated:
        sections += [
            over_epsilon_section(group_by_setting(evaluated)),
            over_rounds_section(group_by_setting(evaluated)),
        ]
    sections += [_costs(labels), *_best_run(best_run(evaluated)), _statement(runs)]
    return sections


def group_by_setting(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Group runs by setting: by method, and by every other key that varies except ε and seed."""
    methods = {method_label(run.config) for run in runs}
    keys = []
    for key in varied_keys(runs):
        if key in _AXIS_KEYS or key == "method.name":
            continue
        # Method options that are constant within each method are implied by its name.
        within = [{json.dumps(run.config.get(key)) for run in runs if method_label(run.config) == m} for m in methods]
        if not key.startswith(("method.", "train.trains")) or any(len(values) > 1 for values in within):
            keys.append(key)
    groups: dict[str, list[Run]] = {}
    for run in runs:
        extra = [f"{key.rpartition('.')[2]}={yaml_text(run.config[key])}" for key in keys if key in run.config]
        groups.setdefault(", ".join([method_label(run.config), *extra]), []).append(run)
    return groups


def _summary(runs: Sequence[Run], labels: Mapping[str, Sequence[Run]]) -> Section:
    seeds, budgets = sorted({run.config["seed"] for run in runs}), sorted({budget_or_infinity(run) for run in runs})
    if len(labels) > _MAX_LABELS:
        settings = f"of {', '.join(key for key in varied_keys(runs) if key not in _AXIS_KEYS)}"
    else:
        settings = f"({', '.join(labels)})"
    counts = f"ε = {', '.join(map(format_budget, budgets))}, {len(seeds)} seed{'s' * (len(seeds) > 1)}"
    count = f"{len(labels)} setting{'s' * (len(labels) > 1)}"
    blocks: list[Block] = [Paragraph(f"{len(runs)} runs: {count} {settings}, {counts}.")]
    if best := best_run(runs):
        blocks.append(Paragraph(f"The best single run reached {best.metric.format(best.score)}: {best.name}."))
    partial = {state: [run for run in runs if run.state == state] for state in ("unfinished", "failed")}
    warnings = [
        f"{len(selected)} {state}: {_names(selected)}. Tables and figures use their results so far."
        for state, selected in partial.items()
        if selected
    ]
    if repeated := repeated_runs(runs):
        same = "the same settings and seed as another run. Means and counts have all of them."
        warnings.append(f"{_names(repeated)}: {same}")
    if untrained := [run for run in runs if not run.is_trained]:
        warnings.append(
            f"No client's update was used in {_names(untrained)}: figures leave these untrained models out."
        )
    blocks += [Paragraph(text, "warning") for text in warnings]
    return Section("Summary", blocks)


def _names(runs: Sequence[Run]) -> str:
    return ", ".join(run.name for run in runs[:10]) + (", …" if len(runs) > 10 else "")


def _configuration(runs: Sequence[Run]) -> Section:
    varied = varied_keys(runs)
    common = [[key, yaml_text(old), yaml_text(new)] for key, old, new in changed_keys(runs[0]) if key not in varied]
    values = [
        [key, ", ".join(_shortened(dict.fromkeys(yaml_text(run.config[key]) for run in runs if key in run.config)))]
        for key in varied
    ]
    blocks: list[Block] = [TableBlock(["key", "values"], values, "Settings that differ between runs")] if values else []
    if common:
        caption = "Settings that all runs share and that differ from the defaults"
        blocks.append(TableBlock(["key", "default", "all runs"], common, caption))
    return Section("Configuration", [*blocks, provenance(runs[0])])


def _shortened(values: Mapping[str, None]) -> list[str]:
    items = list(values)
    return items if len(items) <= 12 else [*items[:11], f"… ({len(items)} in total)"]


def _runs_table(runs: Sequence[Run]) -> Section:
    keys = [key for key in varied_keys(runs) if key not in ("privacy.max_epsilon", "privacy.name")]
    keys = [key for key in keys if key == "method.name" or not key.startswith("method.")][:6]
    rows = [
        [
            run.name,
            *(method_label(run.config) if key == "method.name" else yaml_text(run.config.get(key)) for key in keys),
            run.metric.format(run.score),
            "–" if run.epsilon is None else rounded_up(run.epsilon, 2),
            f"{run.rows[-1]['server_round']}/{planned_rounds(run.config)}",
            run.state,
        ]
        for run in sorted(runs, key=lambda run: (run.state == "failed", -(run.score or 0.0)))
    ]
    headings = ["run", *(key.rpartition(".")[2] if key != "method.name" else "method" for key in keys)]
    return Section("All runs", [TableBlock([*headings, common_metric(runs).label, "ε spent", "rounds", "state"], rows)])


def _best_run(run: Run | None) -> list[Section]:
    """Return the sections that are shown for the best run only: privacy spent, label distribution, factors."""
    if run is None:
        return []
    return [
        replace(section, title=f"Best run: {section.title[0].lower()}{section.title[1:]}")
        for section in (*privacy_spent(run), *label_distribution(run), *factor_spectrum(run))
    ]


def _costs(labels: Mapping[str, Sequence[Run]]) -> Section:
    def mean(group: Sequence[Run], *keys: str) -> float:
        return sum(float(row[key]) for run in group for row in run.rows for key in keys) / len(group)

    def traffic(group: Sequence[Run], key: str) -> str:
        return f"{mean(group, key):,.0f}" if all(key in row for run in group for row in run.rows) else "–"

    rows = [
        [
            label,
            *(traffic(group, key) for key in ("bytes_down", "bytes_up")),
            f"{mean(group, 'seconds_train'):.1f}",
            f"{mean(group, 'seconds_aggregate'):.2f}",
            f"{mean(group, 'seconds_evaluate'):.1f}",
        ]
        for label, group in labels.items()
    ]
    headings = ["", "bytes down", "bytes up", "s training", "s server step", "s evaluation"]
    note = (
        "Do not compare methods by these times: work that runs in one process share, such as caching the states of "
        "frozen layers, is counted in the first of these runs."
    )
    return Section("Traffic and time", [TableBlock(headings, rows[:40], "Mean per run"), Paragraph(note, "note")])


def _statement(runs: Sequence[Run]) -> Section:
    private = [run for run in runs if run.budget is not None]
    open_runs = len(runs) - len(private)
    blocks: list[Block] = []
    total = total_privacy_cost(runs)
    if total is not None:
        blocks.append(
            Paragraph(
                f"{len(private)} runs were private, each with its own guarantee. If they used the same private text "
                f"and all their results are disclosed, their privacy costs add up: in total at most ε = "
                f"{rounded_up(total['epsilon'], 2)} at δ = {total['delta']:g} (basic composition of the largest ε "
                "spent in each run). The statement of a single run holds for that run alone, and choosing the best of "
                "many runs by looking at private data is covered by the total, not by the ε of the chosen run."
            )
        )
    if open_runs:
        blocks.append(Paragraph(f"{open_runs} runs give no privacy guarantee.", "warning"))
    if unrecorded := sum(run.claim.status == "unrecorded" for run in runs):
        text = f"{unrecorded} runs were written by an earlier version that did not record the settings of each round: "
        blocks.append(Paragraph(f"{text}their guarantees hold if they were never resumed with other settings.", "note"))
    chosen = max(private, key=lambda run: run.epsilon or 0.0) if private else runs[0]
    blocks.append(Paragraph(f"The following statement is that of {chosen.name}, the run that spent the most:"))
    return Section(TITLE, [*blocks, *statement_section(chosen).blocks])


def _is_numeric(runs: Sequence[Run], key: str) -> bool:
    return all(isinstance(v := run.config.get(key), int | float) and not isinstance(v, bool) for run in runs)


def _is_search(runs: Sequence[Run], labels: Mapping[str, Any]) -> bool:
    """Return whether nearly every run has a setting of its own, as in a search."""
    return len(runs) > 4 and len(labels) > 0.8 * len(runs)
