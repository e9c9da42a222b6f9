"""The maps of gradients in a client's round, fixed before the round reads private data."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import peft
from torch import Tensor

from fedsvd.config import Config
from fedsvd.lora import peft_model
from fedsvd.lora.adapter import Adapter, Part
from fedsvd.lora.tangent import TangentMap
from fedsvd.lora.trained_factor import TrainedFactorMap
from fedsvd.methods import build_run_method
from fedsvd.privacy.gradient_maps import BeforeClipping, GradientMap, Preconditioning, map_after_noise
from fedsvd.runtime.base_model import load_public_corpus
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


def server_maps_mean(config: Config) -> bool:
    """Return whether the server maps the noised mean, instead of each client its own sum.

    The maps remove directions. Maps of clients differ where their public texts do, or their hardware: their shares of
    the noise would then not add up in all directions (see `fedsvd.privacy.gradient_maps`).
    """
    return config.privacy.name == "dp_sgd" and config.privacy.noise_share


def check_server_maps(config: Config) -> None:
    """Load the public text that the server's maps and bounds need, before anything is spent.

    Raises:
        DataError: The public text cannot be used.
    """
    if config.privacy.preconditions_a or (config.privacy.projects_gradients and server_maps_mean(config)):
        load_public_corpus(config.model.public_text)


def map_mean(
    config: Config, before: Adapter, mean: Mapping[Part, Mapping[str, Tensor]]
) -> dict[Part, dict[str, Tensor]]:
    """Apply the maps of the noised sum to the mean of updates whose clients share the noise.

    Clients take one step of plain SGD with one learning rate for all factors, so that the mean update is the noised sum
    times a public number, with which the linear maps commute. No map touches the head, whose rate can differ.

    Args:
        config: The configuration of the run.
        before: The adapter that the clients started from. It is written to the process's model.
        mean: The mean of what they sent, by part.

    Returns:
        The mapped mean, in float64.

    Raises:
        DataError: The public text cannot be used.
    """
    model = load_model(config)
    peft_model.write(model, before)
    maps, named = _maps(config, model, mean.keys()), peft_model.named_parts(model)
    places = [(part, name) for part, tensors in mean.items() for name in tensors]
    parameters = [named[part][name] for part, name in places]
    starts = [before.part(part)[name].double() for part, name in places]
    updates = [
        (mean[part][name].double() - start).to(parameter).unsqueeze(0)
        for (part, name), start, parameter in zip(places, starts, parameters, strict=True)
    ]
    result: dict[Part, dict[str, Tensor]] = {part: {} for part in mean}
    for (part, name), start, update in zip(places, starts, map_after_noise(maps, parameters, updates), strict=True):
        result[part][name] = start + update.squeeze(0).to(start)
    return result


def round_maps(config: Config, model: peft.PeftModel, parts: Collection[Part]) -> list[GradientMap]:
    """Return a client's maps by the configured method and privacy options.

    Args:
        config: The configuration of the run.
        model: The process's model, with the received adapter.
        parts: The parts that the round trains.
    """
    maps = _maps(config, model, parts)
    return [BeforeClipping(gradient_map) for gradient_map in maps] if server_maps_mean(config) else maps


def _maps(config: Config, model: peft.PeftModel, parts: Collection[Part]) -> list[GradientMap]:
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
