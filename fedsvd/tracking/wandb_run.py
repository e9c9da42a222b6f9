"""Weights & Biases tracker: logs to a run of a project through `wandb`."""

from __future__ import annotations

import secrets
from collections.abc import Mapping

import wandb

from fedsvd.config import Config
from fedsvd.config.compose import as_dict
from fedsvd.runs.folder import RunFolder, read_json, write_json


class WandbRun:
    """A `fedsvd.tracking.Tracker`; offline runs are stored in the run directory and uploaded by ``wandb sync``."""

    def __init__(self, config: Config, folder: RunFolder) -> None:
        earlier = read_json(folder.tracking).get("wandb") if config.resume else None
        run_id = str(earlier or secrets.token_hex(8))
        write_json(folder.tracking, {"wandb": run_id})
        self._run = wandb.init(
            project=config.tracking.project,
            name=folder.root.name,
            id=run_id,
            resume="allow" if earlier and config.tracking.mode == "online" else None,
            dir=str(folder.root),
            mode=config.tracking.mode,
            config=as_dict(config),
            # Only metrics and configuration are uploaded, not source code, console output or repository state.
            settings=wandb.Settings(console="off", silent=True, disable_code=True, disable_git=True),
        )

    def log(self, server_round: int, values: Mapping[str, float]) -> None:
        """Pass the metrics of a round to the library's background process."""
        self._run.log(dict(values), step=server_round)

    def close(self, succeeded: bool) -> None:
        """Mark the run as finished or failed and wait for pending uploads."""
        self._run.finish(exit_code=0 if succeeded else 1)


def start(config: Config, folder: RunFolder) -> WandbRun:
    """Create a run, or continue that of the run being resumed."""
    return WandbRun(config, folder)
