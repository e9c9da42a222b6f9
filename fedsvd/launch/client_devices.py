"""The devices of simulated clients: Ray gives each client its GPUs, and hides the others from it."""

from __future__ import annotations

from fedsvd.config import Config
from fedsvd.errors import ConfigError
from fedsvd.runtime.model import resolve_device


def check_client_devices(config: Config) -> None:
    """Check that simulated clients see the device that they are to train on.

    Raises:
        ConfigError: They do not.
    """
    gpus, device = config.federation.client_num_gpus, config.device
    if device.startswith("cuda:"):
        raise ConfigError(
            f"device = {device} is not possible with federation=simulation, where each client sees its own GPU as the "
            "first one. Set device=cuda, and CUDA_VISIBLE_DEVICES to the GPUs to use."
        )
    if device == "cuda" and gpus == 0:
        raise ConfigError(
            "device = cuda is not possible with federation.client_num_gpus = 0, with which simulated clients have no "
            "GPU. Set federation.client_num_gpus to the GPUs of each client, a fraction to share them, or auto."
        )
    if config.model.device_map == "auto" and (gpus == "auto" or gpus < 2):
        raise ConfigError(
            f"model.device_map = auto is not possible with federation.client_num_gpus = {gpus}: it distributes a model "
            "over several GPUs of one client. Set federation.client_num_gpus to 2 or more."
        )


def cpu_notice(config: Config) -> str | None:
    """Return a notice if this machine has a GPU that the simulated clients do not use, or else None."""
    if config.federation.client_num_gpus != 0 or resolve_device(config.device).type != "cuda":
        return None
    return (
        "simulated clients train on the CPU: federation.client_num_gpus = 0. To train on the GPU, set it to the GPUs "
        "of each client, a fraction to share them, or auto."
    )
