"""Tangent coordinates compared with the projection onto the tangent space, computed on dense matrices."""

import pytest
import torch
from small_bert import NUM_EXAMPLES, make_losses, make_model
from torch import Tensor, nn

from fedsvd.lora import peft_model
from fedsvd.lora.adapter import Adapter
from fedsvd.lora.tangent import TangentMap, frame, step_and_retract
from fedsvd.privacy.dp_sgd import DPSGD, train_dp_sgd
from fedsvd.privacy.randomness import TorchRandomness
from fedsvd.training.per_example_gradients import fused_gradients

MIX = torch.tensor([[2.0, 0.5, 0.0, 0.0], [0.0, 30.0, 0.0, 0.0], [1.0, 0.0, 0.1, 0.0], [0.0, 0.0, 0.0, 5.0]])


def with_other_factors(adapter: Adapter) -> Adapter:
    """Return factors of the same products on very different scales."""
    inverse = torch.linalg.inv(MIX)
    return adapter.with_parts(
        {"B": {n: B @ MIX for n, B in adapter.B.items()}, "A": {n: inverse @ A for n, A in adapter.A.items()}}
    )


def product(adapter: Adapter) -> Tensor:
    return torch.cat([(adapter.B[name] @ A).reshape(-1) for name, A in adapter.A.items()])


def private_step(adapter: Adapter, noise_multiplier: float, max_grad_norm: float, lr: float = 1.0) -> Adapter:
    model, trained = make_model({"A", "B"})
    peft_model.write(model, adapter)
    mechanism = DPSGD(noise_multiplier, max_grad_norm, 1.0, 1)
    train_dp_sgd(
        model, torch.optim.SGD(trained, lr=lr), make_losses(), NUM_EXAMPLES, mechanism, TorchRandomness(0),
        fused_gradients, maps=[TangentMap.of_model(model)],
    )  # fmt: skip
    return step_and_retract(adapter, peft_model.read(model))


def test_by_hand() -> None:
    # B = 2 e₁, A = 3 e₁ᵀ: U = e₁, V = e₁ᵀ. X = (1, 4) and Y = (9, 5) make B A + X V + U Y of rank 2, times 1.
    base = Adapter({"s": torch.tensor([[3.0, 0.0]])}, {"s": torch.tensor([[2.0], [0.0]])}, {}, {"s": 1.0})
    X, Y = torch.tensor([[1.0], [4.0]]), torch.tensor([[0.0, 5.0]])
    total = torch.tensor([[6.0 + 1.0, 5.0], [4.0, 0.0]])

    found = step_and_retract(base, base.with_parts({"A": {"s": base.A["s"] + Y}, "B": {"s": base.B["s"] + X}}))

    U, S, Vh = torch.linalg.svd(total)
    torch.testing.assert_close(found.B["s"] @ found.A["s"], S[0] * torch.outer(U[:, 0], Vh[0]), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.A["s"] @ found.A["s"].mT, torch.ones(1, 1))


def test_coordinates_are_those_of_the_orthogonal_projection() -> None:
    generator = torch.Generator().manual_seed(0)
    B, A, G, H = (torch.randn(shape, generator=generator).double() for shape in ((6, 2), (2, 5), (6, 5), (2, 5)))
    at = frame(B, A)
    parameters = [nn.Parameter(A), nn.Parameter(B), nn.Parameter(G)]
    tangent = TangentMap({id(parameters[0]): (at.inverse_root_b, at.V)}, {id(parameters[1]): at.inverse_root_a})
    column, row = (X @ torch.linalg.pinv(X) for X in (B, A.mT))
    expected = column @ G + G @ row - column @ G @ row

    Y, X, other = tangent.before_clipping(parameters, [(B.mT @ G)[None], (G @ A.mT)[None], G[None]])

    torch.testing.assert_close(X[0] @ at.V + at.U @ Y[0], expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(X.square().sum() + Y.square().sum(), expected.square().sum(), atol=1e-4, rtol=1e-4)
    assert torch.equal(other[0], G)
    # Noise in Y along V would be noise in X again.
    noise = tangent.after_noise(parameters, [H[None], B[None], G[None]])
    torch.testing.assert_close(noise[0][0], H - H @ row, atol=1e-4, rtol=1e-4)
    assert torch.equal(noise[1][0], B)


@pytest.mark.parametrize(("noise_multiplier", "max_grad_norm"), [(0.0, 0.5), (0.3, 1.0)])
def test_a_private_step_does_not_depend_on_the_scale_of_the_factors(
    noise_multiplier: float, max_grad_norm: float
) -> None:
    model, _ = make_model({"A", "B"})
    adapter = peft_model.read(model)
    other = with_other_factors(adapter)

    step = product(private_step(adapter, noise_multiplier, max_grad_norm)) - product(adapter)
    same = product(private_step(other, noise_multiplier, max_grad_norm)) - product(other)

    if noise_multiplier:
        # The noise has other coordinates, but the same size: r (d_out + d_in - r) of d_out d_in entries per site.
        assert step.norm() == pytest.approx(same.norm().item(), rel=0.15)
    else:
        torch.testing.assert_close(same, step, atol=1e-4, rtol=1e-3)


def test_without_a_column_space_only_b_moves() -> None:
    model, _ = make_model({"A", "B"})
    adapter = peft_model.read(model)
    adapter = adapter.with_parts({"B": {name: torch.zeros_like(B) for name, B in adapter.B.items()}})

    found = private_step(adapter, 1.0, 1.0)

    for name, A in adapter.A.items():
        # The new rows span the old row space.
        torch.testing.assert_close(found.A[name] @ A.mT @ A, found.A[name], atol=1e-4, rtol=1e-4)
        assert found.B[name].any()
