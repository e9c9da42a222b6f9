"""The configuration: every YAML file composes, and its values are typed, bounded and hashable."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import pickle
import re
import shlex
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hydra.core.global_hydra import GlobalHydra
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from pydantic.dataclasses import dataclass

from fedsvd.config import DataConfig, FederationConfig, PrivacyConfig, TrainConfig
from fedsvd.config.compose import (
    as_dict,
    compose,
    compose_audit,
    compose_compare,
    conf_dir,
    from_dictconfig,
    to_yaml,
)
from fedsvd.config.group import ConfigGroup
from fedsvd.config.messages import allowed_values
from fedsvd.errors import ConfigError

ROOT = Path(__file__).resolve().parents[3]
YAMLS = sorted(path.relative_to(ROOT / "conf") for path in (ROOT / "conf").rglob("*.yaml"))
# Root files other than config.yaml; each belongs to the command of its name.
COMMANDS = {"audit": compose_audit, "compare": compose_compare}
OPTIONS = [path for path in YAMLS if path.parent != Path()]


def commands(path: Path) -> list[list[str]]:
    """Return the overrides of the ``# fedsvd train …`` lines of a YAML file."""
    lines = re.findall(
        r"^# fedsvd (?:train|audit|compare)\b(.*?)(?: {2,}.*)?$", path.read_text(encoding="utf-8"), re.MULTILINE
    )
    return [[argument for argument in shlex.split(line) if "=" in argument] for line in lines]


@pytest.mark.parametrize("path", OPTIONS, ids=str)
def test_every_option_composes_to_the_values_of_its_yaml(path: Path) -> None:
    group_name, _, option = path.with_suffix("").as_posix().partition("/")
    # Conversations are for language models only.
    config = compose([f"{group_name}={option}", *(["model=smollm2"] if option == "chitchat" else [])])
    for key, value in OmegaConf.to_container(OmegaConf.load(conf_dir() / path)).items():
        if group_name != "experiment":
            group = as_dict(config)[group_name]
            expected = config.seed if value == "${seed}" else value
            # Tuples as lists, also inside of lists.
            assert json.loads(json.dumps(group[key])) == expected


@pytest.mark.parametrize("path", YAMLS, ids=str)
def test_every_yaml_starts_with_a_command_that_composes(path: Path) -> None:
    lines = (conf_dir() / path).read_text(encoding="utf-8").splitlines()
    assert next(line for line in lines if line != "# @package _global_").startswith(
        f"# fedsvd {path.stem}" if path.stem in COMMANDS and path.parent == Path() else "# fedsvd train"
    )
    for overrides in commands(conf_dir() / path):
        compose_command = COMMANDS.get(path.stem, compose) if path.parent == Path() else compose
        compose_command(overrides)


def test_the_main_experiment_is_the_default() -> None:
    config, demo = compose(), compose("experiment=demo")
    assert (config.method["name"], config.model.name, config.model.rank) == ("fedsvd", "minilm", 8)
    assert (config.partition.name, config.partition.dirichlet_alpha) == ("dirichlet", 0.5)
    assert (demo.privacy.name, demo.privacy.target_epsilon, demo.privacy.target_delta) == ("dp_sgd", 3.0, 1e-5)
    assert demo.federation.num_clients == 4


def test_the_option_none_is_a_name() -> None:
    assert compose("privacy=none").privacy.name == "none"


def test_an_override_wins_over_its_experiment() -> None:
    config = compose("experiment=smoke train.num_rounds=7 model.rank=2 privacy=none")
    assert (config.model.name, config.model.rank) == ("tiny", 2)
    assert (config.train.num_rounds, config.train.local_steps, config.privacy.name) == (7, 2, "none")


def test_a_line_is_split_like_a_shell_command() -> None:
    assert compose("method=ffa_lora run_dir=\"'my runs/a=b'\"").run_dir == "my runs/a=b"
    assert compose("method=ffa_lora  train.num_rounds=3") is compose(["method=ffa_lora", "train.num_rounds=3"])


def test_compositions_are_cached_per_overrides() -> None:
    assert compose("seed=3") is compose(("seed=3",))
    assert compose("seed=3") != compose("seed=4")
    assert GlobalHydra.instance().hydra is None


def test_groups_are_hashable_and_numbers_have_one_type() -> None:
    config = compose("train.learning_rate=1 model.target_modules=[query]")
    assert type(config.train.learning_rate) is float
    assert config.model.target_modules == ("query",)
    assert len({config.model, config.data, config.partition, config.privacy, config.train, config.federation}) == 6
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.train.num_rounds = 3  # type: ignore[misc]


def test_threads_compose_concurrently() -> None:
    seeds = list(range(1000, 1008))
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as pool:
            assert [config.seed for config in pool.map(lambda seed: compose(f"seed={seed}"), seeds)] == seeds
    finally:
        sys.setswitchinterval(interval)


def test_yaml_round_trip() -> None:
    config = compose("experiment=smoke model.target_modules=[key] privacy.target_delta=1e-7")
    assert from_dictconfig(OmegaConf.create(to_yaml(config))) == config


@given(st.floats() | st.integers())
def test_a_fraction_is_accepted_exactly_inside_its_bounds(value: float) -> None:
    if math.isfinite(value) and 0 < value < 1:
        assert PrivacyConfig("dp_sgd", target_delta=value).target_delta == value
    else:
        with pytest.raises(ConfigError, match=r"privacy\.target_delta"):
            PrivacyConfig("dp_sgd", target_delta=value)


@given(st.integers(-5, 5), st.none() | st.integers(-5, 5), st.integers(-5, 5))
def test_a_federation_is_valid_exactly_if_a_round_can_succeed(clients: int, sampled: int | None, replies: int) -> None:
    possible = 1 <= replies <= (clients if sampled is None else sampled) <= clients
    if possible:
        FederationConfig("local", num_clients=clients, clients_per_round=sampled, min_replies=replies)
    else:
        with pytest.raises(ConfigError, match=r"federation\."):
            FederationConfig("local", num_clients=clients, clients_per_round=sampled, min_replies=replies)


def test_bounds_are_inclusive_or_exclusive_as_declared() -> None:
    assert DataConfig("movie_reviews", min_abs_rating=0).min_abs_rating == 0
    for wrong in (-0.1, 4):
        with pytest.raises(ConfigError, match=r"≥ 0 and < 4"):
            DataConfig("movie_reviews", min_abs_rating=wrong)
    assert TrainConfig("sgd", 0.1, 1, 1, 1, weight_decay=0).weight_decay == 0


def test_groups_remain_ordinary_frozen_dataclasses() -> None:
    train = compose("train.num_rounds=7").train
    assert [field.name for field in dataclasses.fields(train)] == list(dataclasses.asdict(train))
    assert pickle.loads(pickle.dumps(train)) == copy.deepcopy(train) == copy.copy(train) == train
    assert dataclasses.replace(train, num_rounds=8).num_rounds == 8
    with pytest.raises(ConfigError, match=r"train\.num_rounds = 0 is invalid: expected an integer ≥ 1"):
        dataclasses.replace(train, num_rounds=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("movie_reviews", True), "data.test_fraction = True is invalid: expected a number > 0 and < 1"),
        (("movie_reviews", 0.2, math.inf), "data.min_abs_rating = inf is invalid"),
        (("movie_reviews", 0.2, 10**400), "expected a number ≥ 0 and < 4"),
        (("movie_reviews", 0.2, 0.5, ["movies", " "]), "data.domains = ['movies', ' '] is invalid"),
        (("movie_review",), "data.name = 'movie_review' is invalid (did you mean movie_reviews?)"),
        ((), "data.name is missing"),
    ],
)
def test_the_constructor_validates(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        DataConfig(*arguments)
    with pytest.raises(ConfigError, match=re.escape("data.test_fractio = 0.1 is invalid: unknown key")):
        DataConfig("movie_reviews", test_fractio=0.1)  # type: ignore[call-arg]


def test_lists_become_tuples() -> None:
    assert DataConfig("movie_reviews", domains=["movies"]).domains == ("movies",)  # type: ignore[arg-type]


def test_a_type_without_a_description_is_a_programming_error() -> None:
    @dataclass(frozen=True)
    class Undescribed(ConfigGroup):
        payload: bytes

    with pytest.raises(TypeError, match="Payload"):
        allowed_values(Undescribed)
