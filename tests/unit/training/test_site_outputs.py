"""The directions in which site outputs move the logits, compared with automatic differentiation text by text."""

import pytest
import torch
from small_bert import make_model

from fedsvd.errors import ModelError
from fedsvd.lora import peft_model
from fedsvd.lora.initialization import initialize_factors
from fedsvd.lora.peft_model import lora_sites
from fedsvd.training.site_outputs import output_directions

ROWS = [[3, 4, 5, 6], [7, 8, 0, 0], [9, 10, 11, 0]]


def batch(rows: list[list[int]]) -> dict[str, torch.Tensor]:
    ids = torch.tensor(rows)
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


@pytest.mark.parametrize("num_labels", [1, 2, 3])
def test_directions_are_the_leading_eigenvectors_of_the_contrasts(num_labels: int) -> None:
    model, _ = make_model({"B"}, num_labels=num_labels)
    start = initialize_factors(peft_model.read(model), init_a="zeros", init_b="orthonormal", seed=0)
    peft_model.write(model, start)

    found = output_directions(model, [batch(ROWS[:2]), batch(ROWS[2:])], 1)

    for name, site in lora_sites(model).items():
        moment = torch.zeros(16, 16)
        for row in ROWS:
            outputs: list[torch.Tensor] = []
            hook = site.layer.register_forward_hook(lambda _m, _a, out, seen=outputs: seen.append(out) or out)
            one = batch([[token for token in row if token]])
            logits = model(**one).logits[0]
            hook.remove()
            contrasts = logits - logits.mean() if num_labels > 1 else logits
            for contrast in contrasts:
                (gradient,) = torch.autograd.grad(contrast, outputs[0], retain_graph=True)
                total = gradient[0].sum(dim=0)
                moment += torch.outer(total, total)
        direction = torch.linalg.eigh(moment).eigenvectors[:, -1:]
        cosine = (direction.mT.double() @ found[name]).abs().item()
        assert cosine > 1 - 1e-4
        torch.testing.assert_close(found[name].norm(), torch.ones((), dtype=torch.float64))


def test_more_columns_than_directions_are_refused() -> None:
    model, _ = make_model({"B"})
    with pytest.raises(ModelError, match=r"with model\.rank = 15: .* in \d+ directions"):
        output_directions(model, [batch(ROWS[:1])], 15)
    adapter = peft_model.read(model)
    zeros = {name: torch.zeros_like(tensor) for name, tensor in adapter.head.items()}
    peft_model.write(model, adapter.with_parts({"head": zeros}))
    with pytest.raises(ModelError, match="in 0 directions"):
        output_directions(model, [batch(ROWS)], 1)
