"""Complete runs from the command line: the files they write, resuming, and runs that must not start."""

import json
import shutil
from pathlib import Path

import peft
import pytest
import torch
from datasets import Dataset
from factors import load_adapter

import fedsvd
from fedsvd.cli import main
from fedsvd.config.compose import compose
from fedsvd.models.loading import load_classifier
from fedsvd.runs.client_status import REPLIED, read_statuses
from fedsvd.runs.folder import read_json, read_rows
from fedsvd.runtime.data import load_test_batches
from fedsvd.training.evaluation import evaluate
from fedsvd.training.objectives import make_objective


def train(folder: Path, *overrides: str, plots: bool = False) -> Path:
    fedsvd.train("experiment=smoke", f"plots={plots}", *overrides, run_dir=folder)
    return folder


@pytest.fixture(scope="module")
def private_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("private"), "train.head=private", "train.learning_rate=2", plots=True)


def test_run_writes_its_run_directory(private_run: Path) -> None:
    rows = read_rows(private_run / "metrics.jsonl")

    assert [row["server_round"] for row in rows] == [0, 1, 2]
    assert all(0 <= row["accuracy"] <= 1 for row in rows)
    assert rows[1]["bytes_up"] > 0
    assert rows[1]["clients_used"] == 2
    assert (private_run / "plots" / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    assert "after 2 of 2 rounds" in (private_run / "report.html").read_text(encoding="utf-8")
    states = {status.state for status in read_statuses(read_json(private_run / "sites.json")).values()}
    assert states == {REPLIED}
    assert sorted(path.name for path in (private_run / "checkpoints").iterdir()) == [
        f"round-{number:06d}" for number in range(3)
    ]
    assert compose(["experiment=smoke"]).model.source in (private_run / "config.yaml").read_text()


def test_spent_epsilon_is_reported_and_within_the_budget(private_run: Path) -> None:
    privacy = json.loads((private_run / "privacy.json").read_text())

    assert set(privacy["clients"]) == {"0", "1"}
    for name, client in privacy["clients"].items():
        assert 0.98 * 6 < client["epsilon"] <= 6
        assert client["steps"] == 4
        assert client["noise_multiplier"] > 0.3
        assert 0 < client["sample_rate"] <= 1
        assert "train_loss" not in client
        assert (private_run / "clients" / name / "ledger.sqlite").is_file()


def test_private_run_reports_no_training_loss(private_run: Path) -> None:
    assert all(row["train_loss"] is None for row in read_rows(private_run / "metrics.jsonl"))


@pytest.mark.slow
def test_saved_adapter_reproduces_the_servers_evaluation(tmp_path: Path) -> None:
    overrides = ["model.pooling=stock", "train.head=private", "train.learning_rate=2"]
    run = train(tmp_path / "run", *overrides)
    config = compose(["experiment=smoke", *overrides])
    base = load_classifier(config.model.source, num_labels=2, seed=99).model
    model = peft.PeftModel.from_pretrained(base, str(run / "adapter"))

    evaluation = evaluate(
        model, load_test_batches(config), torch.device("cpu"), make_objective("sequence_classification")
    )

    last = read_rows(run / "metrics.jsonl")[-1]
    assert evaluation.accuracy == last["accuracy"]
    assert evaluation.loss == pytest.approx(last["loss"], abs=1e-6)


@pytest.mark.slow
def test_noise_differs_between_runs_with_the_same_seed(private_run: Path, tmp_path: Path) -> None:
    again = load_adapter(train(tmp_path, "train.head=private", "train.learning_rate=2"))

    assert any(not torch.equal(again[name], tensor) for name, tensor in load_adapter(private_run).items())


def test_run_without_noise_is_reproducible(tmp_path: Path) -> None:
    first, second = (load_adapter(train(tmp_path / name, "privacy=none")) for name in ("one", "two"))

    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_fedsvd_learns_on_a_real_model(tmp_path: Path) -> None:
    folder = train(
        tmp_path, "method=fedsvd", "privacy=none", "train.head=private", "model=minilm", "model.lora_alpha=16",
        "train=adamw", "train.learning_rate=0.005", "train.num_rounds=4", "train.local_steps=4", "partition=iid",
        "data.max_train_examples=48", "data.max_test_examples=16", "model.max_length=32", "train.eval_every=4",
    )  # fmt: skip

    losses = [row["train_loss"] for row in read_rows(folder / "metrics.jsonl") if row["train_loss"] is not None]
    assert losses[-1] < 0.9 * losses[0]


def test_client_trains_alone(tmp_path: Path) -> None:
    folder = train(tmp_path, "federation.participants=[1]", "train.num_rounds=2")

    assert list(read_json(folder / "privacy.json")["clients"]) == ["1"]
    assert [row["clients_used"] for row in read_rows(folder / "metrics.jsonl")] == [0, 1, 1]


@pytest.mark.slow
def test_run_in_which_every_client_declines_fails_with_the_reasons(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ledgers = f"privacy.ledger_dir={tmp_path / 'ledgers'}"
    rows = read_rows(train(tmp_path / "first", ledgers) / "metrics.jsonl")
    # The ledgers are exhausted, so no client takes part.
    second = tmp_path / "second"
    assert main(["train", "experiment=smoke", "plots=false", f"hydra.run.dir={second}", ledgers]) == 1

    again = read_rows(second / "metrics.jsonl")
    assert rows[1]["clients_used"] == 2
    assert [row["clients_used"] for row in again] == [0, 0, 0]
    assert all("BudgetExceededError" in reason for reason in again[1]["clients_refused"].values())
    printed = capsys.readouterr()
    assert "this client allows 6" in printed.out
    assert "no client's update was used in any round" in printed.err
    assert "client 1: the client declined: BudgetExceededError" in printed.err
    record = json.loads((second / "run.json").read_text())
    assert record["state"] == "failed"
    assert "client 0: the client declined: BudgetExceededError" in record["reason"]
    assert not (second / "adapter").exists()


@pytest.mark.slow
def test_resumed_run_with_client_level_privacy_continues_its_account(tmp_path: Path) -> None:
    # Each client takes part in a round with probability 5/6; that none does in the first round has probability 2e-5.
    overrides = ["privacy=client_level", "federation.num_clients=6", "federation.clients_per_round=5"]
    folder = train(tmp_path, *overrides, "train.num_rounds=3")
    shutil.rmtree(folder / "adapter")
    for number in (2, 3):
        shutil.rmtree(folder / "checkpoints" / f"round-{number:06d}")

    assert main(["train", f"resume={folder}"]) == 0

    privacy = json.loads((folder / "privacy.json").read_text())
    assert privacy["unit"] == "client"
    assert all(client["steps"] == 3 for client in privacy["clients"].values())
    rows = read_rows(folder / "metrics.jsonl")
    # Rounds 2 and 3 were released before. Repeating them would exceed the budget, so they are skipped.
    assert [row["skipped"] for row in rows] == [False, False, True, True]
    assert all(row["clients_refused"] == {} for row in rows)
    assert max(row["epsilon"] for row in rows[1:]) <= 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "train.learning_rat=1"], "train.learning_rate"),
        (["train", "method=fedsdv"], "fedsvd"),
        (["train", "method.refactorize_every=0"], "method.refactorize_every = 0"),
        (["train", "experiment=smoke", "device=cuda:7"], "CUDA"),
        (["train", "resume=/nowhere"], "not a run directory"),
        (["trian"], "available commands: train"),
    ],
)
def test_invalid_arguments_give_a_readable_error(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2

    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_composed_configuration_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "experiment=smoke", "--cfg", "job"]) == 0

    assert "local_steps: 2" in capsys.readouterr().out


@pytest.mark.slow
def test_users_text_pairs_with_one_client_per_column_value(tmp_path: Path) -> None:
    rows = [
        {"premise": f"It rains in town {i}.", "claim": f"Town {i} is dry.", "verdict": i % 3, "site": "ab"[i % 2]}
        for i in range(120)
    ]
    Dataset.from_list(rows).to_json(tmp_path / "pairs.jsonl")
    folder = train(
        tmp_path / "run", "data=jsonl", f"data.path={tmp_path / 'pairs.jsonl'}", "data.text_column=premise",
        "data.text_pair_column=claim", "data.label_column=verdict", "partition=by_column", "partition.column=site",
        "privacy=none", "train.head=private", plots=True,
    )  # fmt: skip

    assert [row["clients_used"] for row in read_rows(folder / "metrics.jsonl")] == [0, 2, 2]
    assert (folder / "plots" / "partitions.png").read_bytes().startswith(b"\x89PNG")
