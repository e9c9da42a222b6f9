"""Runs that train the head: alone, before the factors, from descriptions, on all examples, and with shared noise."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from factors import weight_updates
from torch import Tensor

import fedsvd
from fedsvd.config.compose import compose
from fedsvd.models.pooled import PooledClassifier
from fedsvd.report.loaded_runs import read_run
from fedsvd.report.run_sections import run_configuration, summary
from fedsvd.runs.folder import read_rows
from fedsvd.runtime import losses, private_round
from fedsvd.trained.model_card import model_card
from fedsvd.trained.run import read_run as read_trained

pytestmark = pytest.mark.slow

OVERRIDES = [
    "experiment=smoke", "train.head=private", "model.pooling=mean", "train.num_rounds=3", "train.local_steps=1",
    "privacy.accountant=rdp", "plots=false",
]  # fmt: skip


def train(folder: Path, *overrides: str) -> Path:
    fedsvd.train(*OVERRIDES, *overrides, run_dir=folder)
    return folder


def spent_steps(folder: Path) -> set[int]:
    return {client["steps"] for client in json.loads((folder / "privacy.json").read_text())["clients"].values()}


def test_a_head_only_run_is_a_baseline_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses.clear_caches()
    encoded: list[int] = []
    pooled_states = PooledClassifier.pooled_states

    def count(self: PooledClassifier, attention_mask: Tensor | None = None, **inputs: Tensor) -> Tensor:
        encoded.append(len(inputs["input_ids"]))
        return pooled_states(self, attention_mask, **inputs)

    monkeypatch.setattr(PooledClassifier, "pooled_states", count)
    folder = train(tmp_path, "method=ffa_lora", "train.trains=head", "train.sample_rate=1.0")

    # 200 training and 100 held-out texts once each, and four made-up ones by which the architecture is checked.
    assert sum(encoded) <= 304
    rows = read_rows(folder / "metrics.jsonl")
    head_bytes = rows[1]["bytes_up"] / 2
    # Down and up, only the head: 2 x 32 weights and 2 biases.
    assert rows[1]["bytes_down"] == rows[3]["bytes_down"] == rows[1]["bytes_up"]
    assert 66 * 4 < head_bytes < 66 * 4 + 200
    assert all(not row["sites"] for row in rows)
    updates = weight_updates(folder)
    assert all(not tensor.any() for name, tensor in updates.items() if "classifier" not in name)
    record = json.loads((folder / "run.json").read_text())
    assert record["parts_trained"] == record["parts_sent"] == ["head"]
    run = read_run(folder, folder)
    card = model_card(read_trained(folder), "merged")
    shown = f"{summary(run)}{run_configuration(run).blocks[1:]}{card.partition('## Privacy statement')[0]}"
    assert "Method head only" in shown
    assert "with a classification head (head only)" in card
    assert "| sample rate | 1 |" in card
    for name in ("ffa_lora", "FFA", "fedsvd,", "LoRA update merged"):
        assert name not in shown


def test_head_rounds_come_first_and_share_one_account(tmp_path: Path) -> None:
    folder = train(tmp_path, "train.head_rounds=1", "train.trains=factors", "train.learning_rate=2")

    rows = read_rows(folder / "metrics.jsonl")
    assert [bool(row["sites"]) for row in rows] == [False, False, True, True]
    # The head is sent down in all rounds, and up in the first one only.
    assert rows[1]["bytes_up"] < rows[2]["bytes_up"]
    assert all(row["bytes_down"] > 0 for row in rows[1:])
    assert spent_steps(folder) == {3}
    record = json.loads((folder / "run.json").read_text())
    assert record["parts_trained"] == ["B", "head"]
    updates = weight_updates(folder)
    assert any(tensor.any() for name, tensor in updates.items() if "query" in name)
    assert summary(read_run(folder, folder)).blocks[0].text.startswith("Method fedsvd,")  # type: ignore[union-attr]


def test_clients_continue_from_the_trained_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heads: list[Tensor] = []

    def remember(*arguments: object, **options: object) -> None:
        model = private_round.load_model(arguments[0])  # type: ignore[arg-type]
        heads.append(next(p for name, p in model.named_parameters() if "modules_to_save" in name).detach().clone())

    monkeypatch.setattr(private_round, "train_privately", remember)
    train(tmp_path / "unchanged", "train.head_rounds=1", "train.trains=factors", "train.num_rounds=2")
    monkeypatch.undo()
    start = heads[0]

    received: list[Tensor] = []
    original = private_round.train_privately

    def observe(*arguments: object, **options: object) -> object:
        model = private_round.load_model(arguments[0])  # type: ignore[arg-type]
        received.append(next(p for name, p in model.named_parameters() if "modules_to_save" in name).detach().clone())
        return original(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(private_round, "train_privately", observe)
    train(
        tmp_path / "run", "train.head_rounds=1", "train.trains=factors", "train.num_rounds=2", "train.learning_rate=2"
    )
    first, second = received[0], received[2]
    torch.testing.assert_close(first, start)
    assert (second - first).abs().max() > 1e-3
    assert torch.equal(received[2], received[3])


def test_a_zero_shot_run_takes_no_rounds_and_spends_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = train(tmp_path, "train.trains=none", "train.head_init=zero_shot")

    rows = read_rows(folder / "metrics.jsonl")
    assert [row["server_round"] for row in rows] == [0]
    assert rows[0]["accuracy"] is not None
    assert rows[0]["epsilon"] is None
    assert not list(folder.rglob("*.sqlite"))
    run = read_run(folder, folder)
    assert "Method zero-shot" in str(summary(run))
    assert run.state == "finished"
    card = model_card(read_trained(folder), "merged")
    assert "with a classification head (zero-shot)" in card
    assert "It was not trained" in card
    trained = train(tmp_path / "trained", "train.trains=head", "train.head_init=zero_shot", "privacy=none")
    # Round 0 of a run that starts there has the same accuracy.
    assert read_rows(trained / "metrics.jsonl")[0]["accuracy"] == rows[0]["accuracy"]


def test_all_examples_pass_in_batches_of_limited_size(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sizes: list[int] = []
    collate = losses._collate

    def measure(*arguments: Any) -> object:
        sizes.append(len(arguments[-1]))
        return collate(*arguments)

    monkeypatch.setattr(losses, "_collate_cached", measure)
    folder = train(
        tmp_path, "train.sample_rate=1.0", "train.physical_batch_size=8", "train.trains=head", "train.num_rounds=1"
    )  # fmt: skip

    # However many examples there are, at most 8 are in memory at once, and each is in the step.
    assert max(sizes) == 8
    assert sum(sizes) == 200
    clients = json.loads((folder / "privacy.json").read_text())["clients"].values()
    assert {client["sample_rate"] for client in clients} == {1.0}
    assert len({client["noise_multiplier"] for client in clients}) == 1


def test_the_head_has_its_own_rate_and_share(tmp_path: Path) -> None:
    overrides = ["train.learning_rate=1e-9", "train.head_learning_rate=2", "privacy.head_clipping_share=0.5"]
    folder = train(tmp_path, *overrides, "train.num_rounds=2")

    assert all(row["clients_used"] == 2 for row in read_rows(folder / "metrics.jsonl")[1:])
    updates = weight_updates(folder)
    moved = {name: tensor.abs().max().item() for name, tensor in updates.items()}
    assert max(value for name, value in moved.items() if "query" in name or "value" in name) < 1e-6
    assert moved[next(name for name in moved if "classifier.weight" in name)] > 1e-2


def test_the_experiment_with_shared_noise(tmp_path: Path) -> None:
    small = [
        "experiment=shared_noise", "model=tiny", "model.pooling=mean", "model.pooling_layer=last",
        "model.standardize=none", "data.max_train_examples=240", "data.max_test_examples=40", "train.num_rounds=3",
        "train.batch_size=60",
    ]  # fmt: skip
    fedsvd.train(*small, run_dir=tmp_path)

    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [row["clients_used"] for row in rows] == [0, 4, 4, 4]
    privacy = json.loads((tmp_path / "privacy.json").read_text())
    assert privacy["noise_share"]
    assert privacy["secure_aggregation"]
    assert all(0.98 < client["epsilon"] <= 1 for client in privacy["clients"].values())
    config = compose("experiment=shared_noise")
    assert (config.train.local_steps, config.train.sample_rate, config.train.num_rounds) == (1, 1.0, 20)
