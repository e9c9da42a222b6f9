"""Runs of tasks other than classification: train, predict, evaluate, report and export, on real texts."""

import json
from pathlib import Path
from typing import Any

import pandas
import peft
import pytest
import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

import fedsvd
from fedsvd.cli import main
from fedsvd.config.task import TASKS as TASKS_TABLE
from fedsvd.data.sentiment import load_sentiment_domains
from fedsvd.runs.folder import read_rows

pytestmark = pytest.mark.slow

TEXTS = ["A fine film.", "Dull, dull, dull.", "This camera is a bargain."]
TASKS = ("regression", "multi_label_classification", "token_classification")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs on reviews of films and products: their length, their topic and sentiment, and their long words."""
    folder = tmp_path_factory.mktemp("runs")
    reviews = load_sentiment_domains(domains=("movies", "products"), test_fraction=0.2, min_abs_rating=0.5, seed=0)
    rows = reviews["train"].select(range(240)).to_list()
    lengths = [{"text": row["text"], "words": min(len(row["text"].split()), 50)} for row in rows]
    (folder / "lengths.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lengths), encoding="utf-8")
    classes = [";".join([row["domain"], *(["positive"] if row["label"] else [])]) for row in rows]
    pandas.DataFrame({"text": [row["text"] for row in rows], "is": classes}).to_csv(folder / "classes.csv", index=False)
    tagged = [tag_words(row["text"].split()) for row in rows]
    (folder / "spans.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tagged), encoding="utf-8")
    data = {
        "regression": ("data=jsonl", f"data.path={folder}/lengths.jsonl", "data.label_column=words",
                       "data.label_range=[1,50]"),
        "multi_label_classification": ("data=csv", f"data.path={folder}/classes.csv", "data.label_column=is"),
        "token_classification": ("data=jsonl", f"data.path={folder}/spans.jsonl", "data.text_column=tokens",
                                 "data.label_column=tags", "train.learning_rate=5", "privacy=none"),
    }  # fmt: skip
    shared = ("experiment=smoke", "partition=iid", "plots=false", "train.head=private", "data.max_train_examples=null")
    for task, overrides in data.items():
        fedsvd.train(*shared, f"model.task={task}", *overrides, run_dir=folder / task)
    return {task: folder / task for task in data}


def tag_words(words: list[str]) -> dict[str, list[str]]:
    """Tag runs of words of at least seven letters, and the words after them."""
    long = [len(word) > 6 for word in words]
    tags = ["O" if not is_long else "I-LONG" if i and long[i - 1] else "B-LONG" for i, is_long in enumerate(long)]
    return {"tokens": words, "tags": tags}


def output(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert main(list(arguments)) == 0
    return capsys.readouterr().out


def predictions(run: Path, capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    texts = [word for text in TEXTS for word in ("--text", text)]
    return [json.loads(line) for line in output(capsys, "predict", str(run), "--json", *texts).splitlines()]


@pytest.mark.parametrize("task", TASKS)
def test_evaluation_has_the_metrics_of_the_last_round(
    task: str, runs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    result = json.loads(output(capsys, "evaluate", str(runs[task]), "--json"))
    last = read_rows(runs[task] / "metrics.jsonl")[-1]

    assert {metric.key for metric in TASKS_TABLE[task].metrics} == set(result["metrics"])
    assert result["metrics"] == pytest.approx({key: last[key] for key in result["metrics"]}, abs=1e-4)
    assert [score["name"] for score in result["classes"]] == (
        ["movies", "positive", "products"] if task == "multi_label_classification" else []
    )
    # All rows of a file, which the run names by other columns than the defaults.
    names = {"regression": "lengths.jsonl", "multi_label_classification": "classes.csv"}
    path = runs[task].parent / names.get(task, "spans.jsonl")
    assert "240 texts" in output(capsys, "evaluate", str(runs[task]), f"data.path={path}")


@torch.no_grad()
def logits(model: Any, folder: Path) -> Tensor:
    batch = AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="pt")
    values: Tensor = model.eval()(**batch).logits
    return values


@pytest.mark.parametrize("task", TASKS[:2])
def test_exports_predict_the_same_without_fedsvd(
    task: str, runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = predictions(runs[task], capsys)
    output(capsys, "export", str(runs[task]), "--to", str(tmp_path / "merged"), "--merge")
    output(capsys, "export", str(runs[task]), "--to", str(tmp_path / "adapter"))
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "adapter" / "base")
    models = {
        "merged": AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged"),
        "adapter": peft.PeftModel.from_pretrained(base, str(tmp_path / "adapter")),
    }
    for name, model in models.items():
        assert model.config.problem_type == task
        found = logits(model, tmp_path / name)
        if task == "regression":
            expected = torch.tensor([[row["prediction"]] for row in rows])
        else:
            classes = list(model.config.id2label.values())
            expected = torch.tensor([[row["probabilities"][name] for name in classes] for row in rows])
            found = found.sigmoid()
            assert [[c for c in classes if row["probabilities"][c] >= 0.5] for row in rows] == [
                row["labels"] for row in rows
            ]
        torch.testing.assert_close(found, expected, atol=2e-3, rtol=1e-3)
    card = (tmp_path / "merged" / "README.md").read_text(encoding="utf-8")
    assert {"regression": "predicts a number", "multi_label_classification": "any number of these classes"}[
        task
    ] in card


def test_exports_of_tags_are_those_of_predict(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = runs["token_classification"]
    rows = predictions(run, capsys)
    assert [row["tokens"] for row in rows] == [text.split() for text in TEXTS]
    assert any(tag != "O" for row in rows for tag in row["tags"])
    output(capsys, "export", str(run), "--to", str(tmp_path / "merged"), "--merge")
    output(capsys, "export", str(run), "--to", str(tmp_path / "adapter"))
    config = AutoConfig.from_pretrained(tmp_path / "adapter" / "config")
    models = {
        "merged": AutoModelForTokenClassification.from_pretrained(tmp_path / "merged"),
        "adapter": AutoModelForTokenClassification.from_pretrained(tmp_path / "adapter", config=config),
    }
    for name, model in models.items():
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / name)
        batch = tokenizer([row["tokens"] for row in rows], is_split_into_words=True, padding=True, return_tensors="pt")
        with torch.no_grad():
            found = model.eval()(**batch).logits.argmax(-1)
        for number, row in enumerate(rows):
            words = batch.word_ids(number)
            tags = [model.config.id2label[int(found[number, words.index(i)])] for i in range(len(row["tokens"]))]
            assert tags == row["tags"]
    # A file of words, as in training, and the console.
    assert len(output(capsys, "predict", str(run), "--file", str(run.parent / "spans.jsonl")).splitlines()) == 240


def test_the_report_names_the_metrics_of_the_task(runs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    run = runs["multi_label_classification"]
    output(capsys, "report", str(run))
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "Macro-F1 over rounds" in page
    assert "subset accuracy" in page
    assert "An example counts once for each of its labels" in page
