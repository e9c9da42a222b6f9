"""Options that a method does not allow, and settings that it cannot go together with."""

import pytest

from fedsvd.config.compose import compose
from fedsvd.errors import ConfigError
from fedsvd.methods import METHODS, build_method, check_method


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": "fedsdv"}, "did you mean fedsvd"),
        ({"name": "fedsvd", "refactorise_every": 2}, "did you mean refactorize_every"),
        ({"name": "fedsvd", "refactorize_every": 0}, "from 1"),
        ({"name": "fedsvd", "refactorize_every": 1.5}, "whole number"),
        ({"name": "ffa_lora", "init_a": "ones"}, "kaiming, orthonormal"),
        ({"name": "ffa_lora", "init_b": "dct"}, "kaiming, orthonormal, weight_svd, zeros"),
        ({"name": "fedsvd", "pivot": "AB"}, "method.pivot = 'AB' .* the first one, which is B's"),
        ({"name": "fedsvd", "pivot": 2}, "method.pivot = 2 is not allowed"),
        ({"name": "fedsvd", "shrinkage": "some"}, "none, optimal"),
        ({"name": "fedsvd", "shrinkage": "optimal", "pivot": "BA"}, "one factor that is trained"),
        ({"name": "fedsvd", "shrinkage": "optimal", "init_a": "kaiming"}, "an A that is"),
        ({"name": "fed_sb", "init_b": "zeros"}, "whose B never moves"),
        ({"name": "flora", "init_a": "weight_svd"}, "draws new factors"),
        ({"name": "fedavg_lora", "init_a": "zeros"}, "without a gradient"),
    ],
)
def test_options_that_are_not_allowed(options: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build_method(options)


@pytest.mark.parametrize(
    ("overrides", "setting"),
    [
        (["federation.secure_aggregation=true"], "federation.secure_aggregation = True"),
        (["privacy=client_level"], "privacy.name = client_level"),
        (["train.server_optimizer=adam"], "train.server_optimizer = adam"),
    ],
)
@pytest.mark.parametrize("name", ["fedex_lora", "flora", "flexlora"])
def test_a_method_that_needs_single_updates_is_refused_where_there_are_none(
    name: str, overrides: list[str], setting: str
) -> None:
    config = compose(["experiment=smoke", f"method={name}", *overrides])
    with pytest.raises(ConfigError, match=f"{setting} is not possible with method.name = {name}"):
        check_method(build_method(config.method), config)
    linear = compose(["experiment=smoke", "method=ffa_lora", *overrides])
    check_method(build_method(linear.method), linear)


@pytest.mark.parametrize("name", METHODS)
def test_lower_ranks_are_taken_or_refused(name: str) -> None:
    able = {"fedsvd", "ffa_lora", "flora", "flexlora"}
    config = compose(["experiment=smoke", f"method={name}", "federation.client_ranks=[2,4]"])
    if name in able:
        check_method(build_method(config.method), config)
    else:
        with pytest.raises(ConfigError, match=r"client_ranks = \[2, 4\] is not possible .*allow it: fedsvd, ffa_lora"):
            check_method(build_method(config.method), config)


def test_personal_factors_and_client_level_privacy_do_not_go_together() -> None:
    config = compose(["experiment=smoke", "method=fedsa_lora", "privacy=client_level"])
    with pytest.raises(ConfigError, match="no noise protects them"):
        check_method(build_method(config.method), config)


@pytest.mark.parametrize(
    "override",
    ["train=adamw", "train.momentum=0.9", "train.weight_decay=0.1", "train.server_optimizer=momentum",
     "federation.secure_aggregation=true", "federation.weighting=uniform"],
)  # fmt: skip
def test_shrinkage_needs_noise_that_is_known(override: str) -> None:
    config = compose(["experiment=smoke", "method.shrinkage=optimal", override])
    with pytest.raises(ConfigError, match="must know how large the noise"):
        check_method(build_method(config.method), config)
