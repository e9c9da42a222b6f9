"""The standardization of the inputs of LoRA sites, on inputs with known statistics."""

import pytest
import torch

from fedsvd.models.standardization import half_whitening_without_mean


def test_the_mean_is_removed_and_the_spread_of_the_scales_halved() -> None:
    # Mean 10 e₀; variances 16 and 1 (up to the same factor) along e₁ and e₂, none along e₀.
    inputs = torch.tensor([[10, 4.0, 0], [10, -4.0, 0], [10, 0, 1.0], [10, 0, -1.0]])
    matrix = half_whitening_without_mean(inputs)

    assert matrix.dtype == torch.float64
    torch.testing.assert_close(matrix[0], torch.zeros(3, dtype=torch.float64), atol=1e-12, rtol=0)
    assert torch.equal(matrix, matrix.T)
    # Eigenvalues 16 c, c and 0, so λ̄ = 17 c / 3 and the regularization is 17 c / 30.
    ratio = ((16 + 17 / 30) / (1 + 17 / 30)) ** 0.25
    assert matrix[2, 2].item() / matrix[1, 1].item() == pytest.approx(ratio)
    assert (inputs.double() @ matrix).norm(dim=1).mean().item() == pytest.approx(1)


def test_the_mean_is_removed_where_inputs_also_vary_along_it() -> None:
    inputs = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)) + torch.arange(6)
    matrix = half_whitening_without_mean(inputs)

    assert (matrix @ inputs.double().mean(dim=0)).norm() < 1e-10 * inputs.norm()
    # One direction is removed, no other.
    assert torch.linalg.matrix_rank(matrix) == 5
