"""What a client sends under client-level privacy is clipped after rounding, where nobody can clip it again."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from client.clipped_update import clipped_update
from fedsvd.config import Config
from fedsvd.config.compose import compose
from fedsvd.lora.adapter import Adapter
from fedsvd.secagg import vectors

CONFIGS = {
    norm: compose(
        ["experiment=smoke", "privacy=client_level", "federation.secure_aggregation=true",
         f"privacy.max_update_norm={norm}"]
    )
    for norm in (1.0, 0.01, 1e-4)
}  # fmt: skip


def sent_norm(config: Config, start: torch.Tensor, trained: torch.Tensor) -> float:
    """Return the norm of one client's update in a secure sum."""
    before = Adapter({}, {"s": start}, {}, {"s": 1.0})
    sent = clipped_update(before, before.with_parts({"B": {"s": trained}}), frozenset({"B"}), config)
    values = vectors.decode(vectors.encode(sent.B["s"].numpy().reshape(-1), 1, 4))[0]
    return float(np.linalg.norm(values - start.double().numpy().reshape(-1)))


@pytest.mark.parametrize("norm", CONFIGS)
@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5000), st.floats(-6, 1), st.floats(-6, 1))
def test_an_update_is_clipped_after_rounding(norm: float, seed: int, size: int, start: float, step: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    # Parameters whose rounding does not take more of the norm than is allowed.
    scale = min(10**start, norm / size**0.5 * 1e5)
    before = scale * torch.randn(size, 1, generator=generator)
    found = sent_norm(CONFIGS[norm], before, before + 10**step * torch.randn(size, 1, generator=generator))
    assert found <= norm


@pytest.mark.parametrize("units", [5.5001, 6.5001, 20.5001])
def test_values_that_all_are_rounded_up_do_not_exceed_the_norm(units: float) -> None:
    # Equal values that a plain clipping would leave just above the middle between two multiples of 2⁻²⁴.
    before = torch.zeros(int((1e-4 / (units * 2.0**-24)) ** 2), 1)
    assert sent_norm(CONFIGS[1e-4], before, before + 1) <= 1e-4
