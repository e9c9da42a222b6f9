"""Heads of other packages on the pooled features of a text, found through the entry points ``fedsvd.heads``.

A head is a function ``build(width, num_labels)`` that returns a torch module. The module maps the features of the texts
of a batch, shape (batch, width), float32, to their logits, shape (batch, num_labels), each text by itself. PEFT trains
and stores it with the adapter (``modules_to_save``), and everything that holds for the linear layer that it replaces
holds for it: per-example gradients, clipping, averages, the ledger.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from fedsvd.config import plugins
from fedsvd.errors import ModelError, describe

Build = Callable[[int, int], nn.Module]


def build_head(name: str, width: int, num_labels: int, seed: int) -> nn.Module:
    """Build the head of another package; the same seed gives the same parameters in every process.

    Args:
        name: ``model.head``.
        width: Number of features of a text.
        num_labels: Number of logits: one per class, or 1 for a regression.
        seed: Seed of torch's generator on the CPU while the head is built.

    Raises:
        ConfigError: The other package cannot be imported.
        ModelError: It does not build a head.
    """
    build: Build | None = plugins.find(plugins.HEADS, name, {})
    if build is None:
        raise _error(name, "no installed package adds it")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        try:
            head = build(width, num_labels)
        except Exception as error:  # Code of others may raise anything.
            raise _error(name, f"building it failed ({describe(error)})") from error
    if problem := _problem(head, width, num_labels):
        raise _error(name, problem)
    return head


def _problem(head: object, width: int, num_labels: int) -> str | None:
    """Return why an object is no head, or None if it is one."""
    if not isinstance(head, nn.Module):
        return f"it is {type(head).__name__!r} and not a torch module"
    if {parameter.dtype for parameter in head.parameters()} != {torch.float32}:
        return "its parameters are not float32, or it has none"
    if any(True for _ in head.buffers()):
        return "it has buffers, which are neither sent nor protected by differential privacy"
    if any(isinstance(module, _DropoutNd) and module.p for module in head.modules()):
        return "it has dropout, which would add noise to that of differential privacy"
    try:
        with torch.no_grad():
            output = head(torch.zeros(3, width))
    except Exception as error:  # Code of others may raise anything.
        return f"it fails on features of shape (3, {width}) ({describe(error)})"
    if not isinstance(output, torch.Tensor) or output.shape != (3, num_labels):
        found = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        return f"it maps features of shape (3, {width}) to {found} and not to logits of shape (3, {num_labels})"
    return None


def _error(name: str, problem: str) -> ModelError:
    return ModelError(
        f"model.head = {name!r} cannot be used: {problem}. Repair or install the package that adds it to "
        f"{plugins.HEADS} on every machine of the federation, or set model.head=linear."
    )
