"""Errors in a configuration: each raises one readable ConfigError."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from fedsvd.config.compose import as_dict, compose, conf_dir, from_dictconfig
from fedsvd.config.messages import did_you_mean
from fedsvd.errors import ConfigError
from fedsvd.methods import METHODS


def options(group: str) -> str:
    """Return the options of a group as errors list them."""
    folder = conf_dir() / group
    names = sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))
    return ", ".join(names)


# Each row: overrides, and parts of the message (key, value, what is allowed or the remedy).
WRONG = [
    ("train.learning_rat=0.1", ["train.learning_rat = 0.1", "did you mean train.learning_rate?", "learning_rate, "]),
    ("num_rounds=3", ["num_rounds = 3", "did you mean train.num_rounds?"]),
    ("trian.num_rounds=3", ["trian.num_rounds", "did you mean train.num_rounds?"]),
    ("privacy.nme=x", ["did you mean privacy.name?"]),
    ("method.refactorize_evry=2", ["did you mean method.refactorize_every?"]),
    (
        "method=ffa_lora method.refactorize_every=2",
        ["method.refactorize_every = 2", "the keys of method are name, init_a, init_b"],
    ),
    ("train.num_rounds.x=3", ["train.num_rounds.x = 3", "unknown key"]),
    ("+train.foo=3", ["train.foo = 3", "unknown key", "the keys of train are optimizer"]),
    ("++federation.num_client=3", ["did you mean federation.num_clients?"]),
    ("zebra=1", ["zebra = 1", "unknown key", "seed"]),
    ("method=fedsdv", ["method = 'fedsdv'", "did you mean fedsvd?", f"one of {', '.join(sorted(METHODS))}. "]),
    ("experiment=smok", ["experiment = 'smok'", "did you mean smoke?", f"one of {options('experiment')}. "]),
    ("privacy=null", ["privacy = None", "dp_sgd, none"]),
    ("model=[tiny]", ["model = ['tiny']", f"one of {options('model')}. "]),
    ("method@x=fedsvd", ["method@x=fedsvd", "leave @x out"]),
    ("+experiment=smoke", ["+experiment=smoke", "drop the +"]),
    ("+seed=3", ["+seed=3", "drop the +"]),
    ("~seed", ["~seed", "set it to a value"]),
    ("train.num_rounds=abc", ["train.num_rounds = 'abc'", "an integer ≥ 1"]),
    ("train.num_rounds=", ["train.num_rounds = ''", "an integer ≥ 1"]),
    ("train.num_rounds=null", ["train.num_rounds = None", "an integer ≥ 1"]),
    ("train.num_rounds=true", ["train.num_rounds = True", "an integer ≥ 1"]),
    ("train.num_rounds=2.5", ["train.num_rounds = 2.5", "an integer ≥ 1"]),
    ("train.learning_rate=fast", ["train.learning_rate = 'fast'", "a number > 0"]),
    ("train.learning_rate=nan", ["train.learning_rate = nan", "a number > 0"]),
    ("train.learning_rate=inf", ["train.learning_rate = inf", "a number > 0"]),
    ("run_dir=2024", ["run_dir = 2024", "a string", "or null"]),
    ("model.target_modules=query", ["model.target_modules = 'query'", "[query,value]"]),
    ("model.target_modules=[]", ["model.target_modules = []", "[query,value]"]),
    ("model.target_modules=[query,query]", ["model.target_modules", "different names"]),
    ("train.num_rounds=0", ["train.num_rounds = 0", "an integer ≥ 1", "leave the key out"]),
    ("privacy.target_epsilon=-1", ["privacy.target_epsilon = -1", "a number > 0"]),
    ("privacy.target_delta=1", ["privacy.target_delta = 1 is", "> 0 and < 1"]),
    ("privacy.accountant=prw", ["privacy.accountant = 'prw'", "did you mean prv?", "one of prv, rdp"]),
    ("privacy.secure_random=maybe", ["privacy.secure_random = 'maybe'", "true or false"]),
    ("train.momentum=1", ["train.momentum = 1 is", "≥ 0 and < 1"]),
    ("data.max_train_examples=0", ["data.max_train_examples = 0", "or null"]),
    ("device=cuda:x", ["device = 'cuda:x'", "cuda:N"]),
    ("device=mps", ["device = 'mps'", "no float64", "auto, cpu, cuda or cuda:N", "set device=cpu"]),
    ("device=mps:0", ["device = 'mps:0'", "no float64"]),
    ("seed=-1", ["seed = -1", "≥ 0"]),
    ("train=adamw train.momentum=0.9", ["train.momentum = 0.9", "train.momentum=0", "train=sgd"]),
    ("federation.clients_per_round=9", ["clients_per_round = 9", "num_clients = 4", "1 to 4"]),
    ("federation.participants=[0,4]", ["participants = [0, 4]", "0 to 3", "num_clients = 4"]),
    ("federation.participants=[1,1]", ["participants = [1, 1]", "different numbers"]),
    ("federation.participants=[0] federation.clients_per_round=2", ["clients_per_round = 2", "participants = [0]"]),
    ("federation.participants=[0] federation.min_replies=2", ["min_replies = 2", "the 1 clients of a round"]),
    ("federation.participants=[0] privacy=client_level", ["participants = [0]", "client_level"]),
    ("federation.min_replies=5", ["min_replies = 5", "1 to 4"]),
    ("privacy=client_level federation.min_replies=2", ["min_replies = 2", "client_level", "leave it out"]),
    ("federation.clients_per_round=2 federation.min_replies=3", ["min_replies = 3", "1 to 2"]),
    ("federation.ray_address=auto", ["ray_address = 'auto'", "federation=simulation"]),
    ("data.max_train_examples=39", ["max_train_examples = 39", "4 clients", "40 or more"]),
    ("seed=${nope}", ["seed", "nope", "plain value"]),
    ("foo", ["'foo'", "has no =", "KEY=VALUE"]),
    ("=3", ["'=3'", "has no key", "KEY=VALUE"]),
    ("model.target_modules=[a", ["model.target_modules=[a", "cannot be parsed", "KEY=VALUE"]),
    ("train.batch_size=1,2", ["train.batch_size=1,2", "add -m"]),
    ("method.init_a='a b", ["cannot be split", "No closing quotation"]),
]


@pytest.mark.parametrize(("overrides", "fragments"), WRONG, ids=[row[0] for row in WRONG])
def test_an_error_is_one_paragraph_that_names_key_value_and_remedy(overrides: str, fragments: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(overrides)
    message = str(caught.value)
    assert [fragment for fragment in fragments if fragment not in message] == []
    assert "\n" not in message


def test_no_suggestion_if_no_key_is_close() -> None:
    assert did_you_mean("zebra", ["train.num_rounds", "seed"]) == ""


def test_missing_and_unknown_keys_of_a_plain_config() -> None:
    values = as_dict(compose())
    del values["train"]["num_rounds"]
    with pytest.raises(ConfigError, match=r"train\.num_rounds is missing"):
        from_dictconfig(OmegaConf.create(values))
    values = as_dict(compose()) | {"privcy": {}}
    with pytest.raises(ConfigError, match=r"did you mean privacy\?"):
        from_dictconfig(OmegaConf.create(values))
    values = as_dict(compose()) | {"train": 3}
    with pytest.raises(ConfigError, match=r"train = 3 is invalid: expected a group of keys"):
        from_dictconfig(OmegaConf.create(values))
