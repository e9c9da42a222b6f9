"""The code that a model card shows predicts for long texts what the run's model predicts."""

from pathlib import Path

import pytest
import torch
from model_cards import run_card

import fedsvd
from fedsvd.cli import main
from fedsvd.trained.prediction import class_logits, unlabeled_dataset
from fedsvd.trained.run import load_trained_model, read_run

pytestmark = pytest.mark.slow

# More tokens than the run reads, and than the model has positions; the end says the opposite of the start.
LONG = "A fine and lovely film. " * 4 + "Dull, bad and boring. " * 60


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["model=tiny_roberta"],
        ["model.standardize=public", "model.pooling_layer=1"],
    ],
    ids=["stock", "roberta", "pooled"],
)
def test_a_cards_code_truncates_as_the_run_did(overrides: list[str], tmp_path: Path) -> None:
    arguments = ["train.head=private", "train.learning_rate=2", "model.max_length=16", "train.num_rounds=1"]
    run = tmp_path / "run"
    fedsvd.train("experiment=smoke", "privacy=none", "plots=false", *arguments, *overrides, run_dir=run)
    rows = unlabeled_dataset([LONG], None, ("negative", "positive"))
    expected = class_logits(load_trained_model(read_run(run)), rows)

    for kind in (["--merge"], []):
        folder = tmp_path / f"export{len(kind)}"
        assert main(["export", str(run), "--to", str(folder), *kind]) == 0
        torch.testing.assert_close(run_card(folder, LONG)["logits"].detach(), expected, atol=1e-3, rtol=1e-3)
