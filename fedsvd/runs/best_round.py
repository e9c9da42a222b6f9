"""The best round of a run by its held-out metric, and the file that says which round ``adapter-best/`` is of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedsvd.config.task import TASKS, Metric
from fedsvd.runs.folder import RunFolder, read_json, write_json

BEST_ROUND_FILE = "best_round.json"
_PERPLEXITY = Metric("perplexity", "perplexity", is_share=False)
_SETS = {"test": "held-out", "validation": "validation"}


@dataclass(frozen=True)
class BestRound:
    """The round whose adapter is in ``adapter-best/``, and how it was chosen.

    Attributes:
        server_round: The round; 0 is the model before training.
        metric: The name of the metric by which it was chosen.
        value: Its value on the texts by which it was chosen.
        formatted: The value as people read it.
        evaluate_on: These texts: those of ``data.evaluate_on``.
        num_examples: Their number.
        evaluated_rounds: Number of rounds among which it was chosen.
    """

    server_round: int
    metric: str
    value: float
    formatted: str
    evaluate_on: str
    num_examples: int
    evaluated_rounds: int

    def __str__(self) -> str:
        """Describe the choice, and what its figure is worth, in one line."""
        text = (
            f"round {self.server_round}, the best of {self.evaluated_rounds} evaluated rounds by {self.metric} on "
            f"{self.num_examples:,} {_SETS[self.evaluate_on]} texts ({self.formatted}). It was chosen on these texts, "
            "so this figure is optimistic"
        )
        if self.evaluate_on == "validation":
            return f"{text}; fedsvd evaluate RUN_DIR --best data.evaluate_on=test measures it on the test texts."
        return f"{text}; to measure it without bias, choose it with data.evaluate_on=validation."


def metric_of(task: str) -> Metric:
    """Return the metric by which the rounds of a run are compared: the first one of its task (``model.task``).

    For a language model it is the perplexity, since few answers match exactly, if any.
    """
    return _PERPLEXITY if task == "causal_lm" else TASKS[task].metrics[0]


def best_row(rows: Sequence[Mapping[str, Any]], task: str) -> Mapping[str, Any] | None:
    """Return the row of the best evaluated round, the first one on ties; None if no round was evaluated."""
    metric = metric_of(task)
    evaluated = [row for row in rows if row.get(metric.key) is not None]
    sign = -1 if metric is _PERPLEXITY else 1
    return max(evaluated, key=lambda row: sign * float(row[metric.key]), default=None)


def write_best_round(adapter: Path, best: BestRound) -> None:
    """Write into the directory of an adapter which round it is of."""
    write_json(adapter / BEST_ROUND_FILE, asdict(best))


def read_best_round(folder: RunFolder) -> BestRound | None:
    """Return the round of a run's best adapter; None if it kept none, or the file cannot be read."""
    try:
        return BestRound(**read_json(folder.best_adapter / BEST_ROUND_FILE))
    except TypeError:
        return None
