"""Whether the runs of a comparison without privacy were at their plateau when they ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedsvd.config.compare import CompareConfig
from fedsvd.config.task import Metric
from fedsvd.report.literal import markdown_text
from fedsvd.report.statistics import mean_and_error, mean_with_error

Rows = Sequence[Mapping[str, Any]]


def late_gain(row: Mapping[str, Any]) -> float | None:
    """Return what a run gained in the second half of its rounds; None without an evaluation in the middle.

    Args:
        row: A row of ``results.jsonl`` with the metric by evaluated round under ``evaluations``.
    """
    values = {int(key): value for key, value in row.get("evaluations", {}).items() if value is not None}
    if not values or max(values) < 2:
        return None
    last = max(values)
    middle = min(values, key=lambda server_round: (abs(server_round - last / 2), server_round))
    return values[last] - values[middle] if middle not in (0, last) else None


def plateau_section(rows: Rows, settings: CompareConfig, metrics: Mapping[str, Metric]) -> str | None:
    """Return a table of the gains in the second half of the rounds without privacy; None if no run has any.

    Args:
        rows: Rows of ``results.jsonl``.
        settings: Configuration group ``compare``.
        metrics: The metric of each task.
    """
    gains: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        if row["phase"] == "final" and not row["epsilon"] and (gain := late_gain(row)) is not None:
            gains.setdefault((row["contender"], row["task"]), []).append(gain)
    if not gains:
        return None
    lines = [
        "## Plateau without privacy",
        "",
        "What the runs with ε = ∞ gained in the second half of their rounds, mean ± standard error over the seeds.",
        "",
        f"| | {' | '.join(map(markdown_text, settings.chosen_tasks))} |",
        "|---" * (len(settings.chosen_tasks) + 1) + "|",
    ]
    for contender in settings.chosen_contenders:
        cells = [_cell(gains.get((contender, task), []), metrics[task]) for task in settings.chosen_tasks]
        if any(cell != "–" for cell in cells):
            lines.append(f"| {markdown_text(contender)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(gains: Sequence[float], metric: Metric) -> str:
    if not gains:
        return "–"
    return mean_with_error(*mean_and_error(gains), metric, sign="+")
