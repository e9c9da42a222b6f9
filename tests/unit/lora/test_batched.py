"""Tests of the refactorization of all sites of an adapter."""

import torch

from fedsvd.lora.adapter import Adapter
from fedsvd.lora.batched import refactorize_sites


def make_adapter(*, orthonormal: bool = False) -> Adapter:
    generator = torch.Generator().manual_seed(0)
    shapes = {"one": (6, 5), "two": (6, 5), "wide": (4, 9)}
    A = {name: torch.randn(2, d_in, generator=generator) for name, (_, d_in) in shapes.items()}
    if orthonormal:
        A = {name: torch.linalg.qr(a.mT).Q.mT.contiguous() for name, a in A.items()}
    B = {name: torch.randn(d_out, 2, generator=generator) for name, (d_out, _) in shapes.items()}
    return Adapter(A=A, B=B, head={}, scale=dict.fromkeys(shapes, 2.0))


def test_refactorize_sites_preserves_each_sites_product() -> None:
    adapter = make_adapter(orthonormal=True)

    result, rotations = refactorize_sites(adapter)

    assert list(result.A) == list(adapter.A)
    for name in adapter.A:
        torch.testing.assert_close(result.B[name] @ result.A[name], adapter.B[name] @ adapter.A[name])
        torch.testing.assert_close(result.A[name] @ result.A[name].mT, torch.eye(2))
        assert abs((result.B[name].mT @ result.B[name])[0, 1]) < 1e-4
        torch.testing.assert_close(result.A[name], (rotations[name].mT @ adapter.A[name].double()).float())


def test_refactorize_sites_can_make_columns_of_b_orthonormal() -> None:
    adapter = make_adapter()

    result, rotations = refactorize_sites(adapter, of_rows=False)

    for name in adapter.A:
        torch.testing.assert_close(result.B[name] @ result.A[name], adapter.B[name] @ adapter.A[name])
        torch.testing.assert_close(result.B[name].mT @ result.B[name], torch.eye(2))
        torch.testing.assert_close(result.B[name], (adapter.B[name].double() @ rotations[name]).float())
