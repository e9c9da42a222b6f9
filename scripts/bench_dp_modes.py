"""Models, batches and implementations of one training step on LoRA's B, for `scripts/bench dp_step`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import GradSampleModuleFastGradientClipping
from opacus.optimizers import DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping
from torch import Tensor, nn
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, RobertaConfig, RobertaForSequenceClassification

from fedsvd.config.compose import compose
from fedsvd.lora import peft_model
from fedsvd.lora.initialization import initialize_factors
from fedsvd.models.load_options import LoadOptions
from fedsvd.models.loading import load_classifier
from fedsvd.privacy.dp_sgd import DPSGD, train_dp_sgd
from fedsvd.privacy.grad_sample_modes import GradSampleMode, opacus_hooks
from fedsvd.privacy.randomness import SecureRandomness
from fedsvd.runtime.data import load_test_batches
from fedsvd.training.per_example_gradients import fused_gradients
from fedsvd.training.prefix_cache import PrefixCache
from fedsvd.training.state_store import MemoryBudget, StateStore

CACHE_BYTES = 2**30
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@dataclass(frozen=True)
class Shape:
    """One model and one batch.

    Attributes:
        title: Description.
        batch: Number of examples.
        length: Tokens of random text per example; None for real movie reviews.
        targets: Target modules of LoRA.
        lora_layers: Transformer layers that are adapted.
    """

    title: str
    batch: int
    length: int | None
    targets: tuple[str, ...]
    lora_layers: str = "all"


SHAPES = {
    "minilm": Shape("MiniLM-L6, real text, LoRA in all layers", 64, None, ("query", "value")),
    "minilm-top4": Shape("MiniLM-L6, real text, LoRA in the top 4 layers", 64, None, ("query", "value"), "top_4"),
    "roberta-base": Shape("RoBERTa-base shape, 8 x 128 tokens", 8, 128, ("query", "value")),
    "roberta-large": Shape("RoBERTa-large shape, 4 x 128 tokens", 4, 128, ("query", "value")),
    "gpt2-128": Shape("GPT-2 causal LM, 8 x 128 tokens", 8, 128, ("c_attn",)),
    "gpt2-512": Shape("GPT-2 causal LM, 2 x 512 tokens", 2, 512, ("c_attn",)),
}


@dataclass
class Bench:
    """A model with B trainable, one batch, and plain SGD."""

    model: nn.Module
    inputs: dict[str, Tensor]
    labels: Tensor
    causal: bool

    def __post_init__(self) -> None:
        self.trained = peft_model.set_trainable(self.model, {"B"})
        self.optimizer = torch.optim.SGD(self.trained, lr=1e-6)
        self.cache = PrefixCache(self.model, StateStore(MemoryBudget(CACHE_BYTES)))

    def losses(self, model: nn.Module, positions: Sequence[int]) -> Tensor:
        return self.example_losses(model(**self.inputs).logits)

    def cached_losses(self, model: nn.Module, positions: Sequence[int]) -> Tensor:
        with self.cache.reuse_states(model, self.inputs):
            return self.losses(model, positions)

    def example_losses(self, logits: Tensor) -> Tensor:
        if not self.causal:
            return functional.cross_entropy(logits, self.labels, reduction="none")
        return functional.cross_entropy(logits[:, :-1].mT, self.labels[:, 1:], reduction="none").mean(1)


def build(key: str, attention: str) -> Bench:
    shape = SHAPES[key]
    torch.manual_seed(0)
    base, inputs, labels = real_text(shape, attention) if shape.length is None else random_text(key, shape, attention)
    model = peft_model.attach(base, rank=8, lora_alpha=16, target_modules=shape.targets, lora_layers=shape.lora_layers)
    peft_model.write(model, initialize_factors(peft_model.read(model), init_a="orthonormal", init_b="kaiming", seed=0))
    return Bench(model.train(), inputs, labels, causal=key.startswith("gpt2"))


def real_text(shape: Shape, attention: str) -> tuple[PreTrainedModel, dict[str, Tensor], Tensor]:
    batch = next(batch for batch in load_test_batches(compose("")) if batch["input_ids"].shape[1] >= 28)
    model = load_classifier("embedded:minilm", num_labels=2, seed=0, options=LoadOptions(attention)).model
    inputs = {name: tensor[: shape.batch] for name, tensor in batch.items()}
    return model, inputs, inputs.pop("labels")


def random_text(key: str, shape: Shape, attention: str) -> tuple[PreTrainedModel, dict[str, Tensor], Tensor]:
    ids = torch.randint(3, 1000, (shape.batch, shape.length or 0))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if key.startswith("gpt2"):
        config = GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False)
        config._attn_implementation = attention
        return GPT2LMHeadModel(config), inputs, ids
    large = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
    config = RobertaConfig(**NO_DROPOUT, **(large if key == "roberta-large" else {}))
    config._attn_implementation = attention
    return RobertaForSequenceClassification(config), inputs, torch.randint(0, 2, (shape.batch,))


def non_private_step(bench: Bench) -> None:
    bench.optimizer.zero_grad(set_to_none=True)
    bench.losses(bench.model, range(len(bench.labels))).mean().backward()
    bench.optimizer.step()


def private_step(bench: Bench, per_example: GradSampleMode, cached: bool = False) -> None:
    count = len(bench.labels)
    losses = bench.cached_losses if cached else bench.losses
    plan = DPSGD(noise_multiplier=1.0, max_grad_norm=1.0, sample_rate=1.0, steps=1, physical_batch_size=count)
    train_dp_sgd(bench.model, bench.optimizer, losses, count, plan, SecureRandomness(), per_example)


class ExampleLoss(nn.Module):
    """A criterion for Opacus' ghost clipping, which needs one that can return per-example losses."""

    reduction = "mean"

    def __init__(self, bench: Bench) -> None:
        super().__init__()
        self.bench = bench

    def forward(self, logits: Tensor) -> Tensor:
        losses = self.bench.example_losses(logits)
        return losses if self.reduction == "none" else losses.mean()


def ghost_step(bench: Bench) -> None:
    count = len(bench.labels)
    wrapped = GradSampleModuleFastGradientClipping(
        bench.model, max_grad_norm=1.0, use_ghost_clipping=True, loss_reduction="mean"
    )
    optimizer = DPOptimizerFastGradientClipping(
        bench.optimizer, noise_multiplier=1.0, max_grad_norm=1.0, expected_batch_size=count
    )
    criterion = DPLossFastGradientClipping(wrapped, optimizer, ExampleLoss(bench))
    optimizer.zero_grad()
    criterion(wrapped(**bench.inputs).logits).backward()
    optimizer.step()
    wrapped.remove_hooks()
    for parameter in bench.model.parameters():
        parameter.grad = None
        for name in ("grad_sample", "summed_grad", "_norm_sample", "_forward_counter", "_current_grad_sample"):
            if hasattr(parameter, name):
                delattr(parameter, name)


MODES: dict[str, Callable[[Bench], None]] = {
    "PEFT, non-private": non_private_step,
    "fused": lambda bench: private_step(bench, fused_gradients),
    "fused, prefix cached": lambda bench: private_step(bench, fused_gradients, cached=True),
    "Opacus hooks": lambda bench: private_step(bench, opacus_hooks),
    "Opacus ghost clipping": ghost_step,
}


def modes(key: str) -> list[str]:
    """Return the names of the modes that apply: the prefix cache needs frozen layers below the lowest adapted one."""
    return [name for name in MODES if "prefix" not in name or SHAPES[key].lora_layers != "all"]
