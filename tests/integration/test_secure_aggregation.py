"""Complete runs with secure aggregation: the same model as without it. On real nodes: test_real_nodes.py."""

import json
from pathlib import Path

import pytest
from factors import weight_updates

from fedsvd.cli import main
from fedsvd.runs.folder import read_rows

OVERRIDES = ["experiment=smoke", "privacy=none", "train.head=private", "train.num_rounds=1", "federation.num_clients=3"]
SECURE = "federation.secure_aggregation=true"


def train(folder: Path, *overrides: str, status: int = 0) -> Path:
    assert main(["train", *OVERRIDES, "plots=false", f"hydra.run.dir={folder}", *overrides]) == status
    return folder


def assert_same_model(run: Path, expected_run: Path) -> None:
    updates, expected = weight_updates(run), weight_updates(expected_run)
    assert updates.keys() == expected.keys()
    for name, tensor in expected.items():
        # Values of a secure sum have a resolution of 2⁻²⁴.
        assert (updates[name] - tensor).abs().max() < 0.1 * tensor.abs().max()


# The methods differ in what they average: B with a rotation after it, B alone, and both factors.
@pytest.mark.parametrize(
    "method",
    ["fedsvd", pytest.param("ffa_lora", marks=pytest.mark.slow), pytest.param("fedavg_lora", marks=pytest.mark.slow)],
)
def test_secure_run_gives_the_model_of_a_plain_run(method: str, tmp_path: Path) -> None:
    overrides = [f"method={method}", "train.num_rounds=3"]
    secure, plain = train(tmp_path / "secure", *overrides, SECURE), train(tmp_path / "plain", *overrides)

    assert_same_model(secure, plain)
    rows = read_rows(secure / "metrics.jsonl")
    assert [row["clients_used"] for row in rows] == [0, 3, 3, 3]
    # Eight bytes per value instead of four, plus small headers.
    assert 1.7 < rows[1]["bytes_up"] / read_rows(plain / "metrics.jsonl")[1]["bytes_up"] < 2.1


@pytest.mark.slow
@pytest.mark.parametrize("privacy", ["dp_sgd", "client_level"])
def test_shared_noise_discloses_no_sizes_and_states_its_assumptions(
    privacy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = train(
        tmp_path, SECURE, f"privacy={privacy}", "privacy.noise_share=true", "privacy.noise_multiplier=2",
        "train.local_steps=1",
    )  # fmt: skip

    statement = json.loads((folder / "privacy.json").read_text())
    assert statement["noise_share"]
    assert any("honest but curious" in assumption for assumption in statement["assumptions"])
    for client in statement["clients"].values():
        assert client["num_examples"] is None
        assert client["sample_rate"] is None
        assert 0 < client["epsilon"] <= 6
    output = capsys.readouterr().out
    assert "ε assumes that the server follows the protocol" in output
    # With client-level privacy, nothing is printed of single clients.
    assert ("│      0 │        – │           – │                – │" in output) == (privacy == "dp_sgd")


@pytest.mark.slow
def test_round_is_skipped_with_reasons_if_all_clients_decline(tmp_path: Path) -> None:
    # A run whose model was never trained fails.
    train(tmp_path, SECURE, "privacy=dp_sgd", "privacy.target_epsilon=0.5", "privacy.noise_multiplier=0.5", status=1)

    row = read_rows(tmp_path / "metrics.jsonl")[1]
    assert row["skipped"]
    assert row["clients_used"] == 0
    assert row["clients_refused"].keys() == {"0", "1", "2"}
    assert all("BudgetExceededError" in reason for reason in row["clients_refused"].values())
