"""Tell TensorBoard, Weights & Biases or MLflow of each round, through its own library.

What is told is what stands in ``metrics.jsonl`` and ``config.yaml``: numbers that the server has anyway, so that they
cost no more privacy; but they go to whoever runs the service.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from fedsvd.config import Config
from fedsvd.config.tracking import TrackingConfig
from fedsvd.errors import ConfigError
from fedsvd.runs.folder import RunFolder

Track = Callable[[Mapping[str, Any]], None]


class Tracker(Protocol):
    """One run at one service."""

    def log(self, server_round: int, values: Mapping[str, float]) -> None:
        """Tell of a round."""

    def close(self, succeeded: bool) -> None:
        """Say how the run ended, and let go."""


def check_tracking(tracking: TrackingConfig) -> None:
    """See that the library is there, before anything is loaded.

    Raises:
        ConfigError: It is not.
    """
    if tracking.name != "none" and importlib.util.find_spec(tracking.name) is None:
        raise ConfigError(
            f"tracking = {tracking.name!r} needs a library that is not installed: pip install "
            f"'fedsvd[{tracking.name}]', or leave tracking at none."
        )


@contextmanager
def tracked(config: Config, folder: RunFolder, warn: Callable[[str], None]) -> Iterator[Track]:
    """Open a run at the service that the configuration names, and yield what is called with each row.

    A run that is resumed goes on with the same run there. A service that fails in the middle is warned of once and told
    no more: what has been spent on privacy must not be lost for it, and all is in the run folder.

    Args:
        config: The run's.
        folder: The run's.
        warn: Called with what went wrong.

    Raises:
        ConfigError: The library is not installed.
    """
    check_tracking(config.tracking)
    if config.tracking.name == "none":
        yield lambda row: None
        return
    tracker: Tracker = importlib.import_module(f"fedsvd.tracking.{config.tracking.name}_run").start(config, folder)
    working = True

    def tell(row: Mapping[str, Any]) -> None:
        nonlocal working
        if not working:
            return
        try:
            tracker.log(row["server_round"], scalars(row))
        except Exception as error:  # Whatever a service's library raises, the run goes on.
            working = False
            warn(f"tracking={config.tracking.name} failed and is told no more ({error}); metrics.jsonl has every round")

    try:
        yield tell
    except BaseException:
        tracker.close(succeeded=False)
        raise
    tracker.close(succeeded=True)


def scalars(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a row: its own, each client's ε, and means over sites; what is null is left out."""
    values = {key: float(value) for key, value in row.items() if _is_number(value) and key != "server_round"}
    for name, epsilon in row.get("client_epsilons", {}).items():
        if _is_number(epsilon):
            values[f"client_epsilon/{name}"] = float(epsilon)
    sites = list(row.get("sites", {}).values())
    if sites:
        for key in ("effective_rank", "nuclear_norm", "principal_angle"):
            values[f"sites/{key}"] = sum(site[key] for site in sites) / len(sites)
        for index in range(min(len(site["singular_values"]) for site in sites)):
            values[f"singular_value/{index}"] = sum(site["singular_values"][index] for site in sites) / len(sites)
    return values


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
