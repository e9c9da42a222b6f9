"""Metrics of predictions on a held-out set; scikit-learn computes them.

A metric that is undefined, such as AUROC without examples of a class, is left out.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def class_metrics(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Return accuracy, macro-F1 and AUROC of a classifier.

    Macro-F1 is the mean over the classes that occur or are predicted. AUROC is that of the second class for two
    classes, otherwise the mean over classes, each against all others; it needs examples of every class.

    Args:
        logits: Shape (examples, classes).
        labels: Shape (examples,).
    """
    predicted = logits.argmax(-1)
    metrics = {"accuracy": int((predicted == labels).sum()) / len(labels)}
    if not torch.isfinite(logits).all():
        return metrics
    # Imported late: a process that evaluates nothing does not need it.
    from sklearn.metrics import f1_score

    metrics["macro_f1"] = float(f1_score(labels.numpy(), predicted.numpy(), average="macro"))
    scores, truth = logits.double().softmax(-1), functional.one_hot(labels, logits.shape[1])
    # With two classes, both have the same AUROC.
    columns = slice(1, 2) if logits.shape[1] == 2 else slice(None)
    return metrics | auroc(scores[:, columns], truth[:, columns])


def auroc(scores: Tensor, truth: Tensor) -> dict[str, float]:
    """Return the mean over columns of the area under the ROC curve; nothing if a column has examples of one kind only.

    Args:
        scores: Shape (examples, columns).
        truth: 1 for positive examples and 0 for negative ones, same shape.
    """
    positives = truth.sum(0)
    if not bool(((positives > 0) & (positives < len(truth))).all()):
        return {}
    from sklearn.metrics import roc_auc_score

    areas = [roc_auc_score(truth[:, i].numpy(), scores[:, i].numpy()) for i in range(truth.shape[1])]
    return {"auroc": float(sum(areas) / len(areas))}
