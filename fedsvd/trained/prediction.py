"""Predictions of a finished run's model: outputs of its head, such as classes, or generated answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch
from datasets import ClassLabel, Dataset
from torch import Tensor

from fedsvd import data
from fedsvd.config.model import MAX_NEW_TOKENS
from fedsvd.data.conversations import USER, Turn, dump_conversation, load_conversation, unanswered
from fedsvd.errors import ConfigError, DataError
from fedsvd.trained.inputs import check_inputs
from fedsvd.trained.outputs import OUTPUTS
from fedsvd.trained.run import TrainedModel, TrainedRun
from fedsvd.training.generation import generate, prompt_limit
from fedsvd.training.loop import model_inputs, to_device


def predict(
    loaded: TrainedModel,
    texts: Sequence[str] | Sequence[Sequence[Turn]] | Sequence[Sequence[str]],
    pairs: Sequence[str] | None = None,
    batch_size: int = 32,
    on_text: Callable[[str], None] | None = None,
    max_new_tokens: int | None = None,
    names: Sequence[str] | None = None,
) -> Iterator[dict[str, Any]]:
    """Predict for each text the columns of `fedsvd.trained.outputs`, such as its class, or the generated answer.

    The columns of an answer are ``answer`` and ``is_complete``: whether the model ended it before ``max_new_tokens``.

    Args:
        loaded: The model.
        texts: The texts. For a model trained on conversations, a text is a turn of the user, and texts can be
            conversations (lists of turns with ``role`` and ``content``): if one ends with an assistant turn, this turn
            is generated anew. For token classification, texts can be lists of words; others are split at white space.
        pairs: The second text of each pair, for a model trained on text pairs.
        batch_size: Number of texts per forward pass.
        on_text: For a language model: called with each piece of an answer as soon as it is generated.
        max_new_tokens: For a language model: the largest number of tokens of an answer; None: 48.
        names: What the conversations are called in messages, such as the rows of a file; None: ``texts[0]``, ….

    Returns:
        The predictions, each computed when it is needed.

    Raises:
        ConfigError: The texts or pairs are not what the model expects, as for `fedsvd.trained.inputs.check_inputs`, or
            ``max_new_tokens`` is below 1, or given for a model that generates no text.
        DataError: A conversation is invalid, or the chat template cannot render it, or a word is blank.
    """
    items, second = check_inputs(loaded.run.config, texts, pairs)
    check_max_new_tokens(loaded.run, max_new_tokens)
    read: Callable[[TrainedModel, Dataset], Iterator[dict[str, Any]]] = _read_outputs
    if loaded.run.generates_text:
        read = partial(_generate, on_text=on_text, max_new_tokens=max_new_tokens or MAX_NEW_TOKENS)
    batch_size = batch_size if on_text is None else 1
    if loaded.run.config.data.row_format == "messages":
        rows = unanswered_dataset(items)
        # Of all at once: an error in a later one must not end the output of the ones before.
        data.check_conversations(rows, loaded.tokenizer, names or [f"texts[{index}]" for index in range(len(items))])
    elif loaded.run.config.model.task == "token_classification":
        read, rows = _read_tags, Dataset.from_dict({"text": [_words(text) for text in items]})
    else:
        rows = unlabeled_dataset(items, second, loaded.run.classes)
    starts = range(0, len(rows), batch_size)
    batches = (rows.select(range(start, min(start + batch_size, len(rows)))) for start in starts)
    return chain.from_iterable(read(loaded, batch) for batch in batches)


def check_max_new_tokens(run: TrainedRun, max_new_tokens: int | None) -> None:
    """Check the largest number of tokens of an answer; raise `ConfigError` if it is below 1 or has no effect."""
    if max_new_tokens is None:
        return
    if not run.generates_text:
        raise ConfigError(f"max_new_tokens = {max_new_tokens} has no effect: this run's model generates no text.")
    if max_new_tokens < 1:
        raise ConfigError(f"max_new_tokens = {max_new_tokens} is invalid: give an integer ≥ 1.")


def unlabeled_dataset(texts: Sequence[str], pairs: Sequence[str] | None, classes: Sequence[str]) -> Dataset:
    """Return unlabeled texts as a data set; all labels are 0 and have no meaning."""
    columns: dict[str, list[Any]] = {"text": list(texts), **({} if pairs is None else {"text_pair": list(pairs)})}
    label = ClassLabel(names=list(classes))
    return Dataset.from_dict(columns).add_column("label", [0] * len(texts), feature=label)


def unanswered_dataset(conversations: Sequence[Any]) -> Dataset:
    """Return conversations, or turns of a user, up to the turn before a last one of the assistant, as a data set."""
    rows = [[{"role": USER, "content": item}] if isinstance(item, str) else list(item) for item in conversations]
    return Dataset.from_dict({"messages": [dump_conversation(unanswered(turns)) for turns in rows]})


@torch.inference_mode()
def class_logits(loaded: TrainedModel, rows: Dataset) -> Tensor:
    """Return the class logits of each row, shape (rows, classes), float32 on the CPU."""
    examples = data.tokenize(rows, loaded.tokenizer, loaded.run.config.model.max_length)
    batch = to_device(data.collate(list(examples), loaded.tokenizer), loaded.device)
    logits: Tensor = loaded.model(**model_inputs(batch)).logits
    return logits.float().cpu()


def _read_outputs(loaded: TrainedModel, rows: Dataset) -> Iterator[dict[str, Any]]:
    decode = OUTPUTS[loaded.run.config.model.task].decode
    for row, logits in zip(_texts(rows), class_logits(loaded, rows), strict=True):
        yield {**row, **decode(logits, loaded.run.labels)}


@torch.inference_mode()
def _read_tags(loaded: TrainedModel, rows: Dataset) -> Iterator[dict[str, Any]]:
    """Yield the words of each text and their tags; None for words beyond ``model.max_length``."""
    max_length, decode = loaded.run.config.model.max_length, OUTPUTS[loaded.run.config.model.task].decode
    located = [data.locate_words(words, loaded.tokenizer, max_length) for words in rows["text"]]
    examples = [{"input_ids": ids, "labels": 0} for ids, _ in located]
    batch = to_device(data.collate(examples, loaded.tokenizer), loaded.device)
    logits = loaded.model(**model_inputs(batch)).logits.float().cpu()
    for words, (_, positions), scores in zip(rows["text"], located, logits, strict=True):
        tags = [None if i is None else decode(scores[i], loaded.run.labels) for i in positions]
        yield {"tokens": list(words), "tags": tags}


def _words(text: str | Sequence[str]) -> list[str]:
    words = text.split() if isinstance(text, str) else list(text)
    if not all(word.strip() for word in words):
        raise DataError(f"{words!r} has a blank word: remove it.")
    return words


def _generate(
    loaded: TrainedModel, rows: Dataset, *, on_text: Callable[[str], None] | None, max_new_tokens: int
) -> Iterator[dict[str, Any]]:
    config, tokenizer = loaded.run.config, loaded.tokenizer
    limit = prompt_limit(loaded.model, config.model.max_length, max_new_tokens)
    prompts = [prompt.ids for prompt in data.build_prompts(rows, config.data, config.model, tokenizer, limit)]
    stops = data.stop_tokens(config.data, tokenizer)
    answers = generate(
        loaded.model, tokenizer, prompts, max_new_tokens=max_new_tokens, stop_tokens=stops, on_text=on_text
    )
    for row, answer in zip(_texts(rows), answers, strict=True):
        yield {**row, "answer": answer.text, "is_complete": answer.is_complete}


def _texts(rows: Dataset) -> Iterator[Mapping[str, Any]]:
    """Yield the text columns of each row, or its conversation."""
    if "messages" in rows.column_names:
        yield from ({"messages": load_conversation(text)} for text in rows["messages"])
        return
    names = [name for name in ("text", "text_pair") if name in rows.column_names]
    for row in rows:
        yield {name: row[name] for name in names}
