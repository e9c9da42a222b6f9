"""What can fail for a reason known beforehand fails before the charge, and on the server before the first round."""

from pathlib import Path
from typing import Any

import pytest
import torch

import client.local_round
from client.identity import ClientIdentity
from client.local_round import run_local_round
from fedsvd.cli import main
from fedsvd.config import Config
from fedsvd.config.compose import compose
from fedsvd.errors import DataError, FedSVDError, ModelError, PrivacyError
from fedsvd.methods import build_run_method
from fedsvd.runtime import losses, public_mean
from fedsvd.runtime.base_model import load_public_corpus
from fedsvd.runtime.model import check_model, initial_adapter, load_model
from fedsvd.runtime.public_statistics import clear_preconditioners
from fedsvd.runtime.round_parts import sent_parts, trained_parts
from fedsvd.wire import payload
from fedsvd.wire.train_messages import TrainTask

HOOKS = "model.gradient_checkpointing = true is not possible with Opacus' hooks"
UNSUPPORTED = [
    (["model.gradient_checkpointing=true", "model.lora_dropout=0.1"], f"{HOOKS}.*has dropout before A"),
    (["model.gradient_checkpointing=true", "train.grad_sample_mode=hooks"], f"{HOOKS}.*grad_sample_mode = hooks"),
    (["train.grad_sample_mode=fused", "model.lora_dropout=0.1"], "grad_sample_mode = fused is not possible"),
]


def run_round(config: Config, ledger: Path) -> None:
    method = build_run_method(config)
    task = TrainTask(1, trained_parts(method, config, 1), sent_parts(method, config, 1), account="a run")
    factors = payload.pack(initial_adapter(config, method), sorted(task.trains | {"B"}))
    run_local_round(config, ClientIdentity(0, 7, ledger), task, factors, "message")


def refuse(error: type[FedSVDError], message: str, config: Config, folder: Path) -> None:
    """Check that a round is refused, and that nothing is spent on it."""
    with pytest.raises(error, match=message):
        run_round(config, folder / "ledger.sqlite")
    assert not (folder / "ledger.sqlite").exists()


@pytest.mark.parametrize(("overrides", "message"), UNSUPPORTED, ids=str)
def test_unsupported_per_example_gradients_are_refused_before_the_charge(
    overrides: list[str], message: str, tmp_path: Path
) -> None:
    config = compose(["experiment=smoke", *overrides])
    with pytest.raises(PrivacyError, match=message):
        check_model(config)
    refuse(PrivacyError, message, config, tmp_path)


@pytest.mark.parametrize("overrides", [["train.head=private", "train.head_rounds=1"], ["method.pivot=BA"]], ids=str)
def test_the_parts_of_all_rounds_are_checked(overrides: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    losses.clear_caches()
    config = compose(["experiment=smoke", *overrides])
    model, method, checked = load_model(config), build_run_method(config), []
    start = {name: parameter.requires_grad for name, parameter in model.named_parameters()}

    def record(model: torch.nn.Module) -> None:
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        kinds = {"A": "lora_A", "B": "lora_B", "head": "modules_to_save"}
        checked.append({part for part, kind in kinds.items() if any(kind in name for name in trained)})

    monkeypatch.setattr("fedsvd.training.per_example_gradients.unsupported_reason", record)
    check_model(config)

    assert all(trained_parts(method, config, number) in checked for number in (1, 2))
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == start


def test_no_round_of_an_unsupported_run_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides, _ = UNSUPPORTED[0]

    assert main(["train", "experiment=smoke", *overrides, f"hydra.run.dir={tmp_path}"]) == 1

    assert "is not possible with Opacus' hooks" in capsys.readouterr().err
    assert not (tmp_path / "clients").exists()


@pytest.mark.parametrize("use", ["project_public_mean", "standardize_inputs"])
def test_a_missing_public_text_is_found_before_the_charge(use: str, tmp_path: Path) -> None:
    for cached in (load_public_corpus, public_mean._public_inputs):
        cached.cache_clear()
    clear_preconditioners()
    text = f"model.public_text={tmp_path / 'absent.txt'}"
    config = compose(["experiment=smoke", "method=fedavg_lora", f"privacy.{use}=true", text])
    refuse(DataError, "absent.txt", config, tmp_path)


@pytest.mark.parametrize("privacy", ["dp_sgd", "client_level"])
@pytest.mark.parametrize("part", ["per_example_losses", "lengths", "check_model", "round_maps"])
def test_everything_is_loaded_before_the_charge(
    part: str, privacy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> None:
        raise ModelError(f"{part} cannot be loaded")

    in_round = f"fedsvd.runtime.private_round.{part}"
    is_shared = privacy == "dp_sgd" and part in ("check_model", "round_maps")
    if is_shared:
        monkeypatch.setattr(in_round, fail)
    else:
        by_privacy = {"dp_sgd": "padded_widths", "client_level": "example_lengths"}
        monkeypatch.setattr(client.local_round, by_privacy[privacy] if part == "lengths" else part, fail)
    refuse(ModelError, part, compose(["experiment=smoke", f"privacy={privacy}"]), tmp_path)
