"""Server optimizers compared with their formulas, and invariance of momentum to refactorization."""

from dataclasses import replace

import pytest
import torch

from fedsvd.config import TrainConfig
from fedsvd.config.compose import compose
from fedsvd.lora.adapter import Adapter, Factor
from fedsvd.lora.initialization import initialize_factors
from fedsvd.lora.refactorize import orthonormal_rows
from fedsvd.methods import State, Step, build_method
from fedsvd.methods.aggregate import Reply
from server.server_optimizer import apply_server_optimizer, transform_optimizer_state

SHAPES = Adapter(
    A={"one": torch.zeros(3, 7), "two": torch.zeros(3, 5)},
    B={"one": torch.zeros(6, 3), "two": torch.zeros(4, 3)},
    head={"bias": torch.zeros(2)},
    scale={"one": 1.0, "two": 1.0},
)


def settings(**overrides: object) -> TrainConfig:
    return replace(compose(["experiment=smoke"]).train, **overrides)  # type: ignore[arg-type]


def double(adapter: Adapter) -> Adapter:
    return adapter.with_parts(
        {part: {name: tensor.double() for name, tensor in adapter.part(part).items()} for part in ("A", "B", "head")}
    )


def product(adapter: Adapter) -> dict[str, torch.Tensor]:
    return {name: adapter.B[name] @ adapter.A[name] for name in adapter.A}


def run_rounds(options: dict[str, object], config: TrainConfig, rounds: int, transform: bool = True) -> Adapter:
    """Run rounds in which each client moves B along a gradient that depends only on the product B A."""
    method = build_method(options)
    adapter = double(initialize_factors(SHAPES, init_a=method.init_a, init_b="zeros", seed=1))
    adapter = adapter.with_parts({"A": {name: orthonormal_rows(A) for name, A in adapter.A.items()}})
    moments: State = {}
    for server_round in range(1, rounds + 1):
        replies = []
        for client in range(2):
            generator = torch.Generator().manual_seed(10 * server_round + client)
            trained = {}
            for name, B in adapter.B.items():
                target = torch.randn(len(B), adapter.A[name].shape[1], generator=generator, dtype=torch.float64)
                # The gradient depends only on the product: it is the target minus B A.
                trained[name] = B + 0.1 * (target - B @ adapter.A[name]) @ adapter.A[name].mT
            replies.append(Reply(client, client + 1, {"B": trained}))
        aggregated, moments = apply_server_optimizer(adapter, replies, moments, config)
        step = method.server_step(adapter, aggregated, server_round, {})
        moments = transform_optimizer_state(moments, step, adapter) if transform else moments
        adapter = step.adapter
    return adapter


@pytest.mark.parametrize("optimizer", ["none", "momentum"])
def test_momentum_is_invariant_to_refactorization(optimizer: str) -> None:
    config = settings(server_optimizer=optimizer, server_momentum=0.9)
    fixed = run_rounds({"name": "ffa_lora", "init_a": "orthonormal"}, config, 12)
    refactorized = run_rounds({"name": "fedsvd", "init_a": "orthonormal"}, config, 12)

    for name, expected in product(fixed).items():
        torch.testing.assert_close(product(refactorized)[name], expected, atol=1e-10, rtol=1e-10)
    assert not torch.allclose(fixed.A["one"], refactorized.A["one"])


def test_momentum_without_transformation_gives_another_result() -> None:
    config = settings(server_optimizer="momentum", server_momentum=0.9)
    fixed = run_rounds({"name": "ffa_lora", "init_a": "orthonormal"}, config, 12)
    untransformed = run_rounds({"name": "fedsvd", "init_a": "orthonormal"}, config, 12, transform=False)

    assert not torch.allclose(product(untransformed)["one"], product(fixed)["one"], atol=1e-3)


def test_momentum_is_transformed_correctly_if_the_initial_a_is_not_orthonormal() -> None:
    config = settings(server_optimizer="momentum", server_momentum=0.9)
    method = build_method({"name": "fedsvd", "init_a": "kaiming"})
    adapter = double(initialize_factors(SHAPES, init_a="kaiming", init_b="zeros", seed=1))
    sent = {name: torch.randn(B.shape, dtype=torch.float64) for name, B in adapter.B.items()}
    aggregated, moments = apply_server_optimizer(adapter, [Reply(0, 1, {"B": sent})], {}, config)
    step = method.server_step(adapter, aggregated, 1, {})
    after = transform_optimizer_state(moments, step, adapter)

    for name in adapter.A:
        torch.testing.assert_close(
            after["first.B"][name] @ step.adapter.A[name], moments["first.B"][name] @ adapter.A[name]
        )


@pytest.mark.parametrize("part", ["A", "B"])
def test_moments_of_both_factors_are_expressed_in_the_new_coordinates(part: Factor) -> None:
    generator = torch.Generator().manual_seed(0)
    adapter = double(SHAPES)
    shape = adapter.part(part)["one"].shape
    first, second = (torch.rand(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    R = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64)).Q
    step = Step(adapter, {"A" if part == "B" else "B": {"one": R}})

    moments = {f"first.{part}": {"one": first}, f"second.{part}": {"one": second}}
    after = transform_optimizer_state(moments, step, adapter)

    # For an orthogonal R, the inverse is the transpose; variances have the squares of its entries.
    expected = (first @ R, second @ R**2) if part == "B" else (R.mT @ first, (R**2).mT @ second)
    torch.testing.assert_close(after[f"first.{part}"]["one"], expected[0])
    torch.testing.assert_close(after[f"second.{part}"]["one"], expected[1])


def scalar_adapter(value: float) -> Adapter:
    return Adapter(
        A={"s": torch.ones(1, 1)}, B={"s": torch.full((1, 1), value)}, head={"b": torch.zeros(1)}, scale={"s": 1.0}
    )


def reply(value: float) -> list[Reply]:
    return [Reply(0, 1, {"B": {"s": torch.full((1, 1), value)}, "head": {"b": torch.ones(1)}})]


def test_momentum_by_hand() -> None:
    config = settings(server_optimizer="momentum", server_momentum=0.5, server_learning_rate=2.0)
    first, moments = apply_server_optimizer(scalar_adapter(1.0), reply(2.0), {}, config)
    second, _ = apply_server_optimizer(scalar_adapter(3.0), reply(4.0), moments, config)

    # Δ = 1: m = 1, then Δ = 1 again: m = 0.5 + 1.
    assert first[0].parts["B"]["s"].item() == 1.0 + 2.0 * 1.0
    assert second[0].parts["B"]["s"].item() == 3.0 + 2.0 * 1.5
    assert first[0].parts["head"]["b"].item() == 2.0


def test_adam_by_hand() -> None:
    config = settings(
        server_optimizer="adam", server_momentum=0.5, server_beta2=0.75, server_tau=0.5, server_learning_rate=1.0
    )
    first, moments = apply_server_optimizer(scalar_adapter(0.0), reply(2.0), {}, config)
    second, _ = apply_server_optimizer(scalar_adapter(0.0), reply(2.0), moments, config)

    # m = 0.5·2 = 1, v = 0.25·4 = 1; then m = 0.5 + 1 = 1.5, v = 0.75 + 1 = 1.75.
    assert first[0].parts["B"]["s"].item() == pytest.approx(1 / 1.5)
    assert second[0].parts["B"]["s"].item() == pytest.approx(1.5 / (1.75**0.5 + 0.5))


def test_without_an_optimizer_replies_are_unchanged() -> None:
    replies = reply(2.0)
    assert apply_server_optimizer(scalar_adapter(0.0), replies, {}, settings()) == (replies, {})


def test_pivot_resets_the_moments() -> None:
    config = settings(server_optimizer="momentum")
    method = build_method({"name": "fedsvd", "pivot": "BA"})
    adapter = double(initialize_factors(SHAPES, init_a="orthonormal", init_b="zeros", seed=1))
    sent = {name: torch.randn(B.shape, dtype=torch.float64) for name, B in adapter.B.items()}
    aggregated, moments = apply_server_optimizer(adapter, [Reply(0, 1, {"B": sent})], {}, config)

    assert transform_optimizer_state(moments, method.server_step(adapter, aggregated, 1, {}), adapter) == {}
