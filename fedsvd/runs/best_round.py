"""The best round of a run by its held-out metric, the file that says which it is, and the rule for early stopping."""

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
        figure = f"{self.metric} on {self.num_examples:,} {_SETS[self.evaluate_on]} texts ({self.formatted})"
        if self.evaluated_rounds == 1:
            return f"round {self.server_round}, the only one that was evaluated, by {figure}."
        text = (
            f"round {self.server_round}, the best of {self.evaluated_rounds} evaluated rounds by {figure}. It was "
            "chosen on these texts, so this figure is optimistic"
        )
        if self.evaluate_on == "validation":
            return f"{text}; fedsvd evaluate RUN_DIR --best data.evaluate_on=test measures it on the test texts."
        return f"{text}; to measure it without bias, choose it with data.evaluate_on=validation."


@dataclass(frozen=True)
class EarlyStop:
    """Why a run ended before its last planned round.

    Attributes:
        server_round: The last round that took place.
        num_rounds: Number of planned rounds.
        best_round: The best round.
        metric: The name of the metric that has not improved since.
        patience: ``train.early_stopping``.
    """

    server_round: int
    num_rounds: int
    best_round: int
    metric: str
    patience: int

    def __str__(self) -> str:
        """Say when and why the run ended, in one line."""
        return (
            f"stopped early after round {self.server_round} of {self.num_rounds}: {self.metric} has not improved since "
            f"round {self.best_round} (train.early_stopping = {self.patience}); a larger value, or null, continues it "
            "with resume"
        )


def early_stop(rows: Sequence[Mapping[str, Any]], task: str, patience: int | None, num_rounds: int) -> EarlyStop | None:
    """Return why a run stops after its last row; None if it does not, or if that is the last planned round.

    It stops after an evaluated round if the best round is ``patience`` or more rounds ago.

    Args:
        rows: Rows of ``metrics.jsonl``.
        task: The task of the run (``model.task``).
        patience: ``train.early_stopping``.
        num_rounds: Number of planned rounds.
    """
    best, metric = best_row(rows, task), metric_of(task)
    if patience is None or best is None or rows[-1].get(metric.key) is None:
        return None
    last, best_round = int(rows[-1]["server_round"]), int(best["server_round"])
    if last >= num_rounds or last - best_round < patience:
        return None
    return EarlyStop(last, num_rounds, best_round, metric.label, patience)


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
