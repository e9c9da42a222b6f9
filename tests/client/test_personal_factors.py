"""Factors that stay at home, and clients of their own ranks; real runs in process."""

from pathlib import Path

import pytest
import torch
from flwr.app import RecordDict
from safetensors.torch import load_file

from client.identity import ClientIdentity
from client.local_round import run_local_round
from client.personal_factors import save_personal_factors, with_personal_factors
from fedsvd.cli import main
from fedsvd.config.compose import compose
from fedsvd.errors import PayloadError, RunError
from fedsvd.lora.adapter import Adapter
from fedsvd.methods import build_method
from fedsvd.runs.folder import read_rows
from fedsvd.runtime.model import initial_adapter
from fedsvd.wire import payload, train_messages

WORDS = ["experiment=smoke", "privacy=none", "train.num_rounds=3", "train.learning_rate=5"]


def make_adapter(rank: int = 2) -> Adapter:
    return Adapter(A={"s": torch.ones(rank, 3)}, B={"s": torch.full((4, rank), 2.0)}, head={}, scale={"s": 1.0})


def test_a_clients_own_factors_survive_in_their_file(tmp_path: Path) -> None:
    path = tmp_path / "clients" / "0" / "personal.safetensors"
    plain = make_adapter().with_parts({"B": {"s": torch.zeros(4, 2)}})
    assert with_personal_factors(path, plain, {"B"}) is plain

    save_personal_factors(path, make_adapter(), {"B"})

    assert torch.equal(with_personal_factors(path, plain, {"B"}).B["s"], make_adapter().B["s"])
    with pytest.raises(RunError, match="another model or rank"):
        with_personal_factors(path, make_adapter(3), {"B"})


def test_clients_with_models_of_their_own_measure_them(tmp_path: Path) -> None:
    words = [*WORDS, "method=fedsa_lora", "train.eval_every=3", f"hydra.run.dir={tmp_path}"]
    assert main(["train", *words]) == 0

    rows = read_rows(tmp_path / "metrics.jsonl")
    own = [load_file(tmp_path / "clients" / str(k) / "personal.safetensors") for k in range(2)]
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert any(not torch.equal(own[0][key], own[1][key]) for key in own[0])
    assert not any(tensor.any() for key, tensor in saved.items() if "lora_B" in key)
    assert [row["accuracy"] is None for row in rows] == [False, True, True, False]
    # The server alone, whose B is zero, would measure what it did at the start.
    assert rows[-1]["loss"] != rows[0]["loss"]


def test_a_server_cannot_ask_for_what_stays_at_home(tmp_path: Path) -> None:
    config = compose([*WORDS, "method=fedsa_lora"])
    start = initial_adapter(config, build_method(config.method))
    parts = frozenset({"A", "B"})
    task = train_messages.TrainTask(1, parts, parts)  # type: ignore[arg-type]
    with pytest.raises(PayloadError, match=r"asks for \['A', 'B'\]; with this method no more than \['A'\] leave"):
        run_local_round(
            config, ClientIdentity(0, 1, tmp_path / "ledger"), task, payload.pack(start, ["A"]), "1", RecordDict()
        )


@pytest.mark.parametrize("method", ["fedsvd", "ffa_lora", "flora", "flexlora"])
def test_clients_of_lower_rank_send_less_and_the_model_learns_from_all(method: str, tmp_path: Path) -> None:
    words = [*WORDS, f"method={method}"]
    mixed, alike = tmp_path / "mixed", tmp_path / "alike"
    assert main(["train", *words, "federation.client_ranks=[1,4]", f"hydra.run.dir={mixed}"]) == 0
    assert main(["train", *words, f"hydra.run.dir={alike}"]) == 0

    few, many = (read_rows(folder / "metrics.jsonl") for folder in (mixed, alike))
    assert all(row["clients_used"] == 2 and not row["clients_refused"] for row in few[1:])
    assert all(one["bytes_up"] < other["bytes_up"] for one, other in zip(few[1:], many[1:], strict=True))
    saved = load_file(mixed / "adapter" / "adapter_model.safetensors")
    assert any(tensor.abs().max() > 1e-3 for key, tensor in saved.items() if "lora_B" in key)


def test_a_method_without_a_place_for_lower_ranks_says_so_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*WORDS, "method=fedavg_lora", "federation.client_ranks=[1,4]", f"hydra.run.dir={tmp_path}"]
    assert main(["train", *words]) == 2
    assert "client_ranks = [1, 4] is not possible with method.name = fedavg_lora" in capsys.readouterr().err
