"""Losses of the tasks, and their per-example gradients under differential privacy against a loop over examples."""

from collections.abc import Sequence

import pytest
import torch
from small_bert import make_model
from torch import Tensor, nn
from torch.nn import functional

from fedsvd.data.instructions import IGNORED
from fedsvd.privacy.grad_sample_modes import GradSampleMode, opacus_hooks, per_example_gradients
from fedsvd.training.loop import Batch
from fedsvd.training.objectives import Labels, make_objective
from fedsvd.training.per_example_gradients import fused_gradients

TASKS = {"regression": 1, "multi_label_classification": 3, "token_classification": 3}
LENGTHS = [3, 7, 4, 7]


def batch(task: str, positions: Sequence[int]) -> Batch:
    """Return examples of different lengths, so that most batches contain padding."""
    generator = torch.Generator().manual_seed(2)
    rows = [torch.randint(1, 50, (length,), generator=generator) for length in LENGTHS]
    labels = {
        "regression": torch.rand(4, generator=generator),
        "multi_label_classification": torch.randint(0, 2, (4, 3), generator=generator).float(),
    }
    tags = torch.randint(0, 3, (4, max(LENGTHS)), generator=generator)
    # Some tokens have no tag, and those of the last text have none.
    tags[torch.arange(28).view(4, 7) % 3 == 0], tags[3] = IGNORED, IGNORED
    longest = max(LENGTHS[i] for i in positions)
    lengths = torch.tensor([LENGTHS[i] for i in positions])
    labels["token_classification"] = tags[:, :longest]
    ids = torch.stack([functional.pad(rows[i], (0, longest - LENGTHS[i])) for i in positions])
    chosen = labels[task][list(positions)]
    if task == "token_classification":
        chosen = chosen.masked_fill(torch.arange(longest) >= lengths[:, None], IGNORED)
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": chosen}


@pytest.mark.parametrize("per_example", [fused_gradients, opacus_hooks])
@pytest.mark.parametrize("task", TASKS)
def test_per_example_gradients_equal_a_loop(task: str, per_example: GradSampleMode) -> None:
    model, trained = make_model({"A", "B", "head"}, num_labels=TASKS[task], task=task)
    objective = make_objective(task)

    def losses(module: nn.Module, positions: Sequence[int]) -> Tensor:
        return objective.losses(module, batch(task, positions))

    gradients = per_example_gradients(model, losses, range(4), per_example)

    names = {parameter: name for name, parameter in model.named_parameters()}
    for position in range(4):
        expected = torch.autograd.grad(losses(model, [position]).sum(), trained)
        for parameter, gradient in zip(trained, expected, strict=True):
            torch.testing.assert_close(gradients[names[parameter]][position], gradient, atol=1e-6, rtol=1e-4)


def test_tags_have_the_mean_loss_of_their_words() -> None:
    model, _ = make_model({"B"}, num_labels=3, task="token_classification")
    drawn = batch("token_classification", range(4))
    logits = model(input_ids=drawn["input_ids"], attention_mask=drawn["attention_mask"]).logits
    objective = make_objective("token_classification", Labels(["O", "B-X", "I-X"]))

    for row, tags, loss in zip(logits, drawn["labels"], objective.losses(model, drawn), strict=True):
        kept = tags != IGNORED
        expected = functional.cross_entropy(row[kept], tags[kept]) if kept.any() else torch.tensor(0.0)
        torch.testing.assert_close(loss, expected)
    # The right logits give the right spans: I-X after O starts one, too.
    right = functional.one_hot(drawn["labels"].clamp(min=0), 3).float()
    assert objective.metrics([right], [drawn["labels"]])["span_f1"] == 1.0


def test_losses_are_squared_errors_and_means_over_classes() -> None:
    model, _ = make_model({"B"}, num_labels=3)
    drawn = batch("multi_label_classification", range(4))
    logits = model(input_ids=drawn["input_ids"], attention_mask=drawn["attention_mask"]).logits
    chances = torch.where(drawn["labels"] == 1, logits.sigmoid(), 1 - logits.sigmoid())
    torch.testing.assert_close(
        make_objective("multi_label_classification").losses(model, drawn), -chances.log().mean(1)
    )

    model, _ = make_model({"B"}, num_labels=1)
    drawn = batch("regression", range(4))
    values = model(input_ids=drawn["input_ids"], attention_mask=drawn["attention_mask"]).logits[:, 0]
    torch.testing.assert_close(make_objective("regression").losses(model, drawn), (values - drawn["labels"]) ** 2)
