"""TensorBoard: event files in the run folder, by the writer that torch has for them."""

from __future__ import annotations

from collections.abc import Mapping

from torch.utils.tensorboard import SummaryWriter

from fedsvd.config import Config
from fedsvd.config.compose import to_yaml
from fedsvd.runs.folder import RunFolder, read_rows


class TensorBoardRun:
    """See `fedsvd.tracking.Tracker`; ``tensorboard --logdir runs`` shows it."""

    def __init__(self, config: Config, folder: RunFolder) -> None:
        # What an earlier process told of rounds that are now taken again is struck out.
        again = read_rows(folder.metrics)[-1]["server_round"] + 1 if config.resume and folder.metrics.exists() else None
        self._writer = SummaryWriter(str(folder.root / "tensorboard"), purge_step=again)
        if again is None:
            self._writer.add_text("config", f"```\n{to_yaml(config)}\n```", 0)

    def log(self, server_round: int, values: Mapping[str, float]) -> None:
        """Write a round's numbers to disk."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, server_round)
        self._writer.flush()

    def close(self, succeeded: bool) -> None:
        """Close the event file."""
        self._writer.close()


def start(config: Config, folder: RunFolder) -> TensorBoardRun:
    """Open the run's event file."""
    return TensorBoardRun(config, folder)
