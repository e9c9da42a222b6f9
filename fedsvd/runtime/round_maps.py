"""The maps of gradients in a client's round, fixed before the round reads private data."""

from __future__ import annotations

from collections.abc import Collection

import peft

from fedsvd.config import Config
from fedsvd.lora import peft_model
from fedsvd.lora.adapter import Part
from fedsvd.lora.tangent import TangentMap
from fedsvd.lora.trained_factor import TrainedFactorMap
from fedsvd.methods import build_run_method
from fedsvd.privacy.gradient_maps import GradientMap, Preconditioning
from fedsvd.runtime.losses import load_prefix_cache
from fedsvd.runtime.model import load_model
from fedsvd.runtime.public_mean import public_mean_projection
from fedsvd.runtime.public_statistics import input_preconditioners, largest_preconditioner_norm


def preconditions_a(config: Config, parts: Collection[Part]) -> bool:
    """Return whether a round that trains these parts maps the noise in A, which then differs between its entries."""
    return config.privacy.preconditions_a and "A" in parts


def max_stretch(config: Config, parts: Collection[Part]) -> float:
    """Return an upper bound on the spectral norm of the maps of the noised sum in a round, 1 or more.

    It is that of `Preconditioning`, the largest norm of the matrices of all sites. All other maps of the noised sum are
    projections.

    Args:
        config: The configuration of the run.
        parts: The parts that the round trains.
    """
    if not preconditions_a(config, parts):
        return 1.0
    return max(1.0, largest_preconditioner_norm(load_model(config), config.model))


def round_maps(config: Config, model: peft.PeftModel, parts: Collection[Part]) -> list[GradientMap]:
    """Return the maps of the configured method and privacy options.

    Args:
        config: The configuration of the run.
        model: The process's model, with the received adapter.
        parts: The parts that the round trains.
    """
    maps: list[GradientMap] = []
    if preconditions_a(config, parts):
        matrices = input_preconditioners(model, config.model)
        sites = peft_model.lora_sites(model)
        maps.append(Preconditioning({id(site.A): matrices[name].to(site.A) for name, site in sites.items()}))
    traits = build_run_method(config).traits
    if traits.tangent and {"A", "B"} <= set(parts):
        maps.append(TangentMap.of_model(model))
    if traits.per_site and {"A", "B"} <= set(parts):
        maps.append(TrainedFactorMap.of_model(model))
    if config.privacy.projects_gradients:
        head = set(peft_model.set_trainable(model, ["head"]))
        factors = [parameter for parameter in peft_model.set_trainable(model, parts) if parameter not in head]
        if factors:
            maps.append(public_mean_projection(config, model, factors, load_prefix_cache(config), maps))
    return maps
