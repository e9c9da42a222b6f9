"""MLflow: a run in an experiment, by the library's client."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

from mlflow.entities import Metric, Param
from mlflow.tracking import MlflowClient

from fedsvd.config import Config
from fedsvd.config.compose import as_dict
from fedsvd.runs.folder import RunFolder, read_json, write_json

# MLflow's own limits.
_LONGEST_VALUE, _MOST_PARAMS = 500, 100


class MlflowRun:
    """See `fedsvd.tracking.Tracker`; ``mlflow ui --backend-store-uri sqlite:///runs/mlflow.db`` shows it."""

    def __init__(self, config: Config, folder: RunFolder) -> None:
        uri = (
            config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or str(Path("runs/mlruns").resolve().as_uri())
        )
        self._client = MlflowClient(tracking_uri=uri)
        earlier = read_json(folder.tracking).get("mlflow") if config.resume else None
        if earlier:
            self._run_id = str(earlier)
            self._client.update_run(self._run_id, status="RUNNING")
            return
        experiment = self._client.get_experiment_by_name(config.tracking.project)
        known = experiment.experiment_id if experiment else self._client.create_experiment(config.tracking.project)
        self._run_id = self._client.create_run(known, run_name=folder.root.name).info.run_id
        write_json(folder.tracking, {"mlflow": self._run_id})
        params = [Param(key, str(value)[:_LONGEST_VALUE]) for key, value in _flat(as_dict(config)).items()]
        for start in range(0, len(params), _MOST_PARAMS):
            self._client.log_batch(self._run_id, params=params[start : start + _MOST_PARAMS])

    def log(self, server_round: int, values: Mapping[str, float]) -> None:
        """Send a round's numbers."""
        now = int(1000 * time.time())
        self._client.log_batch(self._run_id, [Metric(name, value, now, server_round) for name, value in values.items()])

    def close(self, succeeded: bool) -> None:
        """Say how the run ended."""
        self._client.set_terminated(self._run_id, "FINISHED" if succeeded else "FAILED")


def start(config: Config, folder: RunFolder) -> MlflowRun:
    """Open the run, or an earlier process's."""
    return MlflowRun(config, folder)


def _flat(values: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    result: dict[str, object] = {}
    for key, value in values.items():
        result |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return result
