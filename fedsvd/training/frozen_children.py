"""Cached outputs of the parts of the last adapted layer that run before its first LoRA site.

If the last layer is the only adapted one, and its first site is behind parts without a site, such as a site in the
feed-forward network behind the attention, the outputs of those parts do not depend on any trained parameter either. See
`fedsvd.training.prefix_cache`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from fedsvd.lora.peft_model import lora_sites
from fedsvd.models.digest import add_tensors


@dataclass(frozen=True)
class FrozenPart:
    """A part of the model whose output is cached.

    Attributes:
        module: The part.
        tuple_length: Length of the tuple that it returns, of which the first entry is read; 0 for a tensor.
    """

    module: nn.Module
    tuple_length: int

    def output(self, cached: Tensor) -> Any:
        """Return cached states in the form of the part's output."""
        return (cached, *[None] * (self.tuple_length - 1)) if self.tuple_length else cached


@dataclass
class CalledChildren:
    """The children that were called before the first site of a forward pass, and what they returned.

    Attributes:
        children: In the order of their calls.
        outputs: Their outputs, shape (batch, length, d) each.
        has_ended: Whether a child with a site, or one that cannot be cached, has been called.
    """

    children: list[FrozenPart] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    has_ended: bool = False

    def record(self, child: nn.Module, output: Any) -> None:
        """Add an output, unless it is not that of one call with a vector per token."""
        if self.has_ended:
            return
        states = output[0] if isinstance(output, tuple) else output
        was_called = any(child is known.module for known in self.children)
        if was_called or not isinstance(states, Tensor) or states.dim() != 3:
            self.has_ended = True
            return
        self.children.append(FrozenPart(child, len(output) if isinstance(output, tuple) else 0))
        self.outputs.append(states)


@contextmanager
def record_children(layer: nn.Module, stops: type[Exception] | None = None) -> Iterator[CalledChildren]:
    """Record the children of a layer that are called before its first site, inside the context.

    Args:
        layer: The layer.
        stops: An exception to raise when the first child with a site is called; None continues.
    """
    called = CalledChildren()

    def end(module: nn.Module, args: Any) -> None:
        called.has_ended = True
        if stops is not None:
            raise stops

    def record(module: nn.Module, args: Any, output: Any) -> None:
        called.record(module, output)

    hooks = [
        child.register_forward_pre_hook(end) if lora_sites(child) else child.register_forward_hook(record)
        for child in layer.children()
    ]
    try:
        yield called
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def record_source(model: nn.Module, layer: nn.Module) -> Iterator[list[FrozenPart]]:
    """Record the outermost part of a model whose output a layer takes as its input, such as the embeddings.

    The yielded list has this part after a forward pass inside the context; it stays empty if there is none.
    """
    returned: list[tuple[nn.Module, Tensor]] = []
    found: list[FrozenPart] = []

    def record(module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            returned.append((module, output))

    def compare(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states = args[0] if args else kwargs["hidden_states"]
        found[:] = [FrozenPart(source, 0) for source, output in returned if output is states][-1:]

    hooks = [module.register_forward_hook(record) for module in model.modules()]
    hooks.append(layer.register_forward_pre_hook(compare, with_kwargs=True))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def use_outputs(parts: Sequence[FrozenPart], outputs: Sequence[Tensor]) -> Iterator[None]:
    """Make parts return cached outputs instead of computing, inside the context.

    Not a replaced input of the next layer: a backward pass that recomputes it (gradient checkpointing) reads them, too.
    """

    def return_output(part: FrozenPart, cached: Tensor) -> Any:
        return lambda *args, **kwargs: part.output(cached)

    for part, cached in zip(parts, outputs, strict=True):
        part.module.forward = return_output(part, cached)
    try:
        yield
    finally:
        for part in parts:
            del part.module.forward


def digest_of(layer: nn.Module, children: Sequence[FrozenPart]) -> bytes:
    """Return a digest of which children are cached and of their weights; empty without any."""
    if not children:
        return b""
    names = {module: name for name, module in layer.named_children()}
    digest = hashlib.sha256()
    for child in children:
        digest.update(names[child.module].encode())
        add_tensors(digest, child.module.state_dict().items())
    return digest.digest()
