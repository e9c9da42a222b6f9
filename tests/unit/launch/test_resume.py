"""What may change when a run is resumed, and what is refused by name."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from fedsvd.cli import main
from fedsvd.config import Config
from fedsvd.config.compose import as_dict, compose, to_yaml
from fedsvd.config.earlier_versions import pinned_overrides
from fedsvd.config.flat import flatten
from fedsvd.errors import ResumeError
from fedsvd.launch.resume import MAY_CHANGE, _may_change, check_new, check_settings
from fedsvd.privacy.round_settings import ROW_KEY, round_settings
from fedsvd.runs.folder import RunFolder

ROOT = Path(__file__).parents[3]
BASE = ["experiment=smoke", "data=csv", "data.path=a.csv"]
# An override for each key that may change.
ALLOWED = {
    "train.num_rounds": "train.num_rounds=3",
    "privacy.max_epsilon": "privacy.max_epsilon=20",
    "train.learning_rate": "train.learning_rate=0.1",
    "train.lr_scheduler_type": "train.lr_scheduler_type=linear",
    "train.warmup_rounds": "train.warmup_rounds=1",
    "train.eval_every": "train.eval_every=2",
    "train.early_stopping": "train.early_stopping=1",
    "train.keep_best": "train.keep_best=false",
    "train.eval_batch_size": "train.eval_batch_size=7",
    "train.physical_batch_size": "train.physical_batch_size=7",
    "train.prefix_cache_mib": "train.prefix_cache_mib=0",
    "train.grad_sample_mode": "train.grad_sample_mode=hooks",
    "model.attn_implementation": "model.attn_implementation=eager",
    "model.gradient_checkpointing": "model.gradient_checkpointing=true",
    "model.device_map": "model.device_map=auto",
    "data.path": "data.path=moved.csv",
    "data.test_path": "data.test_path=moved.csv",
    "federation.name": "federation=simulation",
    "federation.min_replies": "federation.min_replies=2",
    "federation.min_completion": "federation.min_completion=0.5",
    "federation.round_timeout_s": "federation.round_timeout_s=9",
    "federation.connect_timeout_s": "federation.connect_timeout_s=9",
    "federation.retries": "federation.retries=3",
    "federation.retry_after_s": "federation.retry_after_s=9",
    "federation.max_num_examples": "federation.max_num_examples=9999",
    "federation.max_reply_norm": "federation.max_reply_norm=9",
    "federation.client_num_cpus": "federation.client_num_cpus=2",
    "federation.client_num_gpus": "federation.client_num_gpus=0.5",
    "federation.ray_address": "federation=simulation federation.ray_address=auto",
    "federation.superlink": "federation.superlink=10.0.0.1:9",
    "federation.root_certificates": "federation.root_certificates=null",
    "federation.connection": "federation.connection=lab",
    "federation.server_runs": "federation.server_runs=/elsewhere",
    "federation.fetch": "federation.fetch='scp {remote} {local}'",
    "tracking": "tracking=tensorboard",
    "device": "device=cpu",
    "float32_matmul_precision": "float32_matmul_precision=high",
    "plots": "plots=false",
    "run_dir": "run_dir=elsewhere",
    "resume": "resume=elsewhere",
}
# Overrides that are refused, with the key, the old and the new value.
REFUSED = {
    "privacy=none": "privacy.name from dp_sgd to none",
    "privacy=client_level": "privacy.name from dp_sgd to client_level",
    "privacy.target_epsilon=8": "privacy.target_epsilon from 6.0 to 8.0",
    "privacy.target_epsilon=3": "privacy.target_epsilon from 6.0 to 3.0",
    "privacy.target_delta=1e-6": "privacy.target_delta from 1e-05 to 1e-06",
    "privacy.accountant=rdp": "privacy.accountant from prv to rdp",
    "privacy.max_grad_norm=2": "privacy.max_grad_norm from 1.0 to 2.0",
    "privacy.max_update_norm=2": "privacy.max_update_norm from 1.0 to 2.0",
    "privacy.noise_multiplier=2": "privacy.noise_multiplier from null to 2.0",
    "privacy.secure_random=false": "privacy.secure_random from true to false",
    "privacy.clipping_statistics=false": "privacy.clipping_statistics from true to false",
    "privacy.ledger_dir=/ledgers": "privacy.ledger_dir from null to /ledgers",
    "federation.secure_aggregation=true": "federation.secure_aggregation from false to true",
    "federation.min_survivors=3": "federation.min_survivors from 2 to 3",
    "federation.retries=0": "federation.retries from 1 to 0",
    "federation.weighting=uniform": "federation.weighting from examples to uniform",
    "federation.num_clients=3": "federation.num_clients from 2 to 3",
    "federation.clients_per_round=1": "federation.clients_per_round from null to 1",
    "federation.client_ranks=[1,2]": "federation.client_ranks from null to [1, 2]",
    "federation=remote": "federation.name from local to remote",
    "train.local_steps=3": "train.local_steps from 2 to 3",
    "train.batch_size=8": "train.batch_size from 16 to 8",
    "train.head=private": "train.head from frozen to private",
    "train=adamw": "train.optimizer from sgd to adamw",
    "seed=5": "seed from 0 to 5",
    "method=ffa_lora": "method.name from fedsvd to ffa_lora",
    "method.refactorize_every=2": "method.refactorize_every from 1 to 2",
    "partition=iid": "partition.name from dirichlet to iid",
    "partition.dirichlet_alpha=1": "partition.dirichlet_alpha from 0.5 to 1.0",
    "data=jsonl": "data.name from csv to jsonl",
    "data.test_fraction=0.3": "data.test_fraction from 0.2 to 0.3",
    "data.label_column=other": "data.label_column from label to other",
    "data.evaluate_on=validation": "data.evaluate_on from test to validation",
    "data.max_train_examples=100": "data.max_train_examples from 200 to 100",
    "model.rank=3": "model.rank from 4 to 3",
    "model.max_length=32": "model.max_length from 64 to 32",
    "aggregation=median": "aggregation.name from mean to median",
}


def make_run(root: Path, config: Config, rows: int = 2, **settings: Any) -> RunFolder:
    """Write the files of a run that `check_settings` reads."""
    folder = RunFolder(root)
    root.mkdir(exist_ok=True)
    folder.config.write_text(to_yaml(config), encoding="utf-8")
    recorded = {**round_settings(flatten(as_dict(config))), **settings}
    lines = [json.dumps({"server_round": number, ROW_KEY: recorded}) for number in range(rows + 1)]
    folder.metrics.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return folder


def test_every_key_that_may_change_is_tested_and_documented() -> None:
    assert ALLOWED.keys() == MAY_CHANGE.keys()
    keys = flatten(as_dict(compose()))
    assert all(key in keys or key == "tracking" for key in MAY_CHANGE)
    page = (ROOT / "docs" / "runs.md").read_text(encoding="utf-8")
    assert [key for key in MAY_CHANGE if f"`{key}`" not in page] == []


@pytest.mark.parametrize("key", ALLOWED)
def test_listed_keys_may_change(key: str, tmp_path: Path) -> None:
    folder = make_run(tmp_path, compose(BASE))
    changed = compose([*BASE, *(ALLOWED[key].split(" ", 1) if "fetch" not in key else [ALLOWED[key]])])

    assert flatten(as_dict(changed)) != flatten(as_dict(compose(BASE)))
    check_settings(folder, changed)


@pytest.mark.parametrize("override", REFUSED)
def test_other_keys_are_refused_with_both_values(override: str, tmp_path: Path) -> None:
    folder = make_run(tmp_path, compose(BASE))
    more = ["federation.secure_aggregation=false"] if "secure" not in override else []

    with pytest.raises(ResumeError) as refusal:
        check_settings(folder, compose([*BASE, *more, override]))

    message = str(refusal.value)
    assert REFUSED[override] in message
    assert "Leave the override out (flwr run needs all overrides of the run again), or start a new run" in message
    assert "\n" not in message


def test_no_other_key_may_change(tmp_path: Path) -> None:
    # Not the value but the name of the key decides, so every key of the schema is either listed or refused.
    base = compose(BASE)
    listed = {key for key in flatten(as_dict(base)) if key in MAY_CHANGE or key.startswith("tracking.")}
    unlisted = [key for key in flatten(as_dict(base)) if key not in listed]

    assert not any(_may_change(key, 1, 2, "none") for key in unlisted)
    assert [_may_change("federation.retries", 1, 0, name) for name in ("none", "dp_sgd")] == [True, False]
    assert all(f"privacy.{name}" in [*listed, *unlisted] for name in ("noise_share", "ledger_dir", "name"))
    assert [key for key in listed if key.startswith("privacy.")] == ["privacy.max_epsilon"]
    assert not [key for key in listed if key.startswith(("method.", "partition.", "seed", "aggregation."))]


@pytest.mark.parametrize("change", [{"noise_share": True}, {"secure_random": False}, {"clipping_norm": 4.0}])
def test_recorded_settings_count_whatever_the_configuration_file_says(change: dict[str, Any], tmp_path: Path) -> None:
    folder = make_run(tmp_path, compose(BASE), **change)

    with pytest.raises(ResumeError, match=f"privacy setting {next(iter(change))} from"):
        check_settings(folder, compose(BASE))


def test_fewer_rounds_than_done_are_refused(tmp_path: Path) -> None:
    folder = make_run(tmp_path, compose(BASE), rows=2)

    check_settings(folder, compose([*BASE, "train.num_rounds=2"]))
    with pytest.raises(ResumeError, match=r"train\.num_rounds = 1 is below the 2 rounds"):
        check_settings(folder, compose([*BASE, "train.num_rounds=1"]))
    # The row of the last round was not written.
    (folder.checkpoints / "round-000003").mkdir(parents=True)
    with pytest.raises(ResumeError, match="below the 3 rounds"):
        check_settings(folder, compose([*BASE, "train.num_rounds=2"]))


@pytest.mark.parametrize("rounds", [1, 3])
def test_a_client_level_run_keeps_its_rounds(rounds: int, tmp_path: Path) -> None:
    base = [*BASE, "privacy=client_level"]
    folder = make_run(tmp_path, compose(base), rows=1)

    check_settings(folder, compose(base))
    with pytest.raises(ResumeError, match=r"train\.num_rounds from 2 to .*planned rounds"):
        check_settings(folder, compose([*base, f"train.num_rounds={rounds}"]))


def test_one_ledger_directory_may_be_written_in_two_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = make_run(tmp_path / "run", compose([*BASE, f"privacy.ledger_dir={tmp_path / 'ledgers'}"]))

    check_settings(folder, compose([*BASE, "privacy.ledger_dir=ledgers"]))


def test_configurations_of_earlier_versions_have_the_defaults_of_missing_keys(tmp_path: Path) -> None:
    config = compose(BASE)
    folder = make_run(tmp_path, dataclasses.replace(config, model=dataclasses.replace(config.model, pooling="stock")))
    lines = folder.config.read_text().splitlines(keepends=True)
    dropped = ("refactorize_every:", "pooling:", "clipping_statistics:", "pivot:")
    folder.config.write_text("".join(line for line in lines if not line.strip().startswith(dropped)))

    check_settings(folder, compose([*BASE, "model.pooling=stock"]))
    with pytest.raises(ResumeError, match=r"model\.pooling from stock to auto"):
        check_settings(folder, config)


def test_values_that_have_changed_in_the_yaml_files_stay_as_recorded() -> None:
    current = compose(["experiment=smoke"])
    values = as_dict(current)
    assert pinned_overrides(values, current) == []
    values["model"]["attn_implementation"], values["train"]["head_init"] = "sdpa", "random"

    pinned = pinned_overrides(values, current)

    assert pinned == ["model.attn_implementation=sdpa", "train.head_init=random"]
    assert pinned_overrides(values, compose(["experiment=smoke", *pinned])) == []


def test_without_a_configuration_the_saved_overrides_are_compared(tmp_path: Path) -> None:
    RunFolder(tmp_path).overrides.write_text(json.dumps(BASE), encoding="utf-8")

    check_settings(RunFolder(tmp_path), compose(BASE))
    with pytest.raises(ResumeError, match="seed from 0 to 5"):
        check_settings(RunFolder(tmp_path), compose([*BASE, "seed=5"]))


def test_a_refused_override_is_not_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_run(tmp_path / "run", compose(["experiment=smoke"]))
    (folder.checkpoints / "round-000002").mkdir(parents=True)
    saved = RunFolder(tmp_path / "run").overrides
    saved.write_text('["experiment=smoke"]', encoding="utf-8")

    assert main(["train", f"resume={tmp_path / 'run'}", "privacy=none"]) == 2

    assert "privacy.name from dp_sgd to none" in capsys.readouterr().err
    assert json.loads(saved.read_text()) == ["experiment=smoke"]


def test_a_new_run_replaces_no_rounds(tmp_path: Path) -> None:
    check_new(RunFolder(tmp_path / "new"))
    check_new(make_run(tmp_path / "interrupted before the first round", compose(BASE), rows=0))
    with pytest.raises(ResumeError, match="records 2 rounds, and a new run would replace"):
        check_new(make_run(tmp_path / "run", compose(BASE)))
