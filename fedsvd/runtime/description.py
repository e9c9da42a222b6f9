"""The description of a run's method and data that its record stores."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from fedsvd import data
from fedsvd.config import Config
from fedsvd.methods import build_run_method
from fedsvd.runtime.base_model import describe_pooling, load_public_corpus
from fedsvd.runtime.class_weights import describe_class_weights
from fedsvd.runtime.data import left_out, load_held_out, load_partition, partition_counts
from fedsvd.runtime.model import head_choice
from fedsvd.runtime.round_parts import sent_parts, trained_parts

logger = logging.getLogger(__name__)


def describe_run(config: Config) -> dict[str, Any]:
    """Describe a run: what clients train and send in any of its rounds, the held-out set, and the rows left out.

    Rows of the user's data that are left out are also logged as warnings.
    """
    method = build_run_method(config)
    rounds, head = range(1, config.train.rounds + 1), head_choice(config)
    return {
        "parts_trained": sorted({part for number in rounds for part in trained_parts(method, config, number)}),
        "parts_sent": sorted({part for number in rounds for part in sent_parts(method, config, number)}),
        "pooling": describe_pooling(config.model, head.kept is not None),
        "checkpoint_head": head.summary or None,
        "public_text": _describe_public_text(config),
        "class_weights": describe_class_weights(config),
        "left_out": _report_left_out(config),
        "held_out": describe_held_out(config),
    }


def describe_held_out(config: Config) -> dict[str, Any]:
    """Return the number of held-out examples and their fingerprint."""
    held_out = load_held_out(config)
    return {"num_examples": len(held_out), "fingerprint": data.fingerprint(held_out)}


def _describe_public_text(config: Config) -> dict[str, Any] | None:
    """Return name, fingerprint and uses of the public text; None if the run does not read it."""
    if not config.public_text_uses:
        return None
    return {**load_public_corpus(config.model.public_text).corpus, "uses": list(config.public_text_uses)}


def describe_classifier(config: Config) -> Iterator[str]:
    """Yield one line each on the pooling, the checkpoint's head and the class weights, for the console."""
    head = head_choice(config)
    if pooling := describe_pooling(config.model, head.kept is not None):
        yield f"pooling: {pooling['summary']}"
    if head.summary:
        yield f"head: {head.summary}"
    if weights := describe_class_weights(config):
        values = ", ".join(f"{name} {weight:.3g}" for name, weight in weights["weights"].items())
        yield f"class weights: {values} (from {weights['source']})"


def describe_reports(config: Config) -> Iterator[str]:
    """Yield a line for the console if the clients report a bound on ε instead of its value."""
    privacy, federation = config.privacy, config.federation
    if privacy.name == "dp_sgd" and config.train.sample_rate is None and not federation.sends_counts:
        limit = "" if privacy.max_epsilon is None else f"privacy.max_epsilon = {privacy.max_epsilon:g}, or its own"
        yield (
            "ε: clients do not send their number of examples, which the exact value would tell; they report ε rounded "
            f"up to a multiple of privacy.target_epsilon = {privacy.target_epsilon:g}, or to a client's limit if that "
            f"is less ({limit or 'max-epsilon of its node'}); exact with train.sample_rate"
        )


def _report_left_out(config: Config) -> list[dict[str, Any]]:
    items = left_out(config)
    for item in items:
        logger.warning("%s", item)
    return [item.as_dict() for item in items]


def describe_partitions(config: Config) -> dict[str, Any]:
    """Describe each simulated client's data: its number of examples, in total and per class, and its fingerprint."""
    counts = partition_counts(config)
    parts = [load_partition(config, number) for number in range(config.federation.num_clients)]
    return {
        "clients": [
            {"num_examples": len(part), "examples_by_class": count, "fingerprint": data.fingerprint(part)}
            for count, part in zip(counts, parts, strict=True)
        ]
    }
