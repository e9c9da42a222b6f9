"""Runs whose frozen model is bfloat16: what is computed after training is what the run computed."""

import json
from pathlib import Path

import pytest
from families import save_checkpoint

import fedsvd
from fedsvd.cli import main
from fedsvd.runs.folder import read_rows

pytestmark = pytest.mark.slow

HEAD = "train.head=private"
RUNS = {
    "stock": ("model=tiny", "model.pooling=stock", HEAD),
    "pooled": ("model=tiny", "model.pooling=mean", HEAD),
    "decoder": ("model=tiny_llama", "model.task=sequence_classification", HEAD),
    "kept": ("model=tiny", "model.source=CHECKPOINT", "model.attn_implementation=auto", HEAD),
    "regression": ("model=tiny", "model.pooling=stock", "model.task=regression", "data.label_column=stars",
                   "data.label_range=[1,5]", HEAD),
    "tags": ("model=tiny", "model.task=token_classification", "data.text_column=words", "data.label_column=tags", HEAD),
    "answers": ("model=tiny_llama",),
}  # fmt: skip


def write_data(path: Path) -> Path:
    rows = []
    for number in range(80):
        words = f"text {number} is {'good' if number % 2 else 'bad'} and long".split()
        tags = ["B-NUMBER" if word.isdigit() else "O" for word in words]
        label = ["negative", "positive"][number % 2]
        rows.append({"text": " ".join(words), "label": label, "stars": 1 + number % 5, "words": words, "tags": tags})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", RUNS)
def test_an_evaluation_has_the_numbers_of_the_run(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = save_checkpoint("electra", tmp_path / "checkpoint", "classifier", id2label={0: "positive", 1: "negative"})
    data = write_data(tmp_path / "data.jsonl")
    settings = [word.replace("CHECKPOINT", source) for word in RUNS[name]]
    shared = ("experiment=smoke", "data=jsonl", f"data.path={data}", "partition=iid", "plots=false", "privacy=none")
    trained = ("model.dtype=bfloat16", "train.num_rounds=1", "run_dir=" + str(tmp_path / "run"))
    fedsvd.train(*shared, *trained, *settings)
    capsys.readouterr()

    assert main(["evaluate", str(tmp_path / "run"), "--json"]) == 0

    result, last = json.loads(capsys.readouterr().out), read_rows(tmp_path / "run" / "metrics.jsonl")[-1]
    # The rounding of a head to bfloat16 would change the loss by about 1e-3.
    assert result["loss"] == pytest.approx(last["loss"], abs=1e-6)
    assert result["metrics"] == pytest.approx({key: last[key] for key in result["metrics"]}, abs=1e-6)
