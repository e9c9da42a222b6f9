"""The weight of each class in the clients' loss, from public numbers only.

The numbers of labels in the clients' data are private: weights that were computed from them would reveal them, outside
of the guarantee. So ``balanced`` takes public numbers (``train.label_counts``), or counts the labels of the held-out
texts, which are not protected anyway.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from fedsvd.config import Config
from fedsvd.config.class_weights import HELD_OUT
from fedsvd.data.targets import count_labels
from fedsvd.errors import ConfigError
from fedsvd.runtime.data import class_names, load_held_out

Number = TypeVar("Number", int, float)
GIVEN, COUNTS = "train.class_weights", "train.label_counts"


def class_weights(config: Config) -> tuple[float, ...] | None:
    """Return the weight of each class, in the order of the classes; None without weights.

    ``balanced`` is ``n / (K · n_k)`` for n_k of n examples in class k of K, as in scikit-learn: all classes together
    weigh the same, and the mean weight of the counted examples is 1.

    Raises:
        ConfigError: The weights or counts do not fit the classes, or a class has no held-out text.
    """
    given = config.train.class_weights
    if given is None:
        return None
    names = class_names(config)
    if given != "balanced":
        return tuple(map(float, _by_class(given, names, "class_weights")))
    if config.train.label_counts is not None:
        counts = _by_class(config.train.label_counts, names, "label_counts")
    else:
        counts = _held_out_counts(config, names)
    return tuple(sum(counts) / (len(names) * count) for count in counts)


def describe_class_weights(config: Config) -> dict[str, Any] | None:
    """Return the weights by class and where they come from, for the run's record; None without weights."""
    weights = class_weights(config)
    if weights is None:
        return None
    source = GIVEN if config.train.class_weights != "balanced" else COUNTS if config.train.label_counts else HELD_OUT
    return {"weights": dict(zip(class_names(config), weights, strict=True)), "source": source}


def _held_out_counts(config: Config, names: Sequence[str]) -> list[int]:
    by_class = count_labels(load_held_out(config))
    counts = [by_class.get(name, 0) for name in names]
    missing = [name for name, count in zip(names, counts, strict=True) if not count]
    if missing:
        raise ConfigError(
            f"train.class_weights = balanced is not possible: no held-out text is of class {', '.join(missing)}. Give "
            "public numbers of examples per class in train.label_counts, or the weights themselves."
        )
    return counts


def _by_class(values: Mapping[str, Number] | Sequence[Number], names: Sequence[str], key: str) -> list[Number]:
    """Return numbers in the order of the classes."""
    if isinstance(values, Mapping):
        if values.keys() != set(names):
            raise ConfigError(
                f"train.{key} has the classes {', '.join(values)}: expected a number for each of {', '.join(names)}."
            )
        return [values[name] for name in names]
    if len(values) != len(names):
        raise ConfigError(
            f"train.{key} has {len(values)} numbers: expected {len(names)}, one for each of {', '.join(names)}."
        )
    return list(values)
