"""The schema of the group ``model``."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, PositiveFloat
from pydantic.dataclasses import dataclass

from fedsvd.config import plugins
from fedsvd.config.group import ConfigGroup
from fedsvd.config.task import TASKS
from fedsvd.config.types import Count, FractionOrZero, Names, Text
from fedsvd.errors import ConfigError

# The largest number of tokens of a generated answer, where nothing else is given.
MAX_NEW_TOKENS = 48

LoraLayers = Annotated[
    str, Field(pattern=r"^(all|top_[1-9][0-9]*)$", description="all, or top_K for the K layers nearest the output")
]

PoolingLayer = Annotated[
    Literal["last"] | Annotated[int, Field(gt=0)],
    Field(description="last, or the number of a layer, counted from 1"),
]


def _check_added(name: str) -> str:
    if name not in plugins.names(plugins.HEADS):
        raise ValueError("unknown head")
    return name


HeadName = Annotated[
    Literal["linear"] | Annotated[str, AfterValidator(_check_added)],
    Field(description="linear, or a head of another package that is installed"),
]


@dataclass(frozen=True)
class ModelConfig(ConfigGroup):
    """The base model and the placement of its LoRA factors.

    Attributes:
        name: Name of the option.
        source: ``embedded:`` followed by minilm, mpnet, smollm2, tiny, tiny-roberta or tiny-llama; a directory; or the
            id of a model on the Hugging Face Hub.
        rank: Rank r of every factor pair B (d_out, r), A (r, d_in).
        lora_alpha: The product B A is scaled by ``lora_alpha / rank``.
        rslora: Scale it by ``lora_alpha / √rank`` instead, so that updates do not shrink with the rank (rsLoRA).
        task: ``sequence_classification``: one class per text; ``multi_label_classification``: any number of classes per
            text; ``token_classification``: a tag per word, of spans such as names; ``regression``: a number per text;
            or ``causal_lm``: generate answers; the loss covers the tokens of the answer, not those of the prompt.
        target_modules: Names of the linear layers that get factors; ``auto``: the usual layers of the model's
            architecture; ``all-linear``: all but the head.
        lora_layers: ``all``, or ``top_K``: factors in the K layers nearest the output only.
        lora_dropout: Dropout probability before A.
        max_length: Maximum length of a text in tokens; longer texts are truncated. At most the number of positions of
            a model with position embeddings.
        attn_implementation: Attention implementation of transformers: ``sdpa`` (fused), ``eager`` (can be faster for
            short texts), ``flash_attention_2`` (bfloat16 on CUDA, with the package flash-attn), or ``auto``: ``sdpa``
            where the architecture has it, else ``eager``.
        dtype: Data type of the frozen model: ``float32``, or ``bfloat16``, which needs half the memory; the trained
            parameters are always float32.
        quantization: ``none``; ``nf4`` (4 bits) or ``int8``: quantize the frozen linear layers with bitsandbytes, an
            optional package; ``torchao``: the checkpoint has 8-bit weights of torchao, another optional package.
            ``dtype`` is then the data type of activations and of the other weights.
        device_map: ``none``, or ``auto``: distribute the layers of the model over all GPUs of the machine.
        gradient_checkpointing: Recompute activations in the backward pass: less memory, more time.
        chat_template: Format prompts with the tokenizer's chat template (``causal_lm``).
        pooling: The tokens that a classifier reads: ``first``, ``mean`` or ``last``; ``auto``: what the checkpoint was
            trained for; ``stock``: what the architecture's class in transformers does.
        pooling_layer: The layer whose hidden states a classifier reads: ``last``, or a number from 1; layers above it
            are not computed.
        standardize: ``none``, or ``public``: center and half-whiten a classifier's features by statistics of public
            text.
        head: What maps a classifier's features to logits: ``linear``, or a head that another package adds (see
            CONTRIBUTING.md), for which ``pooling`` is ``first``, ``mean`` or ``last``.
        public_text: The text of ``standardize=public``, ``method.init_a=public_pca``,
            ``method.init_b=public_jacobian``, ``privacy.project_public_mean=true`` and
            ``privacy.standardize_inputs=true``: ``embedded:bbc_news``, or a file with one text per line (or ``.jsonl``
            with the key ``text``), the same on every machine. It must be public: privacy does not cover it.
    """

    group: ClassVar[str] = "model"

    name: Text
    source: Text
    rank: Count = 8
    lora_alpha: PositiveFloat = 16.0
    rslora: bool = False
    task: Literal[
        "sequence_classification", "multi_label_classification", "token_classification", "regression", "causal_lm"
    ] = "sequence_classification"  # fmt: skip
    target_modules: Names | Literal["auto", "all-linear"] = "auto"
    lora_layers: LoraLayers = "all"
    lora_dropout: FractionOrZero = 0.0
    max_length: Count = 64
    attn_implementation: Literal["auto", "sdpa", "flash_attention_2", "eager"] = "sdpa"
    dtype: Literal["float32", "bfloat16"] = "float32"
    quantization: Literal["none", "nf4", "int8", "torchao"] = "none"
    device_map: Literal["none", "auto"] = "none"
    gradient_checkpointing: bool = False
    chat_template: bool = False
    # These defaults, unlike those of the YAML files, are what runs did before the keys existed.
    pooling: Literal["auto", "first", "mean", "last", "stock"] = "stock"
    pooling_layer: PoolingLayer = "last"
    standardize: Literal["none", "public"] = "none"
    head: HeadName = "linear"
    public_text: Text = "embedded:bbc_news"

    def __post_init__(self) -> None:
        if self.attn_implementation == "flash_attention_2" and self.dtype == "float32":
            raise ConfigError(
                "model.attn_implementation = flash_attention_2 is not possible with model.dtype = float32: its kernels "
                "take bfloat16. Set model.dtype=bfloat16, or model.attn_implementation=auto."
            )
        if self.task == "causal_lm" and self.max_length < 8:
            raise ConfigError(
                f"model.max_length = {self.max_length} leaves no room for a prompt and an answer: give 8 or more."
            )
        _check_pooling(self)
        if self.head != "linear" and self.pooling not in ("first", "mean", "last"):
            raise ConfigError(
                f"model.head = {self.head} is not possible with model.pooling = {self.pooling}: it reads pooled "
                "features. Set model.pooling to mean, first or last, or model.head to linear."
            )


def _check_pooling(model: ModelConfig) -> None:
    """Reject settings of pooled features where there are none."""
    reads_tokens = TASKS[model.task].reads_tokens
    if not reads_tokens and model.pooling != "stock":
        return
    defaults = {"pooling_layer": "last", "standardize": "none"}
    if reads_tokens and model.pooling not in ("auto", "stock"):
        raise ConfigError(
            f"model.pooling = {model.pooling} is not possible with model.task = {model.task}, which reads every token: "
            "set it to auto, or use model.task=sequence_classification."
        )
    for key, default in defaults.items():
        if getattr(model, key) != default:
            raise ConfigError(
                f"model.{key} = {getattr(model, key)} is not possible with model.task = {model.task} and "
                f"model.pooling = {model.pooling}: set it to {default}, or use model.task=sequence_classification and "
                "model.pooling=auto."
            )
