"""Clients of other ranks."""

import math

import pytest

from fedsvd.config.compose import compose
from fedsvd.runtime.model import client_config


@pytest.mark.parametrize(("rslora", "alpha"), [(False, 4.0), (True, 16 / math.sqrt(4))])
def test_a_client_of_lower_rank_has_the_same_scale(rslora: bool, alpha: float) -> None:
    ranks = "federation.client_ranks=[2,8]"
    config = compose(["experiment=smoke", "model.rank=8", "model.lora_alpha=16", f"model.rslora={rslora}", ranks])
    model = client_config(config, 0).model
    assert (model.rank, model.lora_alpha) == (2, alpha)
