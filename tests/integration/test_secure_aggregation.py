"""Secure sums in whole runs: the same model as in the open, in this process and on real nodes."""

import json
from pathlib import Path

import pytest
import torch
from factors import products
from loopback import Loopback

from fedsvd.cli import main
from fedsvd.runs.folder import read_rows

WORDS = ["experiment=smoke", "privacy=none", "train.head=private", "train.num_rounds=1", "federation.num_clients=3"]
SECURE = "federation.secure_aggregation=true"


def train(folder: Path, *overrides: str) -> Path:
    assert main(["train", *WORDS, f"hydra.run.dir={folder}", *overrides]) == 0
    return folder


def assert_same(found: Path, expected: Path) -> None:
    one, other = products(found), products(expected)
    assert one.keys() == other.keys()
    for name, tensor in other.items():
        torch.testing.assert_close(one[name], tensor, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", ["fedsvd", "ffa_lora", "fedavg_lora"])
def test_a_secure_run_gives_the_model_of_an_open_one(method: str, tmp_path: Path) -> None:
    words = [f"method={method}", "train.num_rounds=3"]
    hidden, seen = train(tmp_path / "hidden", *words, SECURE), train(tmp_path / "seen", *words)

    assert_same(hidden, seen)
    rows = read_rows(hidden / "metrics.jsonl")
    assert [row["clients_used"] for row in rows] == [0, 3, 3, 3]
    # Eight bytes a value rather than four, beside what little a message has around it.
    assert 1.7 < rows[1]["bytes_up"] / read_rows(seen / "metrics.jsonl")[1]["bytes_up"] < 2.1


@pytest.mark.parametrize("privacy", ["dp_sgd", "client_level"])
def test_shared_noise_tells_no_sizes_and_what_it_hangs_on(
    privacy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = train(
        tmp_path, SECURE, f"privacy={privacy}", "privacy.noise_share=true", "privacy.noise_multiplier=2",
        "train.local_steps=1",
    )  # fmt: skip

    told = json.loads((folder / "privacy.json").read_text())
    assert told["noise_share"]
    assert any("honest but curious" in assumption for assumption in told["assumptions"])
    for client in told["clients"].values():
        assert client["num_examples"] is None
        assert client["sample_rate"] is None
        assert 0 < client["epsilon"] <= 6
    printed = capsys.readouterr().out
    assert "ε holds if the server follows the protocol" in printed
    assert "│      0 │        – │           – │                – │" in printed


def test_clients_that_decline_leave_a_round_skipped_with_their_reasons(tmp_path: Path) -> None:
    train(tmp_path, SECURE, "privacy=dp_sgd", "privacy.target_epsilon=0.5", "privacy.noise_multiplier=0.5")

    row = read_rows(tmp_path / "metrics.jsonl")[1]
    assert row["skipped"]
    assert row["clients_used"] == 0
    assert all("BudgetExceededError" in reason for reason in row["clients_refused"].values())


@pytest.mark.slow
def test_real_nodes_give_the_model_of_an_open_run_and_keep_their_own_limits(tmp_path: Path) -> None:
    folder, greedy = tmp_path / "run", tmp_path / "greedy"
    node_configs = [
        f'partition-id={number} num-partitions=3 ledger="{tmp_path}/ledger-{number}.sqlite" max-steps=3'
        for number in range(3)
    ]
    with Loopback(tmp_path / "flower", node_configs) as nodes:
        nodes.train(folder, *WORDS, SECURE)
        nodes.wait((folder / "plots" / "accuracy.png").exists, 600, "the run in the dark")
        nodes.train(greedy, *WORDS, "train.local_steps=4")
        nodes.wait((greedy / "plots" / "accuracy.png").exists, 600, "the greedy run")

    assert read_rows(folder / "metrics.jsonl")[1]["clients_used"] == 3
    assert_same(folder, train(tmp_path / "seen"))
    # More steps than the nodes' own configuration allows, whatever the run's says.
    row = read_rows(greedy / "metrics.jsonl")[1]
    assert row["skipped"]
    assert set(row["clients_refused"]) == {"0", "1", "2"}
    assert all("local_steps = 4, but this client allows at most 3" in why for why in row["clients_refused"].values())
