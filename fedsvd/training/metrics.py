"""Metrics of predictions on a held-out set, computed by scikit-learn, SciPy and seqeval.

A metric that is undefined, such as AUROC without examples of a class, is left out.
"""

from __future__ import annotations

from collections.abc import Sequence

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


def label_metrics(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Return subset accuracy, macro-F1, micro-F1 and AUROC where a text has any number of classes.

    A class is predicted with probability 1/2 or more. Subset accuracy is the fraction of texts all of whose classes are
    right. Both F1 are over the classes that occur or are predicted, AUROC is the mean over all classes.

    Args:
        logits: Shape (examples, classes).
        labels: 1.0 for the classes of a text and 0.0 for the others, same shape.
    """
    predicted, truth = logits >= 0, labels.bool()
    metrics = {"accuracy": int((predicted == truth).all(-1).sum()) / len(labels)}
    if not torch.isfinite(logits).all():
        return metrics
    from sklearn.metrics import f1_score

    if columns := (predicted | truth).any(0).nonzero().flatten().tolist():
        for average in ("macro", "micro"):
            score = f1_score(truth.numpy(), predicted.numpy(), labels=columns, average=average)
            metrics[f"{average}_f1"] = float(score)
    return metrics | auroc(logits, truth)


def value_metrics(predictions: Tensor, labels: Tensor, scale: float) -> dict[str, float]:
    """Return the root-mean-square error, and Spearman's and Pearson's correlation unless one side is constant.

    Args:
        predictions: Shape (examples, 1).
        labels: Shape (examples,).
        scale: Factor from the trained scale to the original one, for the error.
    """
    values, truth = predictions[:, 0].double(), labels.double()
    metrics = {"rmse": scale * float((values - truth).square().mean().sqrt())}
    if not torch.isfinite(values).all():
        return metrics
    from scipy.stats import pearsonr, spearmanr

    if values.min() < values.max() and truth.min() < truth.max():
        metrics["spearman"] = float(spearmanr(values.numpy(), truth.numpy()).statistic)
        # Centered first: SciPy warns about values that are nearly constant.
        metrics["pearson"] = float(pearsonr((values - values.mean()).numpy(), truth.numpy()).statistic)
    return metrics


def span_metrics(predicted: Sequence[Sequence[str]], right: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return F1, precision and recall of spans, computed by seqeval as by CoNLL's script, and the accuracy of tags.

    F1 is left out if there are no spans, precision if none is predicted, recall if none is right.

    Args:
        predicted: The predicted tags of each text.
        right: Its right tags.
    """
    from seqeval.metrics import f1_score, precision_score, recall_score

    pairs = [pair for texts in zip(predicted, right, strict=True) for pair in zip(*texts, strict=True)]
    metrics = {"accuracy": sum(first == second for first, second in pairs) / len(pairs)} if pairs else {}
    is_span = [any(tag != "O" for tags in side for tag in tags) for side in (predicted, right)]
    functions = {"span_f1": f1_score, "span_precision": precision_score, "span_recall": recall_score}
    defined = dict(zip(functions, (any(is_span), *is_span), strict=True))
    for name, function in functions.items():
        if defined[name]:
            metrics[name] = float(function(right, predicted, zero_division=0))
    return metrics


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
