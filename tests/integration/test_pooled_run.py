"""A run on pooled, standardized features: its record, its model, and exports that load without fedsvd."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fedsvd
from fedsvd.cli import main
from fedsvd.runs.folder import read_json, read_rows
from fedsvd.trained.prediction import class_logits, unlabeled_dataset
from fedsvd.trained.run import load_trained_model, read_run

pytestmark = pytest.mark.slow

LOADER = Path(__file__).with_name("load_pooled_exports.py")
TEXTS = ["A fine film.", "Dull, dull, dull.", "See it [twice] if you can, and then again."]


def train(folder: Path, *overrides: str) -> Path:
    # FedEx-LoRA merges into frozen weights, which the exports must contain.
    arguments = ["method=fedex_lora", "train.head=private", "train.learning_rate=2", "plots=false"]
    fedsvd.train("experiment=smoke", *arguments, *overrides, run_dir=folder)
    return folder


@pytest.fixture(scope="module")
def pooled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "pooled"
    return train(folder, "model.standardize=public", "model.pooling_layer=1")


@pytest.fixture(scope="module")
def last_token(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("runs") / "last", "model.pooling=last")


def logits(folder: Path) -> torch.Tensor:
    return class_logits(load_trained_model(read_run(folder)), unlabeled_dataset(TEXTS, None, ("negative", "positive")))


def test_the_record_says_what_is_read_and_which_text_is_public(
    pooled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = read_json(pooled / "run.json")["pooling"]

    assert (record["tokens"], record["layer"], record["stock_class"]) == ("mean", 1, False)
    assert record["public_text"]["name"] == "embedded:bbc_news"
    assert record["public_text"]["num_texts"] == "4000"
    assert len(record["public_text"]["sha256"]) == 64
    assert main(["report", str(pooled)]) == 0
    report = (pooled / "report.md").read_text(encoding="utf-8")
    assert record["public_text"]["sha256"] in report
    assert "mean of all tokens of layer 1" in report


def test_evaluate_gives_what_the_server_measured(pooled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["evaluate", str(pooled), "--json"]) == 0
    found, last = json.loads(capsys.readouterr().out), read_rows(pooled / "metrics.jsonl")[-1]

    assert found["accuracy"] == pytest.approx(last["accuracy"], abs=1e-9)
    assert found["loss"] == pytest.approx(last["loss"], abs=1e-5)


def test_exports_predict_the_same_without_fedsvd(pooled: Path, last_token: Path, tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    assert main(["export", str(pooled), "--to", str(tmp_path / "merged"), "--merge"]) == 0
    assert main(["export", str(pooled), "--to", str(tmp_path / "adapter")]) == 0
    assert main(["export", str(last_token), "--to", str(tmp_path / "sentence"), "--merge"]) == 0

    command = [sys.executable, str(LOADER), str(tmp_path), json.dumps(TEXTS)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)

    found = json.loads(result.stdout)
    for name, run in {
        "merged": pooled, "adapter": pooled, "adapter by its path": pooled, "sentence": last_token
    }.items():  # fmt: skip
        torch.testing.assert_close(torch.tensor(found[name]), logits(run), atol=1e-3, rtol=1e-3)
    assert found["labels"] == ["negative", "positive"]
    assert found["dropout"] == 0.1
    assert "SentenceTransformer(" in (tmp_path / "sentence" / "README.md").read_text(encoding="utf-8")
    assert "embedded:bbc_news" in (tmp_path / "merged" / "README.md").read_text(encoding="utf-8")


def test_a_card_names_the_file_of_public_texts_without_its_directory(tmp_path: Path) -> None:
    texts = tmp_path / "public_notes.txt"
    texts.write_text("".join(f"Note {number} was written in the morning.\n" for number in range(150)), encoding="utf-8")
    settings = ["privacy=none", "train.num_rounds=1", "model.standardize=public", f"model.public_text={texts}"]
    run = train(tmp_path / "run", *settings)
    assert main(["export", str(run), "--to", str(tmp_path / "model"), "--merge"]) == 0

    card = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    assert "150 public texts of public_notes.txt (SHA-256 " in card
    assert str(tmp_path) not in card
    assert read_json(run / "run.json")["public_text"]["name"] == str(texts)


def test_an_adapter_without_a_fitting_class_is_refused_with_the_remedy(
    last_token: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(last_token), "--to", str(tmp_path / "adapter")]) != 0

    assert "--merge" in capsys.readouterr().err
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.pooling_layer=3", "has 2 layers; expected last, or 1 to 2"),
        ("model.public_text=missing.txt", "missing.txt' is not a file"),
        ("model.public_text=empty.txt", "empty.txt"),
    ],
)
def test_settings_that_cannot_work_end_before_anything_is_spent(
    override: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").write_text("", encoding="utf-8")
    arguments = ["model.standardize=public", override, f"hydra.run.dir={tmp_path / 'run'}"]

    assert main(["train", "experiment=smoke", *arguments]) != 0

    captured = capsys.readouterr()
    assert message in captured.err + captured.out
    assert not (tmp_path / "run" / "privacy.json").exists()
