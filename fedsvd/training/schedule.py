"""The clients' learning rate over rounds."""

from __future__ import annotations

import math

from fedsvd.config import TrainConfig


def learning_rate(config: TrainConfig, server_round: int, *, of_head: bool = False) -> float:
    """Return the learning rate of the factors or of the head in a round (1-based).

    It is the configured rate times `schedule_factor`, which depends only on the round and the configuration: a resumed
    run has the rates of an uninterrupted one.
    """
    rate = config.head_learning_rate if of_head and config.head_learning_rate else config.learning_rate
    return rate * schedule_factor(config, server_round)


def schedule_factor(config: TrainConfig, server_round: int) -> float:
    """Return the factor of the learning rates in round t (1-based) of T, with W rounds of warm-up.

    In the warm-up (t ≤ W) it is ``t / (W + 1)``. After it, with the progress ``p = (t − 1 − W) / (T − W)``, it is 1
    (``constant``), ``1 − p`` (``linear``) or ``(1 + cos(π p)) / 2`` (``cosine``; Loshchilov and Hutter 2017, arXiv
    1608.03983, Equation 5, without restarts). These are the schedules of transformers with rounds for steps, except
    that no round has a rate of 0, since it would spend privacy on nothing: the warm-up starts above 0, and the decay
    would reach 0 one round after the last.
    """
    warmup = config.warmup_rounds
    if server_round <= warmup:
        return server_round / (warmup + 1)
    progress = (server_round - 1 - warmup) / (config.num_rounds - warmup)
    match config.lr_scheduler_type:
        case "constant":
            return 1.0
        case "linear":
            return 1 - progress
        case "cosine":
            return (1 + math.cos(math.pi * progress)) / 2
