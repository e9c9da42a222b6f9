"""``fedsvd audit`` from start to end: a correct build passes, a broken one fails, and invalid arguments are errors."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsvd.audit import check_audit
from fedsvd.audit.one_run import _participants
from fedsvd.cli import main
from fedsvd.config.audit import AuditConfig
from fedsvd.config.compose import compose
from fedsvd.privacy.canaries import draw_canaries

# Every canary is drawn in some step, and there are enough of them to show a bound well above the claim.
SMOKE = [
    "experiment=smoke", "model.rank=32", "train.num_rounds=10", "train.batch_size=50", "privacy.target_epsilon=3",
]  # fmt: skip


def audit(folder: Path, *overrides: str) -> tuple[int, dict[str, Any]]:
    status = main(["audit", *SMOKE, f"run_dir={folder}", *overrides])
    return status, json.loads((folder / "audit.json").read_text())


@pytest.mark.slow
def test_correct_build_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, report = audit(tmp_path / "run", "audit.num_shadow_models=4")

    assert status == 0
    assert 0.3 < report["audited_epsilon"] < report["claimed_epsilon"] <= 3
    assert not report["contradicts_claim"]
    assert 0.55 < report["attacks"]["canaries, every update"]["auc"] < 0.75
    assert set(report["attacks"]) == {
        "canaries, every update", "LiRA, final model", "loss threshold, final model",
    }  # fmt: skip
    assert report["membership_examples"] == 170
    assert (tmp_path / "run" / "plots" / "roc.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "run" / "config.yaml").is_file()
    # An audit releases nothing, so it charges no ledger.
    assert not (tmp_path / "run" / "clients").exists()
    assert "the claim ε = 3.00 stands." in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("sabotage", ["no_noise", "no_clipping"])
def test_broken_build_is_contradicted(sabotage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, report = audit(tmp_path, f"audit.sabotage={sabotage}", "audit.num_shadow_models=0")

    assert status == 1
    assert report["audited_epsilon"] > 1.5 * report["claimed_epsilon"]
    assert report["audited_epsilon"] <= report["largest_possible_bound"]
    assert list(report["attacks"]) == ["canaries, every update"]
    assert "is CONTRADICTED." in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ["method=ffa_lora", "train.head=private", "audit.partition_id=1"],
        ["method=fedavg_lora", "audit.other_clients=false"],
        ["method=flora"],
        # B has fewer values than A, and each is trained in half of the rounds.
        ["method.pivot=AB", "method.init_a=zeros", "method.init_b=orthonormal", "model.target_modules=[output.dense]"],
        # The head is trained in all rounds, B in the last two.
        ["train.head=private", "train.head_rounds=8", "privacy.head_clipping_share=0.8", "audit.num_canaries=auto"],
        ["train=adamw", "train.num_rounds=5", "train.local_steps=2", "train.grad_sample_mode=hooks"],
    ],
)
def test_every_method_and_optimizer_can_be_audited(overrides: list[str], tmp_path: Path) -> None:
    status, report = audit(tmp_path, "audit.num_shadow_models=0", "audit.num_canaries=2000", *overrides)

    assert status == 0
    assert report["attacks"]["canaries, every update"]["auc"] > 0.53
    assert report["audited_epsilon"] < report["claimed_epsilon"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["audit.num_canarie=5"], "did you mean audit.num_canaries?"),
        (["audit.sabotage=no_nois"], "did you mean no_noise?"),
        (["audit.num_shadow_models=3"], "from 4 up"),
        (["audit.confidence=1"], "audit.confidence = 1"),
        (["audit=strong"], "expected a group of keys"),
        (["audit.partition_id=2"], "expected 0 to 1"),
        (["federation.participants=[1]"], "audit.partition_id = 0 is a client that does not take part"),
        (["federation.clients_per_round=1"], "federation.clients_per_round = 1 is not possible: all 2 clients"),
        (["privacy=none"], "set privacy=dp_sgd"),
        (["privacy=client_level"], "set privacy=dp_sgd"),
        (["train.trains=none", "train.head=private"], "trains nothing that an audit could attack"),
        (
            [
                "privacy.noise_share=true",
                "privacy.noise_multiplier=1",
                "federation.secure_aggregation=true",
                "train.local_steps=1",
            ],
            "privacy.noise_share=false",
        ),
        (["method=fedsa_lora"], "gives each client its own model"),
        (["federation.client_ranks=[2,4]"], "federation.client_ranks=null"),
        (["resume=somewhere"], "an audit cannot be resumed"),
        (["train.server_optimizer=adam"], "train.server_optimizer = adam is not possible"),
        (["method.shrinkage=optimal"], "method.shrinkage = optimal is not possible"),
        (["aggregation=median", "federation.num_clients=3"], "aggregation.name = median is not possible"),
        (["federation.weighting=inverse_variance"], "federation.weighting = inverse_variance is not possible"),
        (["model.device_map=auto"], "model.device_map = auto is not possible: an audit"),
        (["device=cuda:7"], "CUDA"),
        (["-m"], "no option '-m'"),
        (["hydra.run.dir=here"], "run_dir=DIR"),
    ],
)
def test_invalid_arguments_give_a_readable_error(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["audit", "experiment=smoke", f"run_dir={tmp_path / 'run'}", *arguments]) == 2

    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("others", "trained"), [(True, [1, 2]), (False, [2])])
def test_clients_that_do_not_take_part_are_left_out(others: bool, trained: list[int]) -> None:
    config = compose(["experiment=smoke", "federation.num_clients=3", "federation.participants=[2,1]"])
    settings = AuditConfig(2, 8, 0.95, others, 0, "none")
    canaries = draw_canaries(8, 16, 1.0, np.random.default_rng(0))
    participants = _participants(config, settings, canaries, lambda server_round, update: None)
    assert [client.partition_id for client in participants] == trained
    assert [client.partition_id for client in participants if client.canaries is not None] == [2]
    check_audit(replace(config, federation=replace(config.federation, clients_per_round=2)), settings)


def test_more_canaries_than_trained_values_give_a_readable_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["audit", "experiment=smoke", f"run_dir={tmp_path / 'run'}", "audit.num_canaries=513"]) == 1

    assert "only 512 values are trained" in capsys.readouterr().err


def test_training_run_cannot_be_sabotaged(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "experiment=smoke", "audit.sabotage=no_noise"]) == 2
    assert "unknown key" in capsys.readouterr().err
