"""Log each round to TensorBoard, Weights & Biases or MLflow, through its own library.

Trackers receive the content of ``metrics.jsonl`` and ``config.yaml``. The server has these numbers anyway, so logging
them has no additional privacy cost; but whoever operates the tracking service receives them. With client-level privacy,
they do not receive what only the server may know (see `fedsvd.runs.outgoing`).
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
from fedsvd.runs.outgoing import outgoing_row

LogRow = Callable[[Mapping[str, Any]], None]


class Tracker(Protocol):
    """A run at a tracking service."""

    def log(self, server_round: int, values: Mapping[str, float]) -> None:
        """Log the metrics of a round."""

    def close(self, succeeded: bool) -> None:
        """Mark the run as finished or failed and release all resources."""


def check_tracking(tracking: TrackingConfig) -> None:
    """Check that the tracking library is installed, before anything is loaded.

    Raises:
        ConfigError: The library is not installed.
    """
    if tracking.name != "none" and importlib.util.find_spec(tracking.name) is None:
        raise ConfigError(
            f"tracking = {tracking.name!r} needs a library that is not installed; run pip install "
            f"'fedsvd[{tracking.name}]', or set tracking=none."
        )


@contextmanager
def open_tracker(config: Config, folder: RunFolder, warn: Callable[[str], None]) -> Iterator[LogRow]:
    """Open a run at the configured tracking service and yield a function that logs a row of metrics.

    A resumed run continues the same run at the service. If the service fails during the run or at its end, one warning
    is issued and logging stops: privacy budget that has been spent must not be wasted because of a tracker, and the run
    directory has all the metrics. Neither does such a failure hide the error of a run that fails.

    Args:
        config: Configuration of the run.
        folder: Run directory.
        warn: Called with the text of a warning.

    Yields:
        Function to call with each row of ``metrics.jsonl``; does nothing with ``tracking=none``.

    Raises:
        ConfigError: The library is not installed, or the service cannot be used; no round has started yet.
    """
    check_tracking(config.tracking)
    name = config.tracking.name
    if name == "none":
        yield lambda row: None
        return
    tracker = _start(config, folder)
    enabled = True

    def log_row(row: Mapping[str, Any]) -> None:
        nonlocal enabled
        if not enabled:
            return
        try:
            tracker.log(row["server_round"], scalars(outgoing_row(row, config)))
        except Exception as error:  # No error of a tracking library may end the run.
            enabled = False
            warn(
                f"tracking={name} failed and is disabled for the rest of the run ({error}); "
                "metrics.jsonl has every round"
            )

    def close(succeeded: bool) -> None:
        try:
            tracker.close(succeeded)
        except Exception as error:  # As above.
            if enabled:
                warn(
                    f"tracking={name} failed at the end of the run ({error}); what the service shows of it may be "
                    "incomplete, and metrics.jsonl has every round"
                )

    try:
        yield log_row
    except BaseException:
        close(succeeded=False)
        raise
    close(succeeded=True)


def _start(config: Config, folder: RunFolder) -> Tracker:
    settings = config.tracking
    try:
        tracker: Tracker = importlib.import_module(f"fedsvd.tracking.{settings.name}_run").start(config, folder)
    except Exception as error:  # Libraries raise errors of many classes for a wrong address, login or directory.
        uri = "null" if settings.uri is None else repr(settings.uri)
        remedy = {
            "mlflow": f"tracking.uri = {uri}: expected the address of a server or store of MLflow that can be used, "
            "such as http://localhost:5000. Correct it (or MLFLOW_TRACKING_URI, where it is null)",
            "wandb": "Check the network and the login (wandb login), or set tracking.mode=offline",
            "tensorboard": "Check that the run directory can be written",
        }[settings.name]
        raise ConfigError(
            f"tracking = {settings.name!r} cannot be started ({error}). {remedy}; or set tracking=none."
        ) from error
    return tracker


def scalars(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers in a row: its own, each client's ε, and means over adapted layers; nulls are omitted."""
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
