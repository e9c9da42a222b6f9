"""SmolLM2, a real language model: loading from its package, and federated training with and without privacy."""

import json
from pathlib import Path

import pytest

import fedsvd
from fedsvd.models.loading import load_causal_lm, load_tokenizer
from fedsvd.runs.folder import read_rows
from fedsvd.training.generation import generate

pytestmark = pytest.mark.slow


def test_dequantized_model_answers_a_question() -> None:
    model, tokenizer = load_causal_lm("embedded:smollm2").model, load_tokenizer("embedded:smollm2")
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], tokenize=False, add_generation_prompt=True
    )

    [answer] = generate(model, tokenizer, [tokenizer(prompt)["input_ids"]], max_new_tokens=16)

    assert "Paris" in answer.text
    assert answer.is_complete


# Both runs use the same examples, so that the states below the adapted layers are computed once for both.
SMALL = [
    "plots=false", "data.max_train_examples=60", "data.max_test_examples=10", "train.batch_size=15", "partition=iid",
    "train.num_rounds=3", "train.eval_every=3",
]  # fmt: skip


def test_training_lowers_the_perplexity(tmp_path: Path) -> None:
    fedsvd.train("experiment=causal_lm", *SMALL, "privacy=none", run_dir=tmp_path)

    rows = read_rows(tmp_path / "metrics.jsonl")
    assert rows[-1]["perplexity"] < 0.7 * rows[0]["perplexity"]
    assert len(json.loads((tmp_path / "samples.json").read_text())) == 5


def test_private_training_stays_within_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The answers are those of the test above.
    monkeypatch.setattr("server.evaluation.sample_answers", lambda config: [])
    fedsvd.train("experiment=causal_lm", *SMALL, "train.learning_rate=0.1", run_dir=tmp_path)

    clients = json.loads((tmp_path / "privacy.json").read_text())["clients"]
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert all(5.5 < client["epsilon"] <= 6 for client in clients.values())
    assert all(client["steps"] == 3 for client in clients.values())
    # The noise hides fifteen examples per client, but it must not destroy the model.
    assert rows[-1]["perplexity"] < 2 * rows[0]["perplexity"]
    assert all(row["train_loss"] is None for row in rows)
