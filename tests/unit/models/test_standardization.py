"""The standardization of features and of the inputs of LoRA sites, on rows with known statistics."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fedsvd.models.standardization import (
    FEATURE_NORM,
    Standardization,
    half_whitening,
    half_whitening_without_mean,
)

CORPUS = {"name": "made up", "sha256": "0", "num_texts": "50"}


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


def test_half_whitening_equals_its_definition() -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(200, 8)) @ generator.normal(size=(8, 8)) + generator.normal(size=8)
    found = half_whitening(torch.from_numpy(x), CORPUS)

    centered = x - x.mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov(centered.T))
    power = vectors @ np.diag((values + 0.1 * values.mean()) ** -0.25) @ vectors.T
    expected = power * values.mean() ** 0.25
    expected *= FEATURE_NORM / np.linalg.norm(centered @ expected, axis=1).mean()
    np.testing.assert_allclose(found.mean, x.mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(found.matrix, expected, atol=1e-10)
    assert torch.equal(found.matrix, found.matrix.T)


def test_fewer_texts_than_dimensions_are_enough() -> None:
    found = half_whitening(torch.randn(10, 32, generator=torch.Generator().manual_seed(0)), CORPUS)

    assert found.matrix.isfinite().all()


def test_a_standardization_survives_its_file(tmp_path: Path) -> None:
    before = half_whitening(torch.randn(50, 16, generator=torch.Generator().manual_seed(1)), CORPUS)
    before.save(tmp_path / "s.safetensors")
    after = Standardization.load(tmp_path / "s.safetensors")

    assert torch.equal(before.mean, after.mean)
    assert torch.equal(before.matrix, after.matrix)
    assert after.corpus == CORPUS
