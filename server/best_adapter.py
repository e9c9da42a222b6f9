"""The adapter of the best round: its checkpoint is kept, and ``adapter-best/`` is written from it at the end.

The choice follows from the rows and the checkpoints alone, so a resumed run continues it.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from fedsvd.config import Config
from fedsvd.lora import peft_model
from fedsvd.lora.adapter import Adapter
from fedsvd.methods import build_run_method
from fedsvd.runs.best_round import BestRound, best_row, metric_of, write_best_round
from fedsvd.runs.folder import RunFolder, fsync_path
from fedsvd.runtime.data import load_held_out
from fedsvd.runtime.model import load_model
from server.checkpoint import load_checkpoint, saved_rounds

logger = logging.getLogger(__name__)


def best_round(config: Config, folder: RunFolder, history: Sequence[Mapping[str, Any]]) -> int | None:
    """Return the best round among those with a checkpoint and the last one; None if no adapter is kept.

    A method whose clients keep factors has no adapter that could be kept.
    """
    if not config.train.keep_best or build_run_method(config).traits.personal:
        return None
    saved = {*saved_rounds(folder.checkpoints), history[-1]["server_round"]}
    best = best_row([row for row in history if row["server_round"] in saved], config.model.task)
    return None if best is None else int(best["server_round"])


def write_best_adapter(
    config: Config, folder: RunFolder, history: Sequence[Mapping[str, Any]], like: Adapter
) -> BestRound | None:
    """Write ``adapter-best/`` from the checkpoint of the best round, and return the choice; None if none is kept.

    An earlier directory is replaced once the new one is complete.

    Args:
        config: The run's configuration.
        folder: The run directory.
        history: The rows of ``metrics.jsonl``.
        like: Adapter with the expected sites, shapes and scales.

    Raises:
        RunError: The checkpoint cannot be read.
    """
    number = best_round(config, folder, history)
    if number is None:
        return None
    metric = metric_of(config.model.task)
    evaluated = [row for row in history if row.get(metric.key) is not None]
    overall = best_row(evaluated, config.model.task)
    if overall is not None and overall["server_round"] != number:
        logger.warning(
            "round %d was the best, but its checkpoint was not kept: adapter-best/ is of round %d, the best of the "
            "others", overall["server_round"], number,
        )  # fmt: skip
    value = next(float(row[metric.key]) for row in evaluated if row["server_round"] == number)
    num_examples = len(load_held_out(config))
    best = BestRound(
        number, metric.label, value, metric.format(value), config.data.evaluate_on, num_examples, len(evaluated)
    )
    adapter = load_checkpoint(folder.checkpoints, number, like).adapter
    target = folder.best_adapter
    written, replaced = (target.with_name(f".{target.name}.{state}") for state in ("tmp", "old"))
    for leftover in (written, replaced):
        shutil.rmtree(leftover, ignore_errors=True)
    peft_model.save_pretrained(load_model(config), adapter, written)
    write_best_round(written, best)
    for path in written.iterdir():
        fsync_path(path)
    if target.exists():
        target.rename(replaced)
    written.rename(target)
    fsync_path(target.parent)
    shutil.rmtree(replaced, ignore_errors=True)
    return best
