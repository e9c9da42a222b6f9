"""The directions in which the outputs of LoRA sites move a classifier's logits, from public texts.

If A is trained first, B must not be zero, and its columns should be directions that matter to the classifier: an
update ``s · B A x`` of a site's output h changes the logit of class k by ``s · (∂logit_k/∂h)ᵀ B A x``. With

    J_k(x) = Σₜ ∂logit_k(x) / ∂hₜ

for tokens t of a public text x, and J̄ its mean over classes (which moves all logits alike and no probability), the
columns of B are the r leading eigenvectors of

    E[Σₖ (J_k(x) - J̄(x)) (J_k(x) - J̄(x))ᵀ].

A model with one output has no J̄. The Jacobians depend on the initial head, so the head must not be zero. They depend
neither on labels nor on private text, so that they cost no privacy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fedsvd.errors import ModelError
from fedsvd.lora.peft_model import lora_sites
from fedsvd.lora.refactorize import with_positive_peaks
from fedsvd.training.loop import Batch

# Eigenvalue relative to the largest one, below which a direction is rounding.
_TOLERANCE = 1e-10


def output_directions(model: nn.Module, batches: Iterable[Batch], rank: int) -> dict[str, Tensor]:
    """Return the columns of B by site, shape (d_out, rank), float64, orthonormal, by descending eigenvalue.

    Args:
        model: The adapted classifier, with its initial head.
        batches: Padded inputs with ``input_ids`` and ``attention_mask``, on the model's device.
        rank: r.

    Raises:
        ModelError: A site has fewer directions than the rank.
    """
    moments: dict[str, Tensor] = {}
    probes: dict[str, Tensor] = {}
    model.eval()
    with torch.enable_grad(), _probe_outputs(model, probes):
        for batch in batches:
            logits = model(**batch).logits.float()
            contrasts = logits - logits.mean(dim=1, keepdim=True) if logits.shape[1] > 1 else logits
            for contrast in contrasts.sum(dim=0):
                gradients = torch.autograd.grad(contrast, list(probes.values()), retain_graph=True)
                for name, gradient in zip(probes, gradients, strict=True):
                    rows = gradient.double().reshape(len(logits), -1, gradient.shape[-1]).sum(dim=1).cpu()
                    moments[name] = moments.get(name, 0) + rows.mT @ rows
            probes.clear()
    return {name: _leading_eigenvectors(moment, rank, name) for name, moment in moments.items()}


def _leading_eigenvectors(moment: Tensor, rank: int, name: str) -> Tensor:
    values, vectors = torch.linalg.eigh(moment)
    available = int((values > _TOLERANCE * values.max()).sum()) if bool(values.max() > 0) else 0
    if available < rank:
        raise ModelError(
            f"method.init_b = public_jacobian is not possible at {name} with model.rank = {rank}: its outputs move the "
            f"logits of public texts in {available} directions. Lower model.rank."
        )
    return with_positive_peaks(vectors[:, -rank:].mT.flip(0)).mT


@contextmanager
def _probe_outputs(model: nn.Module, probes: dict[str, Tensor]) -> Iterator[None]:
    """Add a zero that has a gradient to the output of each site."""

    def probe(name: str, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        probes[name] = torch.zeros_like(output, requires_grad=True)
        return output + probes[name]

    hooks = [site.layer.register_forward_hook(partial(probe, name)) for name, site in lora_sites(model).items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
