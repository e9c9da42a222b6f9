"""Runs of the head alone that are resumed with more rounds, in which their method starts."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import fedsvd
from fedsvd.cli import main
from fedsvd.config.compose import compose
from fedsvd.lora.initialization import initialize_factors
from fedsvd.methods import build_run_method
from fedsvd.report.loaded_runs import read_run
from fedsvd.report.run_sections import summary
from fedsvd.runtime.model import initial_adapter

pytestmark = pytest.mark.slow

OVERRIDES = [
    "experiment=smoke", "train.head=private", "train.head_rounds=2", "train.local_steps=1", "privacy=none",
    "plots=false", "data.max_train_examples=60", "data.max_test_examples=20",
]  # fmt: skip
METHODS = [
    ["method=fedsvd"],
    ["method=fedsvd", "method.init_a=dct"],
    ["method=ffa_lora", "method.init_a=public_pca"],
    ["method=fed_sb"],
    ["method=fedsa_lora"],
]


def train(folder: Path, *overrides: str) -> Path:
    fedsvd.train(*OVERRIDES, *overrides, run_dir=folder)
    return folder


def checkpoint(folder: Path, server_round: int) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / f"round-{server_round:06d}" / "adapter.safetensors")


@pytest.mark.parametrize("method", METHODS, ids=" ".join)
def test_more_rounds_have_the_result_of_a_run_of_as_many(method: list[str], tmp_path: Path) -> None:
    at_once = train(tmp_path / "at once", *method, "train.num_rounds=4")
    resumed = train(tmp_path / "resumed", *method, "train.num_rounds=2")
    assert "Method head only" in str(summary(read_run(resumed, resumed)))
    assert main(["train", f"resume={resumed}", "train.num_rounds=4"]) == 0

    expected, actual = checkpoint(at_once, 4), checkpoint(resumed, 4)
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(actual[name], tensor, msg=lambda text, name=name: f"{name}: {text}")
    assert f"Method {method[0].removeprefix('method=')}" in str(summary(read_run(resumed, resumed)))


def as_an_earlier_version_wrote_it(folder: Path) -> None:
    """Replace the factors of the last checkpoint by those that all runs of the head alone had."""
    path = folder / "checkpoints" / "round-000002" / "adapter.safetensors"
    tensors = {name: tensor for name, tensor in load_file(path).items() if not name.startswith("core/")}
    config = compose([*OVERRIDES, "train.trains=head"])
    adapter = initial_adapter(config, build_run_method(config))
    old = initialize_factors(adapter, init_a="kaiming", init_b="zeros", seed=config.seed)
    for part in ("A", "B"):
        tensors |= {f"{part}/{name}": tensor.contiguous() for name, tensor in old.part(part).items()}
    save_file(tensors, path)


@pytest.mark.parametrize("method", [*METHODS[:4], ["method=fedavg_lora", "method.init_b=kaiming"]], ids=" ".join)
def test_checkpoints_with_other_initial_factors_are_refused(
    method: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = train(tmp_path / "run", *method, "train.num_rounds=2")
    as_an_earlier_version_wrote_it(folder)
    rows = (folder / "metrics.jsonl").read_bytes()

    for overrides in ([], ["train.num_rounds=4"]):
        assert main(["train", f"resume={folder}", *overrides]) == 2
        message = capsys.readouterr().err
        assert "round-000002 of an earlier version of fedsvd cannot be resumed" in message
        assert "start a new run (without resume)" in message
    assert (folder / "metrics.jsonl").read_bytes() == rows
