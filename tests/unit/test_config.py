"""The configuration: every YAML composes, and whatever is wrong ends in one readable ConfigError."""

from __future__ import annotations

import dataclasses
import math
import re
import shlex
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from fedsvd.compose import (
    as_dict,
    compose,
    compose_audit,
    compose_compare,
    conf_dir,
    from_dictconfig,
    from_run_config,
    to_yaml,
)
from fedsvd.config import DataConfig, FederationConfig, PrivacyConfig, TrainConfig
from fedsvd.errors import ConfigError
from fedsvd.validate import allowed, did_you_mean

ROOT = Path(__file__).resolve().parents[2]
YAMLS = sorted(path.relative_to(ROOT / "conf") for path in (ROOT / "conf").rglob("*.yaml"))
# Files beside config.yaml, each of a command of its own.
OWN_COMMANDS = {"audit": compose_audit, "compare": compose_compare}
OPTIONS = [path for path in YAMLS if path.parent != Path()]


def commands(path: Path) -> list[list[str]]:
    """Overrides of the ``# fedsvd train …`` lines of a YAML."""
    found = re.findall(
        r"^# fedsvd (?:train|audit|compare)\b(.*?)(?: {2,}.*)?$", path.read_text(encoding="utf-8"), re.MULTILINE
    )
    return [[word for word in shlex.split(words) if "=" in word] for words in found]


@pytest.mark.parametrize("path", OPTIONS, ids=str)
def test_every_option_composes_and_is_what_its_yaml_says(path: Path) -> None:
    group_name, _, option = path.with_suffix("").as_posix().partition("/")
    config = compose([f"{group_name}={option}"])
    for key, value in OmegaConf.to_container(OmegaConf.load(conf_dir() / path)).items():
        if group_name != "experiment":
            group = as_dict(config)[group_name]
            expected = config.seed if value == "${seed}" else value
            assert (list(group[key]) if isinstance(value, list) else group[key]) == expected


@pytest.mark.parametrize("path", YAMLS, ids=str)
def test_every_yaml_opens_with_a_command_that_composes(path: Path) -> None:
    lines = (conf_dir() / path).read_text(encoding="utf-8").splitlines()
    assert next(line for line in lines if line != "# @package _global_").startswith(
        f"# fedsvd {path.stem}" if path.stem in OWN_COMMANDS and path.parent == Path() else "# fedsvd train"
    )
    for overrides in commands(conf_dir() / path):
        composing = OWN_COMMANDS.get(path.stem, compose) if path.parent == Path() else compose
        composing(overrides)


def test_the_main_experiment_is_the_default() -> None:
    config, demo = compose(), compose("experiment=demo")
    assert (config.method["name"], config.model.name, config.model.rank) == ("fedsvd", "minilm", 8)
    assert (config.partition.name, config.partition.dirichlet_alpha) == ("dirichlet", 0.5)
    assert (demo.privacy.name, demo.privacy.target_epsilon, demo.privacy.target_delta) == ("dp_sgd", 6.0, 1e-5)
    assert demo.federation.num_clients == 4


def test_the_option_none_is_a_name() -> None:
    assert compose("privacy=none").privacy.name == "none"


def test_an_override_wins_over_its_experiment() -> None:
    config = compose("experiment=smoke train.num_rounds=7 model.rank=2 privacy=none")
    assert (config.model.name, config.model.rank) == ("tiny", 2)
    assert (config.train.num_rounds, config.train.local_steps, config.privacy.name) == (7, 2, "none")


# Each row: overrides, and what the message must name (key, value, what is allowed or the remedy).
WRONG = [
    ("train.learning_rat=0.1", ["train.learning_rat = 0.1", "did you mean train.learning_rate?", "learning_rate, "]),
    ("num_rounds=3", ["num_rounds = 3", "did you mean train.num_rounds?"]),
    ("trian.num_rounds=3", ["trian.num_rounds", "did you mean train.num_rounds?"]),
    ("privacy.nme=x", ["did you mean privacy.name?"]),
    ("method.refactorize_evry=2", ["did you mean method.refactorize_every?"]),
    ("method=ffa_lora method.refactorize_every=2", ["method.refactorize_every = 2", "method has name, init_a, init_b"]),
    ("train.num_rounds.x=3", ["train.num_rounds.x = 3", "no such key"]),
    ("+train.foo=3", ["train.foo = 3", "no such key", "train has optimizer"]),
    ("++federation.num_client=3", ["did you mean federation.num_clients?"]),
    ("zebra=1", ["zebra = 1", "no such key", "seed"]),
    (
        "method=fedsdv",
        [
            "method = 'fedsdv'",
            "did you mean fedsvd?",
            "fed_sb, fedavg_lora, fedex_lora, fedsa_lora, fedsvd, ffa_lora, flexlora, flora, rolora",
        ],
    ),
    ("experiment=smok", ["experiment = 'smok'", "did you mean smoke?", "causal_lm, compare, demo, "]),
    ("privacy=null", ["privacy = None", "dp_sgd, none"]),
    ("model=[tiny]", ["model = ['tiny']", "minilm, roberta_base"]),
    ("method@x=fedsvd", ["method@x=fedsvd", "leave @x out"]),
    ("+experiment=smoke", ["+experiment=smoke", "drop the +"]),
    ("+seed=3", ["+seed=3", "drop the +"]),
    ("~seed", ["~seed", "set it to a value"]),
    ("train.num_rounds=abc", ["train.num_rounds = 'abc'", "a whole number ≥ 1"]),
    ("train.num_rounds=", ["train.num_rounds = ''", "a whole number ≥ 1"]),
    ("train.num_rounds=null", ["train.num_rounds = None", "a whole number ≥ 1"]),
    ("train.num_rounds=true", ["train.num_rounds = True", "a whole number ≥ 1"]),
    ("train.num_rounds=2.5", ["train.num_rounds = 2.5", "a whole number ≥ 1"]),
    ("train.learning_rate=fast", ["train.learning_rate = 'fast'", "a number > 0"]),
    ("train.learning_rate=nan", ["train.learning_rate = nan", "a number > 0"]),
    ("train.learning_rate=inf", ["train.learning_rate = inf", "a number > 0"]),
    ("run_dir=2024", ["run_dir = 2024", "a text", "or null"]),
    ("model.target_modules=query", ["model.target_modules = 'query'", "[query,value]"]),
    ("model.target_modules=[]", ["model.target_modules = ()", "[query,value]"]),
    ("model.target_modules=[query,query]", ["model.target_modules", "different names"]),
    ("train.num_rounds=0", ["train.num_rounds = 0", "a whole number ≥ 1", "leave the key out"]),
    ("privacy.target_epsilon=-1", ["privacy.target_epsilon = -1", "a number > 0"]),
    ("privacy.target_delta=1", ["privacy.target_delta = 1.0", "> 0 and < 1"]),
    ("privacy.accountant=prw", ["privacy.accountant = 'prw'", "did you mean prv?", "one of prv, rdp"]),
    ("privacy.secure_random=maybe", ["privacy.secure_random = 'maybe'", "true or false"]),
    ("train.momentum=1", ["train.momentum = 1.0", "≥ 0 and < 1"]),
    ("data.max_train_examples=0", ["data.max_train_examples = 0", "or null"]),
    ("device=cuda:x", ["device = 'cuda:x'", "cuda:N"]),
    ("seed=-1", ["seed = -1", "≥ 0"]),
    ("train=adamw train.momentum=0.9", ["train.momentum = 0.9", "train.momentum=0", "train=sgd"]),
    ("federation.clients_per_round=9", ["clients_per_round = 9", "num_clients = 4", "1 to 4"]),
    ("federation.min_replies=5", ["min_replies = 5", "1 to 4"]),
    ("privacy=client_level federation.min_replies=2", ["min_replies = 2", "client_level", "leave it out"]),
    ("federation.clients_per_round=2 federation.min_replies=3", ["min_replies = 3", "1 to 2"]),
    ("federation.ray_address=auto", ["ray_address = 'auto'", "federation=simulation"]),
    ("data.max_train_examples=39", ["max_train_examples = 39", "4 clients", "40 or more"]),
    ("seed=${nope}", ["seed", "nope", "plain value"]),
    ("foo", ["'foo'", "has no =", "KEY=VALUE"]),
    ("=3", ["'=3'", "names no key", "KEY=VALUE"]),
    ("model.target_modules=[a", ["model.target_modules=[a", "not understood", "KEY=VALUE"]),
    ("train.batch_size=1,2", ["train.batch_size=1,2", "add -m"]),
    ("method.init_a='a b", ["cannot be split", "No closing quotation"]),
]


@pytest.mark.parametrize(("overrides", "fragments"), WRONG, ids=[row[0] for row in WRONG])
def test_what_is_wrong_ends_in_one_paragraph_that_names_it(overrides: str, fragments: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(overrides)
    message = str(caught.value)
    assert [fragment for fragment in fragments if fragment not in message] == []
    assert "\n" not in message


def test_no_hint_where_nothing_is_near() -> None:
    assert did_you_mean("zebra", ["train.num_rounds", "seed"]) == ""


def test_a_line_is_split_as_a_shell_would() -> None:
    assert compose("method=ffa_lora run_dir=\"'my runs/a=b'\"").run_dir == "my runs/a=b"
    assert compose("method=ffa_lora  train.num_rounds=3") is compose(["method=ffa_lora", "train.num_rounds=3"])


def test_the_same_overrides_are_composed_once_and_others_anew() -> None:
    assert compose("seed=3") is compose(("seed=3",))
    assert compose("seed=3") != compose("seed=4")
    assert GlobalHydra.instance().hydra is None


def test_groups_can_key_a_cache_and_numbers_have_one_type() -> None:
    config = compose("train.learning_rate=1 model.target_modules=[query]")
    assert type(config.train.learning_rate) is float
    assert config.model.target_modules == ("query",)
    assert len({config.model, config.data, config.partition, config.privacy, config.train, config.federation}) == 6
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.train.num_rounds = 3  # type: ignore[misc]


def test_threads_compose_side_by_side() -> None:
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


def test_missing_and_unknown_keys_of_a_plain_config() -> None:
    values = as_dict(compose())
    del values["train"]["num_rounds"]
    with pytest.raises(ConfigError, match=r"train\.num_rounds is missing"):
        from_dictconfig(OmegaConf.create(values))
    values = as_dict(compose()) | {"privcy": {}}
    with pytest.raises(ConfigError, match=r"did you mean privacy\?"):
        from_dictconfig(OmegaConf.create(values))
    values = as_dict(compose()) | {"train": 3}
    with pytest.raises(ConfigError, match=r"train = 3 is not allowed: give a group of keys"):
        from_dictconfig(OmegaConf.create(values))


def test_run_config() -> None:
    assert from_run_config({"overrides": "seed=5"}).seed == 5
    assert from_run_config({"overrides": ""}) == compose()
    for wrong in ({}, {"overrides": 3}):
        with pytest.raises(ConfigError, match="declare overrides"):
            from_run_config(wrong)


@given(st.floats() | st.integers())
def test_a_fraction_is_accepted_exactly_inside_its_bounds(value: float) -> None:
    if math.isfinite(value) and 0 < value < 1:
        assert PrivacyConfig("dp_sgd", target_delta=value).target_delta == value
    else:
        with pytest.raises(ConfigError, match=r"privacy\.target_delta"):
            PrivacyConfig("dp_sgd", target_delta=value)


@given(st.integers(-5, 5), st.none() | st.integers(-5, 5), st.integers(-5, 5))
def test_a_federation_is_accepted_exactly_when_a_round_can_count(clients: int, drawn: int | None, replies: int) -> None:
    possible = 1 <= replies <= (clients if drawn is None else drawn) <= clients
    if possible:
        FederationConfig("local", num_clients=clients, clients_per_round=drawn, min_replies=replies)
    else:
        with pytest.raises(ConfigError, match=r"federation\."):
            FederationConfig("local", num_clients=clients, clients_per_round=drawn, min_replies=replies)


def test_bounds_are_inside_or_outside_as_written() -> None:
    assert DataConfig("movie_reviews", min_abs_rating=0).min_abs_rating == 0
    for wrong in (-0.1, 4):
        with pytest.raises(ConfigError, match=r"≥ 0 and < 4"):
            DataConfig("movie_reviews", min_abs_rating=wrong)
    assert TrainConfig("sgd", 0.1, 1, 1, 1, weight_decay=0).weight_decay == 0


def test_an_annotation_without_a_rule_is_a_programming_error() -> None:
    with pytest.raises(TypeError, match="bytes"):
        allowed(bytes)
