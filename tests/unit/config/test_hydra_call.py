"""Setting values in a composed configuration gives what Hydra gives."""

import os
import shutil
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from fedsvd.config.compose import conf_dir
from fedsvd.config.hydra_call import call_hydra, compose_with_values
from fedsvd.config.overrides import parse

CHOICES = ("experiment=smoke", "privacy=dp_sgd")
VALUES = [
    [],
    ["train.num_rounds=7", "train.num_rounds=9"],
    ["privacy.target_epsilon=null", "privacy.noise_multiplier=1e-1"],
    ["model.target_modules=[query,value]", "model.rank=2"],
    ["train.class_weights={a:1.5,b:2}", "train.class_weights={b:3}"],
    ["data={max_train_examples:5}", "data.max_test_examples=6"],
    ["run_dir='a b,c=${seed}'", "seed=3"],
    ["train.optimizer=\\${seed}", "device=' cpu '"],
    ["train.learning_rate=${privacy.max_grad_norm}"],
]


def as_hydra_composes(folder: Path, values: list[str]) -> DictConfig:
    return call_hydra(folder, "config", [*CHOICES, *values])


@pytest.mark.parametrize("values", VALUES, ids=" ".join)
def test_set_values_equal_those_that_hydra_sets(values: list[str]) -> None:
    for _ in range(2):
        actual = compose_with_values(conf_dir(), "config", CHOICES, parse(values))
        expected = as_hydra_composes(conf_dir(), values)
        assert OmegaConf.to_container(actual) == OmegaConf.to_container(expected)
        assert OmegaConf.to_container(actual, resolve=True) == OmegaConf.to_container(expected, resolve=True)


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(conf_dir(), tmp_path / "conf"))
    before = compose_with_values(folder, "config", CHOICES, [])
    file = folder / "experiment" / "smoke.yaml"
    file.write_text(file.read_text(encoding="utf-8").replace("num_rounds: 2", "num_rounds: 5"), encoding="utf-8")
    os.utime(file, ns=(2**61, 2**61))
    after = compose_with_values(folder, "config", CHOICES, [])

    assert (before.train.num_rounds, after.train.num_rounds) == (2, 5)
    assert after == as_hydra_composes(folder, [])
