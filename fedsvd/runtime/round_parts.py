"""The parts of an adapter that a round trains and sends, and their optimizer."""

from __future__ import annotations

from collections.abc import Collection

import peft
import torch
from torch import nn

from fedsvd.config import Config, TrainConfig
from fedsvd.config.task import TASKS
from fedsvd.lora import peft_model
from fedsvd.lora.adapter import Part
from fedsvd.methods import Method, sent_factors
from fedsvd.training.loop import make_optimizer


def trained_parts(method: Method, config: Config, server_round: int) -> frozenset[Part]:
    """Return the parts a client trains in a round: the method's factors, and the head as the configuration says."""
    return method.trains(server_round) | _trained_head(config, server_round)


def sent_parts(method: Method, config: Config, server_round: int) -> frozenset[Part]:
    """Return the parts a client sends in a round."""
    return sent_factors(method, server_round) | _trained_head(config, server_round)


def prepare_training(
    model: peft.PeftModel, parts: Collection[Part], train: TrainConfig, server_round: int
) -> tuple[torch.optim.Optimizer, list[nn.Parameter]]:
    """Enable gradients for the given parts only, and build the optimizer of a round (1-based).

    Returns:
        The optimizer, and those of its parameters that belong to the head.
    """
    head = peft_model.set_trainable(model, [part for part in parts if part == "head"])
    trained = peft_model.set_trainable(model, parts)
    return make_optimizer(trained, train, server_round, head), head


def _trained_head(config: Config, server_round: int) -> frozenset[Part]:
    has_head = TASKS[config.model.task].has_head
    return frozenset({"head"}) if has_head and config.train.trains_head(server_round) else frozenset()
