"""The factors with which a resumed run starts are those of its clients."""

from pathlib import Path

import pytest
import torch

from fedsvd.errors import ResumeError
from fedsvd.lora.adapter import Adapter
from fedsvd.lora.initialization import initialize_factors
from fedsvd.methods import Step, build_method
from server.checkpoint import Checkpoint, save_checkpoint
from server.downlink import Downlink
from server.resumed_start import load_start

ROTATION = torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=torch.float64)


def start(init_a: str) -> Adapter:
    shapes = Adapter({"q": torch.zeros(2, 6)}, {"q": torch.zeros(5, 2)}, {}, {"q": 1.0})
    return initialize_factors(shapes, init_a=init_a, init_b="zeros", seed=3)


def save(folder: Path, first: Adapter) -> None:
    """Save the checkpoint of a run whose first round has rotated A and replaced B."""
    downlink = Downlink(build_method({"name": "fedsvd"}), first)
    rotated = {"q": (ROTATION.mT @ first.A["q"].double()).float()}
    step = Step(first.with_parts({"A": rotated, "B": {"q": torch.ones(5, 2)}}), {"A": {"q": ROTATION}})
    adapter = downlink.advance(step, 1)
    save_checkpoint(folder, Checkpoint(1, adapter, [], {}, downlink.state))


def test_factors_of_the_method_are_loaded_after_rotations(tmp_path: Path) -> None:
    save(tmp_path, start("orthonormal"))
    loaded = load_start(tmp_path, start("orthonormal"), 3)
    torch.testing.assert_close(loaded.adapter.A["q"], (ROTATION.mT @ start("orthonormal").A["q"].double()).float())


def test_a_rotation_of_other_initial_factors_is_refused(tmp_path: Path) -> None:
    save(tmp_path, start("kaiming"))
    with pytest.raises(ResumeError, match=r"round-000001 of an earlier version of fedsvd cannot be resumed"):
        load_start(tmp_path, start("orthonormal"), 3)
    # These are the initial factors of other methods.
    assert load_start(tmp_path, start("kaiming"), 3).server_round == 1
