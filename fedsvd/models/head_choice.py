"""The setting ``train.head_init``, resolved for a checkpoint: whether its classification head is kept."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from transformers import AutoConfig

from fedsvd.config import ModelConfig
from fedsvd.config.head import reads_stock_features
from fedsvd.config.task import TASKS
from fedsvd.errors import ModelError
from fedsvd.models.checkpoint_head import KeptHead, head_classes
from fedsvd.models.embedded import quiet_transformers, resolve_source
from fedsvd.models.label_range import Range
from fedsvd.models.load_errors import convert_errors

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class HeadChoice:
    """What happens to a checkpoint's classification head.

    Attributes:
        kept: How it becomes the head of the task; None if the head is initialized anew.
        summary: One line for the console and the run's record; empty if the checkpoint has no head.
    """

    kept: KeptHead | None
    summary: str


@lru_cache(maxsize=16)
def choose_head(
    config: ModelConfig, classes: tuple[str, ...], head_init: str, label_range: Range | None = None
) -> HeadChoice:
    """Resolve ``train.head_init`` for a checkpoint; the choice is logged once.

    Args:
        config: The ``model`` configuration group.
        classes: The task's classes.
        head_init: ``train.head_init``.
        label_range: ``data.label_range``, in whose units a kept head is taken to predict.

    Raises:
        ModelError: ``checkpoint`` is asked for, and the checkpoint has no head or one of another number of classes; or
            the model cannot be loaded.
    """
    if config.task == "causal_lm":
        return HeadChoice(None, "")
    with quiet_transformers(), convert_errors(config.source):
        architecture = AutoConfig.from_pretrained(resolve_source(config.source))
    names = head_classes(architecture, TASKS[config.task].auto_class)
    if head_init == "checkpoint":
        choice = _by_number(config.source, names, classes)
    elif names is None:
        return HeadChoice(None, "")
    else:
        choice = _by_name(config, names, classes, head_init)
    if choice.kept is not None and label_range is not None:
        low, high = label_range
        note = f"; its predictions are mapped from data.label_range = [{low:g}, {high:g}] to 0 … 1 for training"
        choice = HeadChoice(replace(choice.kept, label_range=label_range), choice.summary + note)
    logger.info("head of %s: %s", config.source, choice.summary)
    return choice


def _by_number(source: str, names: tuple[str, ...] | None, classes: Sequence[str]) -> HeadChoice:
    if names is None:
        raise ModelError(
            f"train.head_init = checkpoint is not possible: model.source = {source!r} has no classification head. Set "
            "train.head_init=random, or choose a checkpoint with a head."
        )
    if len(names) != len(classes):
        raise ModelError(
            f"train.head_init = checkpoint is not possible: the head of model.source = {source!r} has {len(names)} "
            f"classes ({', '.join(names)}), the data have {len(classes)} ({', '.join(classes)}). Set "
            "train.head_init=random, or choose a checkpoint whose head has as many classes."
        )
    pairs = ", ".join(f"{name} as {own}" for name, own in zip(names, classes, strict=True))
    return HeadChoice(KeptHead(tuple(range(len(names)))), f"the checkpoint's, by number ({pairs})")


def _by_name(config: ModelConfig, names: tuple[str, ...], classes: Sequence[str], head_init: str) -> HeadChoice:
    if head_init != "auto":
        return HeadChoice(None, f"new, in place of the checkpoint's (train.head_init={head_init})")
    if not reads_stock_features(config):
        return HeadChoice(None, "new, in place of the checkpoint's, which reads other features (model.pooling=stock)")
    numbers = {name.strip().casefold(): number for number, name in enumerate(names)}
    wanted = [name.strip().casefold() for name in classes]
    if len(numbers) == len(names) == len(classes) and set(wanted) == set(numbers):
        rows = tuple(numbers[name] for name in wanted)
        return HeadChoice(KeptHead(rows), "the checkpoint's, whose classes have these names")
    hint = "; train.head_init=checkpoint keeps it by number" if len(names) == len(classes) else ""
    return HeadChoice(None, f"new, in place of the checkpoint's, whose classes are {', '.join(names)}{hint}")
