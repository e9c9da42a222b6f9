"""Personal factors, and clients with individual ranks, in real in-process runs."""

import os
from pathlib import Path

import pytest
import torch
from client_rounds import B
from flwr.app import RecordDict
from safetensors.torch import load_file

import fedsvd
from client.identity import ClientIdentity
from client.local_round import run_local_round
from client.personal_factors import save_personal_factors, with_personal_factors
from fedsvd.cli import main
from fedsvd.config.compose import compose
from fedsvd.config.task import TASKS
from fedsvd.errors import PayloadError, RunError
from fedsvd.lora.adapter import Adapter
from fedsvd.methods import build_method
from fedsvd.runs.folder import read_rows
from fedsvd.runtime.model import initial_adapter
from fedsvd.wire import payload, train_messages

pytestmark = pytest.mark.slow

OVERRIDES = ["experiment=smoke", "plots=false", "privacy=none", "train.num_rounds=3", "train.learning_rate=5"]


def make_adapter(rank: int = 2) -> Adapter:
    return Adapter(A={"s": torch.ones(rank, 3)}, B={"s": torch.full((4, rank), 2.0)}, head={}, scale={"s": 1.0})


def test_personal_factors_are_saved_and_loaded(tmp_path: Path) -> None:
    path = tmp_path / "clients" / "0" / "personal.safetensors"
    identity, task = ClientIdentity(0, 1, tmp_path / "ledger", personal=path), train_messages.TrainTask(1, B, B)
    plain = make_adapter().with_parts({"B": {"s": torch.zeros(4, 2)}})
    assert with_personal_factors(identity, task, plain, {"B"}) is plain

    save_personal_factors(path, make_adapter(), {"B"})

    assert torch.equal(with_personal_factors(identity, task, plain, {"B"}).B["s"], make_adapter().B["s"])
    with pytest.raises(RunError, match="of another model or rank"):
        with_personal_factors(identity, task, make_adapter(3), {"B"})


def test_personal_factors_are_on_the_disk_before_they_replace_the_earlier_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, synced, sync = tmp_path / "personal.safetensors", [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (synced.append(os.fstat(descriptor).st_ino), sync(descriptor)))

    save_personal_factors(path, make_adapter(), {"B"})

    assert synced == [path.stat().st_ino, tmp_path.stat().st_ino]


def test_personal_factors_that_cannot_be_stored_leave_no_file(tmp_path: Path) -> None:
    path = tmp_path / "personal.safetensors"
    path.mkdir()

    with pytest.raises(IsADirectoryError):
        save_personal_factors(path, make_adapter(), {"B"})

    assert list(tmp_path.iterdir()) == [path]


def test_clients_evaluate_their_personal_models(tmp_path: Path) -> None:
    fedsvd.train(*OVERRIDES, "method=fedsa_lora", "train.eval_every=3", run_dir=tmp_path)

    rows = read_rows(tmp_path / "metrics.jsonl")
    personal = [load_file(tmp_path / "clients" / str(k) / "personal.safetensors") for k in range(2)]
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert any(not torch.equal(personal[0][key], personal[1][key]) for key in personal[0])
    assert not any(tensor.any() for key, tensor in saved.items() if "lora_B" in key)
    assert [row["accuracy"] is None for row in rows] == [False, True, True, False]
    # The server has only A, and B is zero: its loss would be the same as at the start.
    assert rows[-1]["loss"] != rows[0]["loss"]


def test_metrics_of_personal_models_are_those_of_the_task(tmp_path: Path) -> None:
    ratings = ["data.min_abs_rating=0", "data.label_range=[-4,4]", "model.task=regression", "partition=iid"]
    run = fedsvd.train(*OVERRIDES, *ratings, "method=fedsa_lora", "train.early_stopping=3", run_dir=tmp_path)

    metrics = {metric.key for metric in TASKS["regression"].metrics}
    for row in run.metrics:
        assert metrics <= row.keys()
        assert row["accuracy"] is None


def test_server_cannot_request_personal_factors(tmp_path: Path) -> None:
    config = compose([*OVERRIDES, "method=fedsa_lora"])
    start = initial_adapter(config, build_method(config.method))
    parts = frozenset({"A", "B"})
    task = train_messages.TrainTask(1, parts, parts)  # type: ignore[arg-type]
    with pytest.raises(
        PayloadError, match=r"requests \['A', 'B'\] from this client: with this method a client sends at most \['A'\]"
    ):
        run_local_round(
            config, ClientIdentity(0, 1, tmp_path / "ledger"), task, payload.pack(start, ["A"]), "1", RecordDict()
        )


@pytest.mark.parametrize("method", ["fedsvd", "ffa_lora", "flora", "flexlora"])
def test_clients_of_lower_rank_send_less_and_the_model_trains(method: str, tmp_path: Path) -> None:
    overrides = [*OVERRIDES, f"method={method}"]
    mixed, uniform = tmp_path / "mixed", tmp_path / "uniform"
    fedsvd.train(*overrides, "federation.client_ranks=[1,4]", run_dir=mixed)
    fedsvd.train(*overrides, run_dir=uniform)

    mixed_rows, uniform_rows = (read_rows(folder / "metrics.jsonl") for folder in (mixed, uniform))
    assert all(row["clients_used"] == 2 and not row["clients_refused"] for row in mixed_rows[1:])
    assert all(low["bytes_up"] < full["bytes_up"] for low, full in zip(mixed_rows[1:], uniform_rows[1:], strict=True))
    saved = load_file(mixed / "adapter" / "adapter_model.safetensors")
    assert any(tensor.abs().max() > 1e-3 for key, tensor in saved.items() if "lora_B" in key)


def test_method_without_support_for_lower_ranks_is_a_configuration_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = [*OVERRIDES, "method=fedavg_lora", "federation.client_ranks=[1,4]", f"hydra.run.dir={tmp_path}"]
    assert main(["train", *overrides]) == 2
    assert "client_ranks = [1, 4] is unsupported with method.name = fedavg_lora" in capsys.readouterr().err
