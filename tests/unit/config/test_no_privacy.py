"""Tests that the options of privacy have no effect without privacy, so that sweeps can set them for all runs."""

import pytest

from fedsvd.config.compose import compose
from fedsvd.errors import ConfigError
from fedsvd.methods import build_run_method, check_method


@pytest.mark.parametrize(
    "overrides",
    [
        ["privacy.max_epsilon=3"],
        ["model=tiny_llama", "privacy.head_clipping_share=0.5"],
        ["model=tiny_llama", "privacy.project_public_mean=true"],
        ["model.device_map=auto", "privacy.project_public_mean=true"],
        ["privacy.standardize_inputs=true"],
        ["method.shrinkage=optimal", "train=adamw"],
    ],
)
def test_options_of_dp_sgd_have_no_effect_without_privacy(overrides: list[str]) -> None:
    refused = compose_and_check(["privacy=dp_sgd", *overrides])
    assert refused is not None
    assert compose_and_check(["privacy=none", *overrides]) is None


def compose_and_check(overrides: list[str]) -> ConfigError | None:
    try:
        config = compose(["experiment=smoke", *overrides])
        check_method(build_run_method(config), config)
    except ConfigError as error:
        return error
    return None
