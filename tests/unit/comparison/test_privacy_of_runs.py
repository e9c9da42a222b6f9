"""Each run of a comparison has the privacy under which the report shows it."""

import pytest
from comparison_rows import settings

from fedsvd.comparison import overrides
from fedsvd.comparison.workers import Job
from fedsvd.config import Config
from fedsvd.config.compose import compose


def composed(contender: list[str], epsilon: float) -> Config:
    own = ",".join(f"'{item}'" for item in contender)
    config = settings(f"+compare.contenders.mine=[{own}]", "compare.only_contenders=[mine]")
    return compose(overrides(Job("final", "movies", "mine", epsilon, 0, 0.1), ["experiment=smoke"], config))


@pytest.mark.parametrize(
    "given",
    [
        ["privacy=client_level"],
        ["privacy.name=client_level"],
        ["++privacy.name=client_level", "++privacy.max_update_norm=2"],
        ["privacy=client_level", "privacy.noise_share=true", "federation.secure_aggregation=true"],
    ],
    ids=" ".join,
)
def test_a_contender_with_a_mechanism_of_its_own_has_none_without_privacy(given: list[str]) -> None:
    contender = ["method=ffa_lora", *given]
    private = composed(contender, 3.0)
    assert (private.privacy.name, private.privacy.target_epsilon) == ("client_level", 3.0)
    public = composed(contender, 0.0)
    assert (public.method["name"], public.privacy.name) == ("ffa_lora", "none")


def test_weights_by_the_noise_are_left_out_without_privacy() -> None:
    contender = ["privacy=dp_sgd", "federation.weighting=inverse_variance"]
    assert composed(contender, 3.0).federation.weighting == "inverse_variance"
    public = composed(contender, 0.0)
    assert (public.privacy.name, public.federation.weighting) == ("none", "examples")
    assert composed(["federation.weighting=uniform"], 0.0).federation.weighting == "uniform"
