"""The projection of gradients, by hand and in a private step."""

import torch
from small_bert import NUM_EXAMPLES, make_losses, make_model, single_example_gradients
from torch import nn

from fedsvd.privacy.dp_sgd import DPSGD, train_dp_sgd
from fedsvd.privacy.gradient_maps import Preconditioning, Projection, map_gradients, map_noised_gradients
from fedsvd.privacy.randomness import TorchRandomness
from fedsvd.training.per_example_gradients import fused_gradients


def test_projection_by_hand() -> None:
    # The direction (3, 4) / 5 over two parameters; the third parameter is not covered. 2 (3, 4) depends on it.
    first, second, third = (nn.Parameter(torch.zeros(1)) for _ in range(3))
    vectors = [torch.tensor([[3.0], [6.0]]), torch.tensor([[4.0], [8.0]])]
    projection = Projection.orthogonal_to([first, second], vectors)

    found = projection.before_clipping(
        [third, first, second],
        [torch.tensor([[7.0], [8.0]]), torch.tensor([[5.0], [3.0]]), torch.tensor([[0.0], [4.0]])],
    )

    # (5, 0) - 3 (3, 4) / 5, and (3, 4) lies on the direction.
    torch.testing.assert_close(found[0], torch.tensor([[7.0], [8.0]]))
    torch.testing.assert_close(found[1], torch.tensor([[3.2], [0.0]]), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(found[2], torch.tensor([[-2.4], [0.0]]), atol=1e-6, rtol=1e-6)


def test_the_maps_of_the_noised_sum_are_applied_in_reverse_order() -> None:
    parameter = nn.Parameter(torch.zeros(1, 2))
    parameter.grad = torch.tensor([[1.0, 1.0]])
    preconditioning = Preconditioning({id(parameter): torch.tensor([[2.0, 1.0], [1.0, 0.0]])})
    projection = Projection.orthogonal_to([parameter], [torch.tensor([[[1.0, 0.0]]])])

    map_noised_gradients([preconditioning, projection], [parameter])

    # The projection gives (0, 1).
    assert parameter.grad.tolist() == [[1.0, 0.0]]


def test_a_private_step_projects_clips_and_adds_noise_in_this_order() -> None:
    model, trained = make_model({"B"})
    gradients = [
        torch.cat([g.reshape(-1) for g in single_example_gradients(model, trained, i)]) for i in range(NUM_EXAMPLES)
    ]
    direction = torch.stack(gradients).mean(dim=0)
    rows = [
        part.view(1, *p.shape) for part, p in zip(direction.split([p.numel() for p in trained]), trained, strict=True)
    ]
    unit = direction / direction.norm()
    projected = [gradient - (gradient @ unit) * unit for gradient in gradients]
    bound = sorted(gradient.norm().item() for gradient in projected)[NUM_EXAMPLES // 2]
    clipped = sum(gradient * min(1.0, bound / gradient.norm().item()) for gradient in projected)

    moved = []
    for noise_multiplier in (0.0, 1.0):
        model, trained = make_model({"B"})
        before = torch.cat([p.detach().reshape(-1).clone() for p in trained])
        mechanism, optimizer = DPSGD(noise_multiplier, bound, 1.0, 1), torch.optim.SGD(trained, lr=1.0)
        maps = [Projection.orthogonal_to(trained, rows)]
        train_dp_sgd(
            model, optimizer, make_losses(), NUM_EXAMPLES, mechanism, TorchRandomness(0), fused_gradients, maps=maps
        )
        moved.append(torch.cat([p.detach().reshape(-1) for p in trained]) - before)

    torch.testing.assert_close(moved[0], -clipped / NUM_EXAMPLES, atol=1e-6, rtol=1e-4)
    # No noise along the direction.
    assert (moved[1] @ unit).abs() < 1e-4 * moved[1].norm()
    assert (moved[1] - moved[0]).norm() > 0.1 * bound / NUM_EXAMPLES


def test_gradients_of_a_batch_are_mapped_as_one() -> None:
    first, second = (nn.Parameter(torch.zeros(1)) for _ in range(2))
    projection = Projection.orthogonal_to([first, second], [torch.tensor([[3.0]]), torch.tensor([[4.0]])])
    for apply in (map_gradients, map_noised_gradients):
        first.grad, second.grad = torch.tensor([5.0]), torch.tensor([0.0])
        apply([projection], [first, second])
        torch.testing.assert_close(torch.cat([first.grad, second.grad]), torch.tensor([3.2, -2.4]))


def test_preconditioning_is_sgd_in_other_coordinates() -> None:
    # A = A' M: the gradient of A' is G M, and a step in A' moves A by its gradient times M.
    A, other = nn.Parameter(torch.zeros(1, 2)), nn.Parameter(torch.zeros(1))
    matrix = torch.tensor([[2.0, 1.0], [1.0, 0.0]])
    map_ = Preconditioning({id(A): matrix})

    before = map_.before_clipping(
        [A, other], [torch.tensor([[[3.0, 4.0]], [[1.0, 0.0]]]), torch.tensor([[7.0], [8.0]])]
    )

    torch.testing.assert_close(before[0], torch.tensor([[[10.0, 3.0]], [[2.0, 1.0]]]))
    torch.testing.assert_close(before[1], torch.tensor([[7.0], [8.0]]))
    (after,) = map_.after_noise([A], [torch.tensor([[[1.0, 1.0]]])])
    torch.testing.assert_close(after, torch.tensor([[[3.0, 1.0]]]))


def test_a_private_step_is_clipped_in_the_coordinates_of_the_preconditioning() -> None:
    model, trained = make_model({"A"})
    generator = torch.Generator().manual_seed(2)
    matrices = [torch.randn(p.shape[1], p.shape[1], generator=generator) for p in trained]
    matrices = [m @ m.mT / len(m) for m in matrices]
    samples = [single_example_gradients(model, trained, i) for i in range(NUM_EXAMPLES)]
    mapped = [[g @ m for g, m in zip(sample, matrices, strict=True)] for sample in samples]
    norms = [torch.cat([g.reshape(-1) for g in sample]).norm().item() for sample in mapped]
    bound = sorted(norms)[NUM_EXAMPLES // 2]
    expected = [
        -sum(min(1.0, bound / n) * sample[k] for n, sample in zip(norms, mapped, strict=True)) @ m / NUM_EXAMPLES
        for k, m in enumerate(matrices)
    ]
    before = [p.detach().clone() for p in trained]
    mechanism, optimizer = DPSGD(0.0, bound, 1.0, 1), torch.optim.SGD(trained, lr=1.0)
    maps = [Preconditioning({id(p): m for p, m in zip(trained, matrices, strict=True)})]

    train_dp_sgd(
        model, optimizer, make_losses(), NUM_EXAMPLES, mechanism, TorchRandomness(0), fused_gradients, maps=maps
    )

    for p, start, change in zip(trained, before, expected, strict=True):
        torch.testing.assert_close(p.detach() - start, change, atol=1e-6, rtol=1e-4)
