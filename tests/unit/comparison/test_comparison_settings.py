"""Settings of a comparison that are refused before anything runs."""

import pytest
from comparison_rows import settings

from fedsvd.errors import ConfigError

LISTS = {
    "seeds": "[0,0]",
    "epsilons": "[0,3,3.0]",
    "learning_rates": "[0.5,1,0.5]",
    "learning_rates_without_privacy": "[0.25,0.25]",
    "clipping_factors": "[3,3]",
    "tuning_epsilons": "[3,3]",
    "learning_rates_of.fedsvd_a": "[1,1]",
    "only_contenders": "[fedsvd,fedsvd]",
    "only_tasks": "[movies,movies]",
    "with_shared_noise": "[fedsvd,fedsvd]",
}


@pytest.mark.parametrize("key", LISTS)
def test_a_value_that_is_given_twice_is_refused(key: str) -> None:
    name = key.partition(".")[0]
    with pytest.raises(ConfigError, match=rf"compare\.{name} = .* is invalid: expected .*(repetitions|different)"):
        settings(f"compare.{key}={LISTS[key]}")
