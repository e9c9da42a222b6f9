"""The description of a run's method and data that its record stores."""

from __future__ import annotations

from typing import Any

from fedsvd import data
from fedsvd.config import Config
from fedsvd.methods import build_method
from fedsvd.runtime.data import load_held_out, load_partition, partition_counts


def describe_run(config: Config) -> dict[str, Any]:
    """Describe a run: the parts that clients train and send in any of its rounds, and the held-out set."""
    method, held_out = build_method(config.method), load_held_out(config)
    rounds = range(1, config.train.num_rounds + 1)
    head = {"head"} if config.train.head == "private" else set()
    return {
        "parts_trained": sorted(head.union(*(method.trains(number) for number in rounds))),
        "parts_sent": sorted(head.union(*(method.uplink(number) for number in rounds))),
        "held_out": {"num_examples": len(held_out), "fingerprint": data.fingerprint(held_out)},
    }


def describe_partitions(config: Config) -> dict[str, Any]:
    """Describe each simulated client's data: its number of examples per class and its fingerprint."""
    counts = partition_counts(config)
    parts = [load_partition(config, number) for number in range(config.federation.num_clients)]
    return {
        "clients": [
            {"examples_by_class": count, "fingerprint": data.fingerprint(part)}
            for count, part in zip(counts, parts, strict=True)
        ]
    }
