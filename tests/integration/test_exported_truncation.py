"""The code that a model card shows predicts for long texts what the run's model predicts."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import fedsvd
from fedsvd.cli import main
from fedsvd.trained.prediction import class_logits, unlabeled_dataset
from fedsvd.trained.run import load_trained_model, read_run

pytestmark = pytest.mark.slow

# More tokens than the run reads, and than the model has positions; the end says the opposite of the start.
LONG = "A fine and lovely film. " * 4 + "Dull, bad and boring. " * 60


def outputs_of_card(folder: Path) -> torch.Tensor:
    """Execute the code of a model card on the long text, and return its logits."""
    [code] = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    scope: dict[str, Any] = {}
    with torch.no_grad():
        exec(code.replace("FOLDER", str(folder)).replace("A text.", LONG), scope)
    logits: torch.Tensor = scope["logits"]
    return logits


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
        torch.testing.assert_close(outputs_of_card(folder), expected, atol=1e-3, rtol=1e-3)
