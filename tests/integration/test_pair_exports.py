"""Exports of models of text pairs: their model cards, and predictions from Python."""

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from model_cards import run_card

import fedsvd
from fedsvd.errors import ConfigError
from fedsvd.trained.prediction import class_logits, unlabeled_dataset
from fedsvd.trained.run import load_trained_model, read_run

pytestmark = pytest.mark.slow

# The texts of the cards, whose order matters to the model.
FIRST, SECOND = "A text.", "Its pair."
# Exported for sentence-transformers.
SENTENCE = ["model=tiny_llama", "model.task=sequence_classification", "model.pooling=mean"]


def train(folder: Path, *overrides: str) -> fedsvd.Run:
    words = ("fine", "dull")
    rows = [
        {"premise": f"A {a} film, number {i}.", "hypothesis": f"It is {b}.", "label": ["no", "yes"][a == b]}
        for i in range(40)
        for a in words
        for b in words
    ]
    path = folder.parent / "pairs.jsonl"
    Dataset.from_list(rows).to_json(path)
    data = ["data=jsonl", f"data.path={path}", "data.text_column=premise", "data.text_pair_column=hypothesis"]
    settings = ["partition=iid", "train.head=private", "train.learning_rate=2", "train.num_rounds=1", *overrides]
    return fedsvd.train("experiment=smoke", "privacy=none", "plots=false", *data, *settings, run_dir=folder)


def logits(run: fedsvd.Run, first: str, second: str) -> torch.Tensor:
    return class_logits(load_trained_model(read_run(run.folder)), unlabeled_dataset([first], [second], ("no", "yes")))


@pytest.mark.parametrize(
    ("overrides", "merge"),
    [([], False), ([], True), (["model=tiny_roberta"], True), (SENTENCE, True)],
    ids=["adapter", "merged", "roberta", "sentence"],
)
def test_the_code_of_a_card_predicts_pairs_as_the_run_does(overrides: list[str], merge: bool, tmp_path: Path) -> None:
    if overrides == SENTENCE:
        pytest.importorskip("sentence_transformers")
    run = train(tmp_path / "run", *overrides)
    folder = run.export(tmp_path / "export", merge=merge)
    card = (folder / "README.md").read_text(encoding="utf-8")
    expected = logits(run, FIRST, SECOND)

    assert "It classifies each pair of texts as one of: no, yes. First comes `premise`, then `hypothesis`." in card
    assert not torch.allclose(expected, logits(run, SECOND, FIRST), atol=1e-3)
    found = run_card(folder)["logits"].detach().cpu()
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


def test_a_run_of_pairs_predicts_pairs_only(tmp_path: Path) -> None:
    run = train(tmp_path / "run")

    [row] = run.predict([FIRST], [SECOND])
    assert (row["text"], row["text_pair"]) == (FIRST, SECOND)
    chances = logits(run, FIRST, SECOND).softmax(-1)[0]
    assert list(row["probabilities"].values()) == pytest.approx(chances.tolist(), abs=1e-5)
    with pytest.raises(ConfigError, match="expects pairs of texts"):
        run.predict([FIRST])
