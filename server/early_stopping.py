"""Early stopping: end a run when the best evaluated round is too long ago."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedsvd.config import Config
from fedsvd.errors import ConfigError
from fedsvd.runs.best_round import EarlyStop, early_stop


class StoppedEarly(Exception):  # noqa: N818 - not an error
    """Ends `flwr.serverapp.strategy.Strategy.start`, which has no other way to take fewer rounds than planned."""


def early_stop_of(config: Config, history: Sequence[Mapping[str, Any]]) -> EarlyStop | None:
    """Return why a run ends after its last round, before the last planned one; None if it goes on or is complete.

    It follows from the rows alone: an interrupted run that is resumed ends after the same round, and a run that has
    stopped continues only if it is resumed with more patience.
    """
    return early_stop(history, config.model.task, config.train.early_stopping, config.train.rounds)


def check_evaluated(config: Config, facts: Mapping[str, Any]) -> None:
    """Check that a run which may stop early has the metric by which it stops.

    Args:
        config: The run's configuration.
        facts: The description of the run, see `fedsvd.runtime.description.describe_run`.

    Raises:
        ConfigError: Nothing is held out.
    """
    if config.train.early_stopping is None:
        return
    if not facts["held_out"]["num_examples"]:
        raise ConfigError(
            f"train.early_stopping = {config.train.early_stopping} is not possible with data={config.data.name}, of "
            "which the server holds out no texts: the rule needs a metric. Set data.test_path, or set it to null."
        )
