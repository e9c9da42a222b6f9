"""Weights & Biases: a run in a project, by its library."""

from __future__ import annotations

import secrets
from collections.abc import Mapping

import wandb

from fedsvd.config import Config
from fedsvd.config.compose import as_dict
from fedsvd.runs.folder import RunFolder, read_json, write_json


class WandbRun:
    """See `fedsvd.tracking.Tracker`; offline runs wait in the run folder for ``wandb sync``."""

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
            # The numbers are meant to be told; source, terminal output and repository are not.
            settings=wandb.Settings(console="off", silent=True, disable_code=True, disable_git=True),
        )

    def log(self, server_round: int, values: Mapping[str, float]) -> None:
        """Hand a round's numbers to the library's own process."""
        self._run.log(dict(values), step=server_round)

    def close(self, succeeded: bool) -> None:
        """Say how the run ended, and wait for what is not sent yet."""
        self._run.finish(exit_code=0 if succeeded else 1)


def start(config: Config, folder: RunFolder) -> WandbRun:
    """Open the run, or an earlier process's."""
    return WandbRun(config, folder)
