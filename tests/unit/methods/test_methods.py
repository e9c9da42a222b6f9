"""Tests of each method's server step on arrays computed by hand."""

import torch

from fedsvd.lora.adapter import Adapter, Factor, Part, as_plain_lora
from fedsvd.methods import build_method, sent_factors
from fedsvd.methods.aggregate import Reply


def make_adapter(core: bool = False) -> Adapter:
    return Adapter(
        A={"s": torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])},
        B={"s": torch.zeros(2, 2)},
        head={},
        scale={"s": 1.0},
        core={"s": torch.zeros(2, 2)} if core else {},
    )


def reply(partition_id: int, num_examples: int, **parts: torch.Tensor) -> Reply:
    return Reply(partition_id, num_examples, {name: {"s": tensor} for name, tensor in parts.items()})


def as_parts(factors: dict[Factor, torch.Tensor]) -> dict[Part, dict[str, torch.Tensor]]:
    return {factor: {"s": tensor} for factor, tensor in factors.items()}


def product(adapter: Adapter) -> torch.Tensor:
    """Return the site's weight update, including the core and the base."""
    plain = as_plain_lora(adapter)
    return plain.B["s"] @ plain.A["s"]


def test_ffa_lora_averages_b_and_leaves_a_unchanged() -> None:
    method = build_method({"name": "ffa_lora"})
    replies = [reply(0, 1, B=torch.full((2, 2), 2.0)), reply(1, 3, B=torch.full((2, 2), 6.0))]

    stepped = method.server_step(make_adapter(), replies, 1, {}).adapter

    assert torch.equal(stepped.B["s"], torch.full((2, 2), 5.0))
    assert torch.equal(stepped.A["s"], make_adapter().A["s"])


def test_fedavg_lora_averages_each_factor() -> None:
    method = build_method({"name": "fedavg_lora"})
    replies = [reply(k, 1, A=torch.full((2, 3), float(k)), B=torch.full((2, 2), 2.0 * k)) for k in range(2)]

    stepped = method.server_step(make_adapter(), replies, 1, {}).adapter

    assert torch.equal(stepped.A["s"], torch.full((2, 3), 0.5))
    assert torch.equal(stepped.B["s"], torch.full((2, 2), 1.0))


def test_fedsvd_matches_an_svd_computed_by_hand() -> None:
    # B A = [[0, 3, 0], [2, 0, 0]] has the singular values 3 and 2 with the right singular vectors e₂ and e₁.
    method = build_method({"name": "fedsvd"})
    B = torch.tensor([[0.0, 3.0], [2.0, 0.0]])

    stepped = method.server_step(make_adapter(), [reply(0, 5, B=B)], 1, {}).adapter

    torch.testing.assert_close(stepped.A["s"].abs(), torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]))
    torch.testing.assert_close(stepped.B["s"].abs(), torch.tensor([[3.0, 0.0], [0.0, 2.0]]))
    torch.testing.assert_close(stepped.B["s"] @ stepped.A["s"], torch.tensor([[0.0, 3.0, 0.0], [2.0, 0.0, 0.0]]))


def test_fedsvd_refactorizes_at_the_configured_interval() -> None:
    method = build_method({"name": "fedsvd", "refactorize_every": 2})
    B = torch.tensor([[0.0, 3.0], [2.0, 0.0]])

    first = method.server_step(make_adapter(), [reply(0, 5, B=B)], 1, {}).adapter
    second = method.server_step(make_adapter(), [reply(0, 5, B=B)], 2, {}).adapter

    assert torch.equal(first.B["s"], B)
    assert not torch.equal(second.B["s"], B)


def test_fedex_lora_merges_the_residual_of_the_product_of_means() -> None:
    # Two clients with weights 1/4 and 3/4 and products of rank 1: B₁A₁ = e₁ ⊗ e₁, B₂A₂ = e₂ ⊗ e₂.
    first_B = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    second_B = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    first = reply(0, 1, B=first_B, A=torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]))
    second = reply(1, 3, B=second_B, A=torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]))

    stepped = build_method({"name": "fedex_lora"}).server_step(make_adapter(), [second, first], 1, {}).adapter

    # B̄Ā = (1/4 e₁ + 3/4 e₂) ⊗ (1/4 e₁ + 3/4 e₂); adding the residual gives 1/4 e₁⊗e₁ + 3/4 e₂⊗e₂.
    torch.testing.assert_close(
        stepped.B["s"] @ stepped.A["s"], torch.tensor([[1 / 16, 3 / 16, 0.0], [3 / 16, 9 / 16, 0.0]])
    )
    torch.testing.assert_close(
        stepped.base_left["s"] @ stepped.base_right["s"], torch.tensor([[3 / 16, -3 / 16, 0.0], [-3 / 16, 3 / 16, 0.0]])
    )
    # The columns of two clients of rank 2; B̄Ā needs no further ones.
    assert stepped.base_rank == 4


def test_flora_merges_the_mean_product_and_draws_new_factors() -> None:
    first = reply(0, 1, B=torch.tensor([[4.0, 0.0], [0.0, 0.0]]), A=torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]))
    # This client has rank 1.
    second = reply(1, 3, B=torch.tensor([[0.0], [4.0]]), A=torch.tensor([[0.0, 0.0, 1.0]]))
    method = build_method({"name": "flora", "seed": 3})

    stepped = method.server_step(make_adapter(), [first, second], 1, {}).adapter
    next_round = method.server_step(make_adapter(), [first, second], 2, {}).adapter

    merged = stepped.base_left["s"] @ stepped.base_right["s"]
    torch.testing.assert_close(merged, torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 3.0]]))
    assert stepped.base_rank == 3
    assert not stepped.B["s"].any()
    assert not torch.equal(stepped.A["s"], next_round.A["s"])


def test_flexlora_truncates_the_mean_product_to_its_largest_singular_values() -> None:
    # 1/2 (8 e₁⊗e₁ + 2 e₂⊗e₃) + 1/2 (6 e₂⊗e₂) = 4 e₁⊗e₁ + e₂⊗e₃ + 3 e₂⊗e₂, of which rank 1 retains 4 e₁⊗e₁.
    first = reply(0, 2, B=torch.tensor([[8.0, 0.0], [0.0, 2.0]]), A=torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]))
    second = reply(1, 2, B=torch.tensor([[0.0], [6.0]]), A=torch.tensor([[0.0, 1.0, 0.0]]))
    adapter = make_adapter()
    rank_one = adapter.with_parts({"A": {"s": adapter.A["s"][:1]}, "B": {"s": adapter.B["s"][:, :1]}})
    method = build_method({"name": "flexlora"})

    truncated = method.server_step(rank_one, [first, second], 1, {}).adapter
    full = method.server_step(adapter, [first, second], 1, {}).adapter

    torch.testing.assert_close(product(truncated), torch.tensor([[4.0, 0.0, 0.0], [0.0, 0.0, 0.0]]))
    torch.testing.assert_close(product(full), torch.tensor([[4.0, 0.0, 0.0], [0.0, 3.0, 1.0]]))
    torch.testing.assert_close(full.A["s"] @ full.A["s"].mT, torch.eye(2))
    # A round in which only the client of rank 1 replies: the other direction keeps a row of A, against which B trains.
    low = method.server_step(adapter, [second], 1, {}).adapter
    torch.testing.assert_close(product(low), torch.tensor([[0.0, 0.0, 0.0], [0.0, 6.0, 0.0]]))
    torch.testing.assert_close(low.A["s"] @ low.A["s"].mT, torch.eye(2))


def test_rolora_trains_b_in_odd_rounds_and_a_in_even_rounds() -> None:
    method = build_method({"name": "rolora"})
    assert [method.trains(r) for r in (1, 2, 3, 4)] == [{"B"}, {"A"}, {"B"}, {"A"}]

    stepped = method.server_step(
        make_adapter(), [reply(k, 1, A=torch.full((2, 3), 2.0 * k)) for k in range(2)], 2, {}
    ).adapter

    assert torch.equal(stepped.A["s"], torch.ones(2, 3))
    assert torch.equal(stepped.B["s"], make_adapter().B["s"])


def test_fedsa_lora_averages_a_and_leaves_b_with_the_clients() -> None:
    method = build_method({"name": "fedsa_lora"})
    assert (method.trains(1), sent_factors(method, 1), method.traits.personal) == ({"A", "B"}, {"A"}, {"B"})

    stepped = method.server_step(
        make_adapter(), [reply(0, 1, A=torch.zeros(2, 3)), reply(1, 3, A=torch.full((2, 3), 4.0))], 1, {}
    ).adapter

    assert torch.equal(stepped.A["s"], torch.full((2, 3), 3.0))
    assert torch.equal(stepped.B["s"], make_adapter().B["s"])


def test_fed_sb_averages_the_core_between_fixed_factors() -> None:
    method = build_method({"name": "fed_sb"})
    adapter = make_adapter(core=True).with_parts({"B": {"s": torch.eye(2)}})
    cores = [torch.tensor([[0.0, 4.0], [0.0, 0.0]]), torch.tensor([[8.0, 0.0], [0.0, 0.0]])]

    stepped = method.server_step(adapter, [reply(k, 1, core=core) for k, core in enumerate(cores)], 1, {}).adapter

    assert torch.equal(product(stepped), torch.tensor([[4.0, 2.0, 0.0], [0.0, 0.0, 0.0]]))


def test_fedsvd_pivot_trains_both_factors_and_preserves_the_product() -> None:
    method = build_method({"name": "fedsvd", "pivot": "BBAA"})
    assert [method.trains(r) for r in (1, 2, 3, 4, 5)] == [{"B"}, {"B"}, {"A"}, {"A"}, {"B"}]
    B = torch.tensor([[0.0, 3.0], [2.0, 0.0]])

    pivoted = method.server_step(make_adapter(), [reply(0, 5, B=B)], 2, {})
    torch.testing.assert_close(product(pivoted.adapter), torch.tensor([[0.0, 3.0, 0.0], [2.0, 0.0, 0.0]]))
    torch.testing.assert_close(pivoted.adapter.B["s"].mT @ pivoted.adapter.B["s"], torch.eye(2))
    assert not pivoted.rotations

    A = torch.tensor([[0.0, 0.0, 1.0], [5.0, 0.0, 0.0]])
    same_factor = method.server_step(pivoted.adapter, [reply(0, 5, A=A)], 3, {})
    torch.testing.assert_close(product(same_factor.adapter), pivoted.adapter.B["s"] @ A)
    torch.testing.assert_close(
        same_factor.adapter.B["s"], (pivoted.adapter.B["s"].double() @ same_factor.rotations["B"]["s"]).float()
    )


def test_fedsvd_with_the_factors_exchanged_keeps_the_span_of_b() -> None:
    method = build_method({"name": "fedsvd", "pivot": "A", "init_a": "zeros", "init_b": "orthonormal"})
    assert [method.trains(r) for r in (1, 2)] == [{"A"}, {"A"}]
    B = torch.tensor([[0.6], [0.8]])
    start = Adapter(A={"s": torch.zeros(1, 3)}, B={"s": B}, head={}, scale={"s": 1.0})

    # Means with weights 1/4 and 3/4: (3, 0, 4), of norm 5.
    first, second = torch.tensor([[0.0, 0.0, 4.0]]), torch.tensor([[4.0, 0.0, 4.0]])
    step = method.server_step(start, [reply(0, 1, A=first), reply(1, 3, A=second)], 1, {})
    torch.testing.assert_close(product(step.adapter), B @ torch.tensor([[3.0, 0.0, 4.0]]))
    torch.testing.assert_close(step.adapter.B["s"].abs(), B)

    # Without any update, B keeps its directions, too.
    unchanged = method.server_step(start, [reply(0, 1, A=torch.zeros(1, 3))], 1, {})
    torch.testing.assert_close(unchanged.adapter.B["s"].abs(), B)


def test_tangent_averages_coordinates_at_the_common_factors() -> None:
    # U and V are the unit vectors of B = diag(2, 1) and A. Two clients with weights 1/4 and 3/4 send X and Y.
    adapter = make_adapter().with_parts({"B": {"s": torch.diag(torch.tensor([2.0, 1.0]))}})
    A, B = adapter.A["s"], adapter.B["s"]
    first = reply(0, 1, A=A + torch.tensor([[0.0, 0.0, 8.0], [0.0, 0.0, 0.0]]), B=B)
    second = reply(1, 3, A=A, B=B + torch.tensor([[0.0, 0.0], [0.0, 4.0]]))

    stepped = build_method({"name": "tangent"}).server_step(adapter, [second, first], 1, {}).adapter

    # B A + X̄ V + U Ȳ = [[2, 0, 2], [0, 4, 0]], of rank 2.
    torch.testing.assert_close(product(stepped), torch.tensor([[2.0, 0.0, 2.0], [0.0, 4.0, 0.0]]), atol=1e-4, rtol=0)
    torch.testing.assert_close(stepped.A["s"] @ stepped.A["s"].mT, torch.eye(2))
