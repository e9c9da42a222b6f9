"""The schema of the groups ``model``, ``data`` and ``partition``."""

from __future__ import annotations

import string
from dataclasses import dataclass
from typing import Annotated, Literal

from fedsvd.config.types import Count, Fraction, Positive, Share
from fedsvd.config.validate import Matches, Range, check_fields
from fedsvd.errors import ConfigError


@dataclass(frozen=True)
class ModelConfig:
    """The base model and where its LoRA factors sit.

    Attributes:
        name: Name of the option.
        source: ``embedded:`` and minilm, smollm2, tiny, tiny-roberta or tiny-llama; a folder; or a hub model's id.
        rank: Rank r of every factor pair B (d_out, r), A (r, d_in).
        lora_alpha: The product B A is scaled by ``lora_alpha / rank``.
        task: ``sequence_classification``, or ``causal_lm``: answers are learnt word by word, prompts are only read.
        target_modules: Names of the linear layers that get factors; ``auto``: those that are usual for the model's
            family; ``all-linear``: all but the head.
        lora_layers: ``all``, or ``top_K``: factors in the K layers nearest the output only.
        lora_dropout: Dropout before A.
        max_length: Longest text, in tokens; what is beyond is cut off.
        attn_implementation: ``sdpa`` (fused), or ``eager`` (can be faster for short texts), as transformers has it.
        dtype: Of the frozen model: ``float32``, or ``bfloat16``, half the memory; what is trained stays float32.
        gradient_checkpointing: Compute states again in the backward pass: less memory, more time.
        chat_template: Put prompts into the tokenizer's chat template (``causal_lm``).
    """

    name: str
    source: str
    rank: Count = 8
    lora_alpha: Positive = 16.0
    task: Literal["sequence_classification", "causal_lm"] = "sequence_classification"
    target_modules: tuple[str, ...] | Literal["auto", "all-linear"] = "auto"
    lora_layers: Annotated[str, Matches(r"all|top_[1-9]\d*", "all, or top_K for the K layers nearest the output")] = (
        "all"
    )
    lora_dropout: Share = 0.0
    max_length: Count = 64
    attn_implementation: Literal["sdpa", "eager"] = "sdpa"
    dtype: Literal["float32", "bfloat16"] = "float32"
    gradient_checkpointing: bool = False
    chat_template: bool = False

    def __post_init__(self) -> None:
        check_fields(self, "model")
        if self.task == "causal_lm" and self.max_length < 8:
            raise ConfigError(
                f"model.max_length = {self.max_length} leaves no room for a prompt and an answer: give 8 or more."
            )


@dataclass(frozen=True)
class DataConfig:
    """The labelled texts.

    Attributes:
        name: An embedded data set, a file format for a user's own, ``hub``, or ``node``: each node brings its own.
        test_fraction: Share of the examples that is held out, where the data do not come split.
        min_abs_rating: Snippets whose mean rating (−4 … 4) is nearer to 0 than this are left out.
        domains: Of ``sentiment_domains``: ``movies``, ``products``, ``tweets``, ``editorials``.
        path: A user's own file, or the id on a hub.
        test_path: A file with held-out texts; null holds out ``test_fraction`` of ``path``.
        subset: Configuration of a data set on a hub.
        test_split: Split of a data set on a hub that is held out; null holds out ``test_fraction`` of ``train``.
        text_column: Column of the text, in a user's own data or on a hub.
        text_pair_column: Column of the second text of a pair; null where there is one.
        label_column: Column of the class; null where there is a ``response_column`` and no class.
        response_column: Column of the answers that a language model learns; null: the names of the classes are learnt.
        prompt_template: What a language model reads (``model.task=causal_lm``): words around ``{text}``, perhaps with
            ``{text_pair}`` and ``{choices}``, the names of the classes.
        labels: Classes of ``node``, in the order of their numbers; elsewhere they are those of the data.
        evaluate_on: ``test``, or ``validation``: a part of the training texts, which are then not trained on. Choose
            settings by the latter, and report on the former.
        validation_fraction: Share of the training texts in that part.
        max_train_examples: At most so many training examples; null for all.
        max_test_examples: At most so many held-out examples; null for all.
    """

    name: Literal[
        "movie_reviews", "sentiment_domains", "reuters_r8", "newsgroups", "bbc_news",
        "csv", "jsonl", "parquet", "arrow", "hub", "node",
    ]  # fmt: skip
    test_fraction: Fraction = 0.2
    min_abs_rating: Annotated[float, Range(0, 4, open_high=True)] = 0.5
    domains: tuple[str, ...] = ("movies", "products", "tweets", "editorials")
    path: str | None = None
    test_path: str | None = None
    subset: str | None = None
    test_split: str | None = "test"
    text_column: str = "text"
    text_pair_column: str | None = None
    label_column: str | None = "label"
    response_column: str | None = None
    prompt_template: str = "{text}"
    labels: tuple[str, ...] | None = None
    evaluate_on: Literal["test", "validation"] = "test"
    validation_fraction: Fraction = 0.1
    max_train_examples: Count | None = None
    max_test_examples: Count | None = None

    def __post_init__(self) -> None:
        check_fields(self, "data")
        if self.label_column is None and self.response_column is None:
            raise ConfigError(
                "data.label_column = None and data.response_column = None leave nothing to learn: name the column of "
                "the classes, or that of the answers."
            )
        _check_template(self.prompt_template)


@dataclass(frozen=True)
class PartitionConfig:
    """How the training examples are split among the clients.

    Attributes:
        name: ``iid``; ``dirichlet``: each class is dealt out by shares drawn from a Dirichlet distribution;
            ``by_column``: natural silos, one for each value of a column; ``quantity_skew``: alike but for their sizes.
        dirichlet_alpha: Its concentration; the smaller, the more unlike the clients.
        column: The column of ``by_column``.
        skew: How sizes grow from client to client: ``linear``, ``square`` or ``exponential``.
        min_partition_size: Fewest examples of a client.
    """

    name: Literal["iid", "dirichlet", "by_column", "quantity_skew"]
    dirichlet_alpha: Positive = 0.5
    column: str = "domain"
    skew: Literal["linear", "square", "exponential"] = "linear"
    min_partition_size: Count = 10

    def __post_init__(self) -> None:
        check_fields(self, "partition")


def _check_template(template: str) -> None:
    try:
        fields = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise ConfigError(
            f"data.prompt_template = {template!r} cannot be read ({error}): write {{{{ and }}}} for braces."
        ) from error
    if fields.count("text") != 1 or "{text}" not in template or not set(fields) <= {"text", "text_pair", "choices"}:
        raise ConfigError(
            f"data.prompt_template = {template!r} is not allowed: it needs {{text}} once, and may have {{text_pair}} "
            "and {choices} (the names of the classes) beside it."
        )
