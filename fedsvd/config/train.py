"""The schema of the group ``train``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fedsvd.config.types import Count, NonNegative, Positive, Share, WholeNumber
from fedsvd.config.validate import check_fields
from fedsvd.errors import ConfigError


@dataclass(frozen=True)
class TrainConfig:
    """Rounds, local steps and the clients' optimiser.

    Attributes:
        optimizer: ``sgd`` or ``adamw``; a new one each round.
        learning_rate: Step size.
        lr_scheduler_type: ``constant``, or ``linear``: ``learning_rate · (1 − (t−1)/T)`` in round t of T.
        momentum: Momentum of SGD.
        weight_decay: Weight decay.
        num_rounds: Rounds of the federation.
        local_steps: Optimiser steps of a client in a round.
        batch_size: Expected size of a Poisson batch.
        physical_batch_size: Most examples in memory at once; larger batches are accumulated.
        eval_batch_size: Examples in a batch of the evaluation.
        eval_every: Evaluate after every so many rounds, and after the last.
        grad_sample_mode: How per-example gradients are formed: ``fused`` (at the price of plain training), ``hooks``
            (Opacus' own, for any layer it knows), or ``auto``: fused where the model allows it.
        server_optimizer: What the server makes of the clients' mean update: ``none`` (takes it), ``momentum`` or
            ``adam``; see `server.server_optimizer`.
        server_learning_rate: Its step size.
        server_momentum: Its β.
        server_beta2: β₂ of ``adam``.
        server_tau: τ of ``adam``, added to the root of its second moment.
        prefix_cache_mib: Memory of a process for the states of what lies below the lowest adapted layer, computed once
            for each example; 0 computes them each time.
        head: The classifier head: ``frozen`` as it was drawn, or ``private``: trained and sent like the factors. A
            language model has none.
        clip_grad_norm: Without privacy, largest norm of a batch's gradient; null for none. (With it, each example's is
            clipped: ``privacy.max_grad_norm``.)
        packing: Put a language model's short sequences into longer ones, up to ``model.max_length``. A packed sequence
            counts as one example then, which is why example-level privacy goes without.
    """

    optimizer: Literal["sgd", "adamw"]
    learning_rate: Positive
    num_rounds: Count
    local_steps: Count
    batch_size: Count
    lr_scheduler_type: Literal["constant", "linear"] = "constant"
    momentum: Share = 0.0
    weight_decay: NonNegative = 0.0
    physical_batch_size: Count = 128
    eval_batch_size: Count = 128
    eval_every: Count = 1
    grad_sample_mode: Literal["auto", "fused", "hooks"] = "auto"
    prefix_cache_mib: WholeNumber = 1024
    head: Literal["frozen", "private"] = "frozen"
    clip_grad_norm: Positive | None = None
    packing: bool = False
    server_optimizer: Literal["none", "momentum", "adam"] = "none"
    server_learning_rate: Positive = 1.0
    server_momentum: Share = 0.9
    server_beta2: Share = 0.99
    server_tau: Positive = 1e-3

    def __post_init__(self) -> None:
        check_fields(self, "train")
        if self.optimizer == "adamw" and self.momentum:
            raise ConfigError(
                f"train.momentum = {self.momentum} is not allowed with train.optimizer = adamw, which has no momentum: "
                "set train.momentum=0, or take train=sgd."
            )
