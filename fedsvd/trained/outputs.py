"""What a model with a head predicts for a text, by task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional

from fedsvd.report.literal import markdown_text
from fedsvd.training.objectives import Labels


@dataclass(frozen=True)
class Output:
    """How the outputs of a task's model are read.

    Attributes:
        decode: Function from the logits of a text, shape (classes,), or of one of its tokens, to what is predicted.
        classes: Function from logits, shape (texts, classes), and labels to two masks of the predicted and of the right
            classes, of this shape; None if no classes are predicted.
        description: Function from what an input is, ``text`` or ``pair of texts``, and the names of the classes to a
            sentence for the model card.
        usage: Python code for the model card that prints the predictions for ``logits`` and the names ``classes``.
    """

    decode: Callable[[Tensor, Labels], Any]
    classes: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None
    description: Callable[[str, Sequence[str]], str]
    usage: str


def summary(row: Mapping[str, Any]) -> str:
    """Return a prediction on one line for the console."""
    if "answer" in row:
        return str(row["answer"])
    if "tags" in row:
        tagged = zip(row["tokens"], row["tags"], strict=True)
        return " ".join(f"{word}/{tag}" for word, tag in tagged if tag not in ("O", None)) or "no span"
    if "prediction" in row:
        return f"{row['prediction']:.4g}"
    if "labels" in row:
        probabilities = row["probabilities"]
        return ", ".join(f"{name} {probabilities[name]:.1%}" for name in row["labels"]) or "no class"
    return f"{row['label']}  {row['probability']:.1%}"


def _decode_class(logits: Tensor, labels: Labels) -> dict[str, Any]:
    probabilities = logits.softmax(-1)
    best = int(probabilities.argmax())
    return {
        "label": labels.classes[best],
        "probability": probabilities[best].item(),
        "probabilities": dict(zip(labels.classes, probabilities.tolist(), strict=True)),
    }


def _decode_classes(logits: Tensor, labels: Labels) -> dict[str, Any]:
    probabilities = dict(zip(labels.classes, logits.sigmoid().tolist(), strict=True))
    return {
        "labels": [name for name, value in probabilities.items() if value >= 0.5],
        "probabilities": probabilities,
    }


def _decode_value(logits: Tensor, labels: Labels) -> dict[str, Any]:
    low, high = labels.label_range or (0.0, 1.0)
    return {"prediction": low + (high - low) * logits.item()}


def _one_class(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    count = logits.shape[1]
    return functional.one_hot(logits.argmax(-1), count).bool(), functional.one_hot(labels, count).bool()


def _names(classes: Sequence[str]) -> str:
    return ", ".join(map(markdown_text, classes))


OUTPUTS: Mapping[str, Output] = {
    "sequence_classification": Output(
        _decode_class,
        _one_class,
        lambda unit, classes: f"It classifies each {unit} as one of: {_names(classes)}.",
        "print([classes[index] for index in logits.argmax(-1)])",
    ),
    "multi_label_classification": Output(
        _decode_classes,
        lambda logits, labels: (logits >= 0, labels.bool()),
        lambda unit, classes: f"It assigns any number of these classes to a {unit}: {_names(classes)}.",
        "print([[name for name, logit in zip(classes, row) if logit >= 0] for row in logits])",
    ),
    "token_classification": Output(
        lambda logits, labels: labels.classes[int(logits.argmax())],
        None,
        lambda unit, classes: f"It tags each word of a {unit}, at its first token, as: {_names(classes)}.",
        "",
    ),
    "regression": Output(
        _decode_value, None, lambda unit, classes: f"It predicts a number for a {unit}.", "print(logits[:, 0])"
    ),
}
