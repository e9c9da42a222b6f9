"""Tests of reply averaging on arrays that can be computed by hand."""

import pytest
import torch

from fedsvd.errors import RunError
from fedsvd.lora.adapter import Adapter
from fedsvd.methods.aggregate import Reply, average, mean_noise_std


def make_adapter(seed: int = 0) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"one": (6, 5), "two": (6, 5), "wide": (4, 9)}
    A = {name: torch.randn(2, d_in, generator=generator) for name, (_, d_in) in shapes.items()}
    B = {name: torch.randn(d_out, 2, generator=generator) for name, (d_out, _) in shapes.items()}
    return Adapter(A=A, B=B, head={"bias": torch.zeros(2)}, scale=dict.fromkeys(shapes, 2.0))


def test_average_weights_by_examples() -> None:
    adapter = Adapter(A={"s": torch.ones(1, 2)}, B={"s": torch.zeros(2, 1)}, head={}, scale={"s": 1.0})
    replies = [
        Reply(1, 3, {"B": {"s": torch.tensor([[4.0], [0.0]])}}),
        Reply(0, 1, {"B": {"s": torch.tensor([[0.0], [8.0]])}}),
    ]

    result = average(adapter, replies)

    assert torch.equal(result.B["s"], torch.tensor([[3.0], [2.0]]))
    assert torch.equal(result.A["s"], adapter.A["s"])


def test_average_does_not_depend_on_reply_order() -> None:
    adapter = Adapter(A={"s": torch.ones(1, 1)}, B={"s": torch.zeros(1, 1).double()}, head={}, scale={"s": 1.0})
    # In float64, their sum depends on the order.
    replies = [Reply(k, 1, {"B": {"s": torch.tensor([[value]])}}) for k, value in enumerate((1e17, 1.0, -1e17, 3.0))]

    averages = [average(adapter, [replies[k] for k in order]).B["s"] for order in ((0, 1, 2, 3), (0, 2, 1, 3))]

    assert torch.equal(*averages)


def test_average_of_the_head() -> None:
    adapter = make_adapter()
    replies = [Reply(k, 1, {"head": {"bias": torch.tensor([float(k), 1.0])}}) for k in range(2)]

    assert torch.equal(average(adapter, replies).head["bias"], torch.tensor([0.5, 1.0]))


@pytest.mark.parametrize(
    "replies",
    [
        [],
        [Reply(0, 1, {"B": {}}), Reply(1, 1, {"A": {}})],
    ],
)
def test_average_of_no_replies_or_different_parts_raises(replies: list[Reply]) -> None:
    with pytest.raises(RunError):
        average(make_adapter(), replies)


def test_average_treats_entries_missing_from_a_lower_rank_as_unchanged() -> None:
    adapter = Adapter(A={"s": torch.eye(2, 3)}, B={"s": torch.tensor([[4.0, 8.0]])}, head={}, scale={"s": 1.0})
    replies = [Reply(0, 1, {"B": {"s": torch.tensor([[0.0]])}}), Reply(1, 3, {"B": {"s": torch.tensor([[8.0, 0.0]])}})]

    assert torch.equal(average(adapter, replies).B["s"], torch.tensor([[6.0, 2.0]]))


def test_mean_noise_std_is_weighted_by_examples() -> None:
    replies = [Reply(0, 1, {}, noise_std=4.0), Reply(1, 3, {}, noise_std=1.0)]
    # √((4/4)² + (3/4)²)
    assert mean_noise_std(replies) == pytest.approx(1.25)
