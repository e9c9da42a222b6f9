"""Tests of `orthonormal_rows` and `is_orthonormal`, and of non-finite, incompatible or overflowing factors."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from orthonormality import is_orthonormal
from random_factors import TOLERANCES, random_factors

from fedsvd.errors import FedSVDError, ModelError
from fedsvd.lora.refactorize import orthonormal_rows, refactorize


@given(st.integers(0, 2**32 - 1), st.integers(1, 8), st.sampled_from(list(TOLERANCES)))
def test_orthonormal_rows_are_the_gram_schmidt_basis(seed: int, r: int, dtype: torch.dtype) -> None:
    _, A = random_factors(seed=seed, sites=(2,), d_in=40, r=r, orthonormal=False, dtype=dtype)
    rows = orthonormal_rows(A)
    assert rows.dtype is dtype
    assert is_orthonormal(rows, TOLERANCES[dtype])
    coordinates = A.double() @ rows.double().mT
    assert (coordinates.diagonal(dim1=-2, dim2=-1) > 0).all()
    assert (coordinates.triu(1).abs() <= 10 * TOLERANCES[dtype]).all()
    assert torch.equal(rows, orthonormal_rows(A))


def test_is_orthonormal_detects_a_single_bad_site() -> None:
    _, A = random_factors(seed=11, sites=(3,))
    assert is_orthonormal(A)
    A[1, 2] *= 1 + 1e-4
    assert not is_orthonormal(A)
    assert is_orthonormal(A, tolerance=1e-3)
    assert not is_orthonormal(torch.full((2, 3), torch.nan))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", ["B", "A"])
def test_non_finite_entries_raise(name: str, value: float) -> None:
    B, A = random_factors(seed=12, sites=(2,))
    (B if name == "B" else A)[1, 2, 3] = value
    with pytest.raises(FedSVDError, match=f"^{name} .*finite"):
        refactorize(B, A)


@pytest.mark.parametrize(
    ("b_shape", "a_shape", "message"),
    [
        ((5, 3), (4, 9), "B of shape"),
        ((2, 5, 3), (3, 3, 9), "B of shape"),
        ((5, 6), (6, 4), "r "),
    ],
)
def test_incompatible_factors_raise(b_shape: tuple[int, ...], a_shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(FedSVDError, match=message):
        refactorize(torch.ones(b_shape), torch.ones(a_shape))


def test_entries_whose_squares_overflow_are_refactorized() -> None:
    B, A = random_factors(seed=13, condition=10.0)
    new = refactorize(B * 1e200, A)
    assert torch.allclose(new.B @ new.A / 1e200, B @ A, atol=1e-12)
    assert is_orthonormal(new.A, 1e-12)


def test_rows_that_are_no_floating_point_matrix_raise() -> None:
    for rows in (torch.eye(3, dtype=torch.int64), torch.ones(3), torch.ones(0, 3)):
        with pytest.raises(ModelError, match=rf"dtype {rows.dtype}: expected a floating-point tensor"):
            orthonormal_rows(rows)


def test_bfloat16_factors_are_rounded_only_once() -> None:
    B, A = torch.randn(12, 4, generator=torch.Generator().manual_seed(0)).bfloat16(), torch.eye(4, 9).bfloat16()
    new = refactorize(B, A)
    assert torch.equal(new.B, (B.double() @ new.rotation).bfloat16())
    assert torch.equal(new.A, (new.rotation.mT @ A.double()).bfloat16())


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_orthonormal_rows_of_a_scaled_matrix_are_the_same(scale: float) -> None:
    _, A = random_factors(seed=0, sites=(2,), d_in=40, r=4, orthonormal=False, dtype=torch.float64)
    torch.testing.assert_close(orthonormal_rows(scale * A), orthonormal_rows(A))
