"""Batches are collated on a thread while the batch before them is computed."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fedsvd.privacy.dp_sgd import DPSGD, train_dp_sgd
from fedsvd.privacy.physical_batches import BatchLimit
from fedsvd.privacy.randomness import SecureRandomness
from fedsvd.training.example_losses import ExampleLosses
from fedsvd.training.loop import Batch, train_plain
from fedsvd.training.objectives import Objective

TARGETS = torch.tensor([1.0, -2.0, 3.0, 0.5, 4.0, -1.0])


class NoCache:
    @contextmanager
    def reuse_states(self, model: nn.Module, inputs: dict[str, Tensor], on_cpu: object = None) -> Iterator[None]:
        yield


class Collator:
    """Collates, and records what was collated on the thread and what when it was needed."""

    def __init__(self) -> None:
        self.ahead: list[tuple[int, ...]] = []
        self.late: list[tuple[int, ...]] = []

    def __call__(self, positions: tuple[int, ...]) -> Batch:
        is_ahead = threading.current_thread().name.startswith("fedsvd-collate")
        (self.ahead if is_ahead else self.late).append(positions)
        return {"x": torch.ones(len(positions), 1), "labels": TARGETS[list(positions)]}


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.linear.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)[:, 0]


def squared_errors(model: nn.Module, batch: Batch) -> Tensor:
    return (model(batch["x"]) - batch["labels"]).square()


def make_losses(collator: Collator) -> ExampleLosses:
    objective = Objective(squared_errors, lambda model, batch: None, lambda a, b: {})  # type: ignore[arg-type, return-value]
    return ExampleLosses(collator, torch.device("cpu"), NoCache(), objective)


def test_prepared_batches_give_the_same_losses_and_are_collated_once() -> None:
    collator, model = Collator(), Scale()
    losses = make_losses(collator)
    losses.prepare([0, 2])
    losses.prepare([0, 2])
    assert torch.equal(losses(model, [0, 2]), TARGETS[[0, 2]].square())
    assert torch.equal(losses(model, [1]), TARGETS[[1]].square())
    assert (collator.ahead, collator.late) == ([(0, 2)], [(1,)])


def test_batches_that_are_never_needed_do_not_pile_up() -> None:
    losses = make_losses(Collator())
    for position in range(6):
        losses.prepare([position])
    assert list(losses._ahead) == [(4,), (5,)]


def test_all_physical_batches_but_the_first_are_collated_ahead() -> None:
    collator, model = Collator(), Scale()

    train_dp_sgd(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        make_losses(collator),
        len(TARGETS),
        DPSGD(noise_multiplier=1.0, max_grad_norm=1.0, sample_rate=1.0, steps=2, physical_batch_size=4),
        SecureRandomness(),
    )

    assert collator.late == [(0, 1, 2, 3)]
    assert collator.ahead == [(4, 5), (0, 1, 2, 3), (4, 5)]


def test_training_without_privacy_collates_ahead_across_steps() -> None:
    collator, model = Collator(), Scale()

    loss = train_plain(
        model,
        torch.optim.SGD(model.parameters(), lr=0.25),
        make_losses(collator),
        [[0, 1], [], [2, 3, 4]],
        limit=BatchLimit(2),
    )

    # By hand: the first batch has mean loss 2.5 and gradient -2 · mean(1, -2) = 1, so the weight becomes -0.25.
    second = ((TARGETS[[2, 3, 4]] + 0.25).square()).mean().item()
    assert abs(loss - (2.5 + second) / 2) < 1e-5
    assert (collator.late, collator.ahead) == ([(0, 1)], [(2, 3), (4,)])


def test_next_batch_is_collated_while_the_current_one_is_computed() -> None:
    collator, model = Collator(), Scale()
    begun = threading.Event()

    def waiting(model: nn.Module, batch: Batch) -> Tensor:
        # Deadlocks if the second batch is collated after the first one is computed.
        assert len(batch["x"]) == 1 or begun.wait(20), "the next batch was not collated meanwhile"
        return squared_errors(model, batch)

    def collate(positions: tuple[int, ...]) -> Batch:
        if positions == (2,):
            begun.set()
        return collator(positions)

    objective = Objective(waiting, lambda model, batch: None, lambda a, b: {})  # type: ignore[arg-type, return-value]
    losses = ExampleLosses(collate, torch.device("cpu"), NoCache(), objective)
    train_plain(model, torch.optim.SGD(model.parameters(), lr=0.1), losses, [[0, 1], [2]])
    assert begun.is_set()
