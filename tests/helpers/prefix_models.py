"""Small models of three architectures, and batches for the cache of frozen layers."""

from collections.abc import Sequence

import peft
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    MPNetConfig,
    MPNetForSequenceClassification,
    PreTrainedModel,
)

from fedsvd.lora import peft_model
from fedsvd.lora.initialization import initialize_factors
from fedsvd.training.prefix_cache import PrefixCache

LENGTHS = [3, 7, 4, 7, 2, 5]
SIZES = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2,
         "intermediate_size": 24, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # fmt: skip
WIDTH, LARGE = 16, 2**20


def base(kind: str) -> tuple[PreTrainedModel, list[str], list[str]]:
    if kind == "gpt2":
        config = GPT2Config(vocab_size=50, n_embd=WIDTH, n_layer=3, n_head=2, resid_pdrop=0.0, embd_pdrop=0.0,
                            attn_pdrop=0.0, pad_token_id=0)  # fmt: skip
        return GPT2ForSequenceClassification(config), ["c_attn"], ["score"]
    if kind == "mpnet":
        return MPNetForSequenceClassification(MPNetConfig(**SIZES, pad_token_id=0)), ["q", "v"], ["classifier"]
    return BertForSequenceClassification(BertConfig(**SIZES)), ["query", "value"], ["classifier"]


def adapted(kind: str = "bert", lora_layers: str = "top_1", target: str | None = None) -> peft.PeftModel:
    torch.manual_seed(0)
    model, targets, head = base(kind)
    targets = [target] if target else targets
    model = peft_model.attach(
        model, rank=4, lora_alpha=16, target_modules=targets, head_modules=head, lora_layers=lora_layers
    )
    peft_model.write(model, initialize_factors(peft_model.read(model), init_a="orthonormal", init_b="kaiming", seed=0))
    peft_model.set_trainable(model, {"B", "head"})
    return model.eval()


def batch(positions: Sequence[int], left: bool = False) -> dict[str, Tensor]:
    longest = max(LENGTHS[i] for i in positions)
    ids = torch.zeros(len(positions), longest, dtype=torch.long)
    for row, i in enumerate(positions):
        text = torch.randint(1, 50, (LENGTHS[i],), generator=torch.Generator().manual_seed(i))
        ids[row, slice(longest - LENGTHS[i], None) if left else slice(LENGTHS[i])] = text
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


def losses(model: nn.Module, positions: Sequence[int], cache: PrefixCache | None = None) -> Tensor:
    inputs = batch(positions)
    labels = torch.tensor([i % 2 for i in positions])
    if cache is None:
        return nn.functional.cross_entropy(model(**inputs).logits, labels, reduction="none")
    with cache.reuse_states(model, inputs):
        return nn.functional.cross_entropy(model(**inputs).logits, labels, reduction="none")


def lowest_layer_rows(model: nn.Module) -> list[int]:
    """Return a list that collects the batch size of each further forward pass of the lowest layer."""
    rows: list[int] = []
    inner = next(module for name, module in model.named_modules() if name.endswith(("layer.0.attention", "h.0.attn")))
    inner.register_forward_pre_hook(lambda module, args, kwargs: rows.append(len(args[0])), with_kwargs=True)
    return rows
