"""Tests of refactorization against dense SVDs, of its rotations, and of rounding over many rounds."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from orthonormality import is_orthonormal
from random_factors import TOLERANCES, random_factors
from torch import Tensor

from fedsvd.lora.refactorize import orthonormal_rows, refactorize


def projector(A: Tensor) -> Tensor:
    """Return the orthogonal projector onto the row space of A."""
    Q = torch.linalg.qr(A.double().mT).Q
    return Q @ Q.mT


@st.composite
def factor_pairs(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    r = draw(st.integers(1, 8))
    return random_factors(
        seed=draw(st.integers(0, 2**32 - 1)),
        sites=draw(st.sampled_from([(), (1,), (3,), (2, 2)])),
        d_out=draw(st.integers(1, 40)),
        d_in=draw(st.integers(r, 40)),
        r=r,
        rank=draw(st.integers(0, r)),
        condition=draw(st.sampled_from([1.0, 10.0, 1e3, 1e6])),
        orthonormal=draw(st.booleans()),
        dtype=draw(st.sampled_from(list(TOLERANCES))),
    )


@given(factor_pairs())
@settings(max_examples=300)
def test_factors_match_the_dense_svd(factors: tuple[Tensor, Tensor]) -> None:
    B, A = factors
    product = B.double() @ A.double()
    expected = torch.linalg.svdvals(product)
    scale = torch.linalg.matrix_norm(product, 2).clamp_min(1e-300)[..., None, None]
    tolerance = TOLERANCES[B.dtype]

    new = refactorize(B, A)

    assert new.B.shape == B.shape
    assert new.A.shape == A.shape
    assert new.B.dtype == new.A.dtype == B.dtype
    assert ((new.B.double() @ new.A.double() - product).abs() <= tolerance * scale).all()
    assert is_orthonormal(new.A, tolerance)
    gram = new.B.double().mT @ new.B.double()
    assert ((gram - gram.diagonal(dim1=-2, dim2=-1).diag_embed()).abs() <= tolerance * scale**2).all()
    lengths = torch.linalg.vector_norm(new.B.double(), dim=-2)
    singular_values = torch.nn.functional.pad(expected, (0, B.shape[-1]))[..., : B.shape[-1]]
    # A Gram matrix squares the singular values: those below the square root of float64's precision are lost in noise.
    assert ((lengths - singular_values).abs() <= max(tolerance, 1e-7) * scale[..., 0]).all()


@given(factor_pairs())
@settings(max_examples=150)
def test_row_space_of_a_is_preserved_for_any_b(factors: tuple[Tensor, Tensor]) -> None:
    B, A = factors
    new = refactorize(B, A)
    # A random A may be ill-conditioned, which magnifies the rounding of its entries.
    smallest = torch.linalg.svdvals(A.double())[..., -1].min().item()
    assert (projector(new.A) - projector(A)).abs().max() <= TOLERANCES[A.dtype] * max(1.0, 10 / max(smallest, 1e-300))


@given(factor_pairs())
@settings(max_examples=150)
def test_rotation_transforms_rows_and_gradients(factors: tuple[Tensor, Tensor]) -> None:
    B, A = (factor.double() for factor in factors)
    new = refactorize(B, A)
    largest = new.rotation.abs().max().item()
    assert torch.allclose(new.rotation.mT @ A, new.A, rtol=0, atol=1e-12 * max(1.0, largest))
    weight_gradient = torch.linspace(-1, 1, B.shape[-2] * A.shape[-1], dtype=torch.float64).view(-1, A.shape[-1])
    gradient, new_gradient = weight_gradient @ A.mT, weight_gradient @ new.A.mT
    assert torch.allclose(gradient @ new.rotation, new_gradient, rtol=0, atol=1e-10 * max(1.0, largest))


def test_gram_and_qr_algorithms_agree() -> None:
    B, A = random_factors(seed=0, sites=(3,), condition=10.0)
    generator = torch.Generator().manual_seed(1)
    mixing = torch.randn(3, 4, 4, generator=generator, dtype=torch.float64) + 3 * torch.eye(4, dtype=torch.float64)
    by_gram = refactorize(B, A)
    by_qr = refactorize(B @ torch.linalg.inv(mixing), mixing @ A)
    signs = (by_gram.A * by_qr.A).sum(-1, keepdim=True).sign()
    assert torch.allclose(by_gram.A, by_qr.A * signs, atol=1e-10)
    assert torch.allclose(by_gram.B, by_qr.B * signs.mT, atol=1e-10)


def test_refactorize_is_idempotent() -> None:
    once = refactorize(*random_factors(seed=2, sites=(2,), condition=10.0, orthonormal=False))
    twice = refactorize(once.B, once.A)
    assert torch.allclose(twice.B, once.B, atol=1e-13)
    assert torch.allclose(twice.A, once.A, atol=1e-13)


def test_zero_b_leaves_an_orthonormal_a_unchanged() -> None:
    _, A = random_factors(seed=3, sites=(2,))
    new = refactorize(torch.zeros(2, 30, 4, dtype=torch.float64), A)
    assert torch.allclose(new.A, A, atol=1e-14)
    assert not new.B.any()


def test_batch_matches_single_sites() -> None:
    # The batch is too large to be converted to float64 in one chunk.
    B, A = random_factors(seed=4, sites=(40,), d_out=1024, d_in=64, r=8, condition=10.0, dtype=torch.float32)
    batch = refactorize(B, A)
    for site in (0, 31, 32, 39):
        single = refactorize(B[site], A[site])
        assert torch.allclose(batch.B[site], single.B, atol=1e-6)
        assert torch.allclose(batch.A[site], single.A, atol=1e-6)


def test_rank_deficient_a_preserves_the_product_and_extends_the_row_space() -> None:
    B, A = random_factors(seed=5, orthonormal=False)
    A[1], A[3] = A[0], 0.0
    new = refactorize(B, A)
    assert torch.allclose(new.B @ new.A, B @ A, atol=1e-12)
    assert is_orthonormal(new.A, 1e-12)
    assert torch.allclose(A @ projector(new.A), A, atol=1e-12)


def test_results_are_detached_and_inputs_unchanged() -> None:
    B, A = random_factors(seed=6, dtype=torch.float32)
    parameters = torch.nn.Parameter(B.clone()), torch.nn.Parameter(A.clone())
    new = refactorize(*parameters)
    assert not new.B.requires_grad
    assert not new.A.requires_grad
    assert torch.equal(parameters[0], B)
    assert torch.equal(parameters[1], A)


def test_factors_ignore_reduced_float32_matmul_precision() -> None:
    B, A = random_factors(seed=7, sites=(4,), d_out=512, d_in=512, r=8, dtype=torch.float32)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        new = refactorize(B, A)
    finally:
        torch.set_float32_matmul_precision(before)
    product = B.double() @ A.double()
    assert torch.linalg.norm(new.B.double() @ new.A.double() - product) <= 1e-6 * torch.linalg.norm(product)
    assert is_orthonormal(new.A, 1e-6)


def test_thousand_float32_rounds_do_not_drift() -> None:
    generator = torch.Generator().manual_seed(8)
    A = orthonormal_rows(torch.randn(3, 8, 128, generator=generator))
    B = torch.zeros(3, 96, 8)
    start = projector(A)
    product = B.double() @ A.double()
    for _ in range(1000):
        updated = B + 0.01 * torch.randn(B.shape, generator=generator)
        product += (updated.double() - B.double()) @ A.double()
        new = refactorize(updated, A)
        B, A = new.B, new.A
    assert is_orthonormal(A, 1e-6)
    assert torch.linalg.norm(B.double() @ A.double() - product) <= 1e-5 * torch.linalg.norm(product)
    assert (projector(A) - start).abs().max() <= 1e-5


def test_drift_of_the_rows_of_a_is_corrected_without_changing_the_product() -> None:
    B, A = random_factors(seed=9, dtype=torch.float32)
    drifted = A * (1 + 1e-3 * torch.arange(4)[:, None])
    new = refactorize(B, drifted)
    assert is_orthonormal(new.A, 1e-6)
    assert torch.allclose(new.B.double() @ new.A.double(), B.double() @ drifted.double(), atol=1e-6)


def test_fedsvd_equals_ffa_lora_with_orthonormal_a_and_sgd() -> None:
    """If only B is trained, by SGD, rotating the coordinates in each round does not change the product BA."""
    generator = torch.Generator().manual_seed(10)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    inputs = [normal(40, 20) + normal(20) for _ in range(3)]
    targets = [x @ normal(20, 15) for x in inputs]
    start = orthonormal_rows(normal(4, 20))

    def train(with_refactorization: bool) -> Tensor:
        A, B = start, torch.zeros(15, 4, dtype=torch.float64)
        for _ in range(30):
            clients = []
            for x, y in zip(inputs, targets, strict=True):
                client_B = B.clone()
                for _ in range(5):
                    hidden = x @ A.mT
                    client_B -= 0.05 * (hidden @ client_B.mT - y).mT @ hidden / len(x)
                clients.append(client_B)
            B = torch.stack(clients).mean(0)
            if with_refactorization:
                new = refactorize(B, A)
                B, A = new.B, new.A
        return B @ A

    ffa_lora = train(False)
    assert torch.linalg.norm(ffa_lora) > 1
    assert torch.linalg.norm(train(True) - ffa_lora) <= 1e-12 * torch.linalg.norm(ffa_lora)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("orthonormal", [True, False])
def test_cuda_agrees_with_cpu(orthonormal: bool) -> None:
    B, A = random_factors(
        seed=14, sites=(6,), d_out=256, d_in=128, r=8, condition=100.0, orthonormal=orthonormal, dtype=torch.float32
    )
    expected, new = refactorize(B, A), refactorize(B.cuda(), A.cuda())
    assert new.B.is_cuda
    assert new.A.is_cuda
    assert torch.allclose(new.B.cpu(), expected.B, atol=1e-5)
    assert torch.allclose(new.A.cpu(), expected.A, atol=1e-4)
