"""SmolLM2, a real language model: it comes out of its package whole, and learns federated and in private."""

import json
from pathlib import Path

import pytest

from fedsvd.cli import main
from fedsvd.models.loading import load_causal_lm, load_tokenizer
from fedsvd.runs.folder import read_rows
from fedsvd.training.generation import generate

pytestmark = pytest.mark.slow


def test_the_dequantised_model_still_knows_things() -> None:
    model, tokenizer = load_causal_lm("embedded:smollm2").model, load_tokenizer("embedded:smollm2")
    said = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], tokenize=False, add_generation_prompt=True
    )

    [answer] = generate(model, tokenizer, [tokenizer(said)["input_ids"]], max_new_tokens=16)

    assert "Paris" in answer


# Both runs see the same examples: what lies below the adapted layers is computed once for the two.
SMALL = ["data.max_train_examples=160", "data.max_test_examples=40", "train.batch_size=40", "partition=iid",
         "train.num_rounds=3", "train.eval_every=3"]  # fmt: skip


def test_it_learns_to_answer(tmp_path: Path) -> None:
    assert main(["train", "experiment=causal_lm", f"hydra.run.dir={tmp_path}", *SMALL, "privacy=none"]) == 0

    rows = read_rows(tmp_path / "metrics.jsonl")
    assert rows[-1]["perplexity"] < 0.7 * rows[0]["perplexity"]
    assert len(json.loads((tmp_path / "samples.json").read_text())) == 5


def test_each_example_is_protected_on_the_way(tmp_path: Path) -> None:
    assert main(["train", "experiment=causal_lm", f"hydra.run.dir={tmp_path}", *SMALL]) == 0

    clients = json.loads((tmp_path / "privacy.json").read_text())["clients"]
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert all(5.5 < client["epsilon"] <= 6 for client in clients.values())
    assert all(client["steps"] == 3 for client in clients.values())
    # Forty examples a client drown in the noise; the run must not drown with them.
    assert rows[-1]["perplexity"] < 2 * rows[0]["perplexity"]
    assert all(row["train_loss"] is None for row in rows)
