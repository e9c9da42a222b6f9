"""TensorBoard tracker: writes event files to the run directory with torch's `SummaryWriter`."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch.utils.tensorboard import SummaryWriter

from fedsvd.config import Config
from fedsvd.config.compose import to_yaml
from fedsvd.runs.folder import RunFolder, read_rows


class TensorBoardRun:
    """A `fedsvd.tracking.Tracker`; view it with ``tensorboard --logdir runs``."""

    def __init__(self, config: Config, folder: RunFolder) -> None:
        # Events of rounds that an interrupted process logged and this one repeats are purged.
        first_round = (
            read_rows(folder.metrics)[-1]["server_round"] + 1 if config.resume and folder.metrics.exists() else None
        )
        self._writer = SummaryWriter(str(folder.root / "tensorboard"), purge_step=first_round)
        if first_round is None:
            # A fence longer than any in a prompt template of the configuration.
            text = to_yaml(config)
            fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
            self._writer.add_text("config", f"{fence}\n{text}\n{fence}", 0)

    def log(self, server_round: int, values: Mapping[str, float]) -> None:
        """Write the metrics of a round to disk."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, server_round)
        self._writer.flush()

    def close(self, succeeded: bool) -> None:
        """Close the event file."""
        self._writer.close()


def start(config: Config, folder: RunFolder) -> TensorBoardRun:
    """Open an event file for the run."""
    return TensorBoardRun(config, folder)
