"""Regressions that start from an exported regression model: they start as good as it is, and are exported as it was."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import fedsvd
from fedsvd.cli import main
from fedsvd.runs.folder import read_json, read_rows

pytestmark = pytest.mark.slow

TEXTS = ["text 1 good", "text 2 good good good", "text 3"]
SHARED = ("experiment=smoke", "model.task=regression", "data=jsonl", "data.label_column=stars", "partition=iid",
          "data.label_range=[1,5]", "privacy=none", "train.head=private", "plots=false",
          "train.learning_rate=0.02")  # fmt: skip


def write_reviews(path: Path) -> Path:
    rows = [{"text": f"text {number} " + "good " * (number % 5), "stars": 1 + number % 5} for number in range(200)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@torch.no_grad()
def exported_predictions(folder: Path) -> Tensor:
    model: Any = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    batch = AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="pt")
    values: Tensor = model(**batch).logits[:, 0]
    return values


def predictions(run: Path, capsys: pytest.CaptureFixture[str]) -> Tensor:
    capsys.readouterr()
    assert main(["predict", str(run), "--json", *(word for text in TEXTS for word in ("--text", text))]) == 0
    return torch.tensor([json.loads(line)["prediction"] for line in capsys.readouterr().out.splitlines()])


@pytest.mark.parametrize("pooling", ["stock", "mean"])
@pytest.mark.parametrize("head_init", ["auto", "checkpoint"])
def test_a_run_starts_as_good_as_the_exported_model(
    pooling: str, head_init: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = f"data.path={write_reviews(tmp_path / 'reviews.jsonl')}"
    first, second, model = tmp_path / "first", tmp_path / "second", tmp_path / "model"
    fedsvd.train(*SHARED, data, f"model.pooling={pooling}", "train.num_rounds=2", run_dir=first)
    assert main(["export", str(first), "--to", str(model), "--merge"]) == 0

    # The second run trains nothing, so that its export is the first one's.
    settings = ("model.pooling=auto", f"train.head_init={head_init}", "train.trains=none", "train.num_rounds=1")
    fedsvd.train(*SHARED, data, f"model.source={model}", *settings, run_dir=second)

    last, start = read_rows(first / "metrics.jsonl")[-1], read_rows(second / "metrics.jsonl")[0]
    assert {key: start[key] for key in ("loss", "rmse", "pearson")} == pytest.approx(
        {key: last[key] for key in ("loss", "rmse", "pearson")}, rel=1e-3, abs=1e-4
    )
    assert "mapped from data.label_range = [1, 5] to 0 … 1" in read_json(second / "run.json")["checkpoint_head"]
    expected = exported_predictions(model)
    torch.testing.assert_close(predictions(second, capsys), expected, atol=2e-3, rtol=1e-3)
    assert main(["export", str(second), "--to", str(tmp_path / "again"), "--merge"]) == 0
    torch.testing.assert_close(exported_predictions(tmp_path / "again"), expected, atol=2e-3, rtol=1e-3)
