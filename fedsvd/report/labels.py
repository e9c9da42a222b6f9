"""What a run is called in tables, reports and model cards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

HEAD_ONLY, ZERO_SHOT, UNTRAINED = "head only", "zero-shot", "untrained"


def method_label(config: Mapping[str, Any]) -> str:
    """Return the name of a run's method; a run that trains no factor has a name of its own.

    Args:
        config: Configuration values by dotted key; keys that an earlier version did not have have their defaults.
    """
    trains, head_rounds = config.get("train.trains", "both"), config.get("train.head_rounds", 0)
    if trains == "none":
        return ZERO_SHOT if config.get("train.head_init") == "zero_shot" else UNTRAINED
    if trains == "head" or 0 < config["train.num_rounds"] <= head_rounds:
        return HEAD_ONLY
    return str(config["method.name"])


def trains_factors(config: Mapping[str, Any]) -> bool:
    """Return whether a run trains factors, so that its method's name and options describe it."""
    return method_label(config) == str(config["method.name"])


def planned_rounds(config: Mapping[str, Any]) -> int:
    """Return the number of rounds that a run takes when it is complete."""
    return 0 if config.get("train.trains") == "none" else int(config["train.num_rounds"])


def clients_label(config: Mapping[str, Any]) -> str:
    """Return the number of clients that take part in a run, as in ``4 clients``."""
    count = len(config.get("federation.participants") or range(config["federation.num_clients"]))
    return "1 client" if count == 1 else f"{count} clients"
