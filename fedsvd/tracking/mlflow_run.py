"""MLflow tracker: logs to a run of an experiment through `MlflowClient`."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

from mlflow.entities import Metric, Param
from mlflow.tracking import MlflowClient

from fedsvd.config import Config
from fedsvd.config.compose import as_dict
from fedsvd.config.flat import flatten
from fedsvd.runs.folder import RunFolder, read_json, write_json

# Limits of MLflow on the length of a parameter value and the number of parameters per call.
_MAX_VALUE_LENGTH, _MAX_PARAMS = 500, 100
# A round waits for its tracker. With MLflow's own limits, it waits four minutes for a service that is down, and longer
# for one that does not answer; with these, 15 seconds and a minute and a half.
_LIMITS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}


class MlflowRun:
    """A `fedsvd.tracking.Tracker`.

    ``MLFLOW_ALLOW_FILE_STORE=true mlflow ui --backend-store-uri runs/mlruns`` shows the default store.
    """

    def __init__(self, config: Config, folder: RunFolder) -> None:
        for name, value in _LIMITS.items():
            os.environ.setdefault(name, value)
        self._client = MlflowClient(tracking_uri=config.tracking.uri or _default_uri())
        earlier = read_json(folder.tracking).get("mlflow") if config.resume else None
        if earlier:
            self._run_id = str(earlier)
            self._client.update_run(self._run_id, status="RUNNING")
            return
        experiment = self._client.get_experiment_by_name(config.tracking.project)
        experiment_id = (
            experiment.experiment_id if experiment else self._client.create_experiment(config.tracking.project)
        )
        self._run_id = self._client.create_run(experiment_id, run_name=folder.root.name).info.run_id
        write_json(folder.tracking, {"mlflow": self._run_id})
        params = [Param(key, str(value)[:_MAX_VALUE_LENGTH]) for key, value in flatten(as_dict(config)).items()]
        for start in range(0, len(params), _MAX_PARAMS):
            self._client.log_batch(self._run_id, params=params[start : start + _MAX_PARAMS])

    def log(self, server_round: int, values: Mapping[str, float]) -> None:
        """Log the metrics of a round."""
        now = int(1000 * time.time())
        self._client.log_batch(self._run_id, [Metric(name, value, now, server_round) for name, value in values.items()])

    def close(self, succeeded: bool) -> None:
        """Mark the run as finished or failed."""
        self._client.set_terminated(self._run_id, "FINISHED" if succeeded else "FAILED")


def start(config: Config, folder: RunFolder) -> MlflowRun:
    """Create a run, or continue that of the run being resumed."""
    return MlflowRun(config, folder)


def _default_uri() -> str:
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if uri:
        return uri
    # MLflow 3.17 uses a store of files only where this is set. It holds the runs of earlier versions.
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    return Path("runs/mlruns").resolve().as_uri()
