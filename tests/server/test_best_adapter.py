"""The adapter of the best round is written from its checkpoint."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fedsvd.config import Config
from fedsvd.config.compose import compose
from fedsvd.lora.adapter import Adapter
from fedsvd.methods import build_run_method
from fedsvd.runs.best_round import read_best_round
from fedsvd.runs.folder import RunFolder
from fedsvd.runtime.model import initial_adapter
from server.best_adapter import best_round, write_best_adapter
from server.checkpoint import Checkpoint, save_checkpoint, saved_rounds

SMOKE = ["experiment=smoke", "privacy=none"]


@pytest.fixture(scope="module")
def config() -> Config:
    return compose(SMOKE)


@pytest.fixture(scope="module")
def start(config: Config) -> Adapter:
    return initial_adapter(config, build_run_method(config))


def after_round(start: Adapter, number: int) -> Adapter:
    return start.with_parts({"B": {name: torch.full_like(B, number) for name, B in start.B.items()}})


def run_rounds(config: Config, folder: RunFolder, start: Adapter, *accuracies: float | None) -> list[dict[str, Any]]:
    """Save the checkpoint of each round as a run does, and return the rows."""
    history: list[dict[str, Any]] = []
    for number, accuracy in enumerate(accuracies):
        history.append({"server_round": number, "accuracy": accuracy})
        checkpoint = Checkpoint(number, after_round(start, number), history, {})
        save_checkpoint(folder.checkpoints, checkpoint, best_round(config, folder, history))
    return history


def saved_value(folder: RunFolder) -> float:
    saved = load_file(folder.best_adapter / "adapter_model.safetensors")
    values = {float(tensor.mean()) for key, tensor in saved.items() if "lora_B" in key}
    assert len(values) == 1
    return values.pop()


def test_the_checkpoint_of_the_best_round_outlives_newer_ones(config: Config, start: Adapter, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    history = run_rounds(config, folder, start, 0.5, None, 0.8, 0.7, 0.8, 0.6, None)
    (tmp_path / ".adapter-best.tmp").mkdir()
    (tmp_path / ".adapter-best.tmp" / "incomplete").touch()

    best = write_best_adapter(config, folder, history, start)

    assert best == read_best_round(folder)
    assert best is not None
    assert (best.server_round, best.value, best.evaluated_rounds) == (2, 0.8, 5)
    assert best.num_examples == 100
    assert saved_value(folder) == 2
    # An adapter that improves later replaces it.
    history.append({"server_round": 7, "accuracy": 0.9})
    save_checkpoint(folder.checkpoints, Checkpoint(7, after_round(start, 7), history, {}), 7)
    write_best_adapter(config, folder, history, start)
    assert saved_value(folder) == 7
    assert saved_rounds(folder.checkpoints) == [5, 6, 7]
    assert {path.name for path in tmp_path.iterdir()} == {"adapter-best", "checkpoints"}


def test_a_missing_checkpoint_leaves_the_best_of_the_others(
    config: Config, start: Adapter, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = RunFolder(tmp_path)
    # As in a run that an earlier version started, which kept the newest checkpoints only.
    history = [{"server_round": number, "accuracy": [0.9, 0.5, 0.7][number]} for number in range(3)]
    for number in (1, 2):
        save_checkpoint(folder.checkpoints, Checkpoint(number, after_round(start, number), history, {}))

    with caplog.at_level(logging.WARNING, "server.best_adapter"):
        write_best_adapter(config, folder, history, start)

    assert saved_value(folder) == 2
    assert "round 0 was the best, but its checkpoint was not kept" in caplog.text


@pytest.mark.parametrize("override", ["train.keep_best=false", "method=fedsa_lora"])
def test_nothing_is_kept_without_the_key_or_without_a_single_model(
    override: str, start: Adapter, tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path)
    history = [{"server_round": 0, "accuracy": 0.9}]

    assert write_best_adapter(compose([*SMOKE, override]), folder, history, start) is None
    assert not folder.best_adapter.exists()
