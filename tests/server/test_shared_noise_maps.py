"""Maps of the noised sum with shared noise: clients leave them to the server, which applies them to the mean."""

from pathlib import Path

import pytest
import torch
from client_rounds import run_first_round, uplink_b

from fedsvd.config import Config
from fedsvd.config.compose import compose
from fedsvd.errors import DataError
from fedsvd.lora import peft_model
from fedsvd.lora.adapter import Adapter, Part
from fedsvd.methods import build_run_method
from fedsvd.methods.aggregate import Reply
from fedsvd.privacy.gradient_maps import GradientMap, Projection, map_noised_gradients
from fedsvd.runtime import losses
from fedsvd.runtime.model import initial_adapter, load_model
from fedsvd.runtime.round_maps import check_server_maps, round_maps
from server.secure_mean import with_server_maps

SHARED = [
    "experiment=smoke", "train.head=private", "train.local_steps=1", "federation.secure_aggregation=true",
    "privacy.noise_share=true", "privacy.noise_multiplier=3", "privacy.project_public_mean=true",
]  # fmt: skip
OWN = ["privacy.noise_share=false"]
PRECONDITIONED = ["privacy.project_public_mean=false", "privacy.standardize_inputs=true", "method.pivot=A",
                  "method.init_a=zeros", "method.init_b=public_jacobian", "model.rank=1"]  # fmt: skip


def started(config: Config) -> Adapter:
    """Return random factors in the process's model, at which no map is trivial."""
    generator = torch.Generator().manual_seed(0)
    adapter = initial_adapter(config, build_run_method(config))
    B = {name: 0.1 * torch.randn(tensor.shape, generator=generator) for name, tensor in adapter.B.items()}
    adapter = adapter.with_parts({"B": B})
    peft_model.write(load_model(config), adapter)
    return adapter


def own_maps(overrides: list[str], parts: set[Part]) -> list[GradientMap]:
    """Return the maps of a client that adds all of its noise itself."""
    config = compose([*SHARED, *overrides, *OWN])
    return round_maps(config, load_model(config), parts)


def test_the_noise_of_one_client_covers_the_directions_of_every_clients_map(tmp_path: Path) -> None:
    # A client whose map removes slightly other directions than all others would be alone with its share of the noise.
    losses.clear_caches()
    overrides = ["train.head=frozen", "privacy.max_grad_norm=0.001", "train.learning_rate=1000"]
    config = compose([*SHARED, *overrides])
    update = uplink_b(config, run_first_round(config, tmp_path))
    peft_model.write(load_model(config), initial_adapter(config, build_run_method(config)))
    (projection,) = own_maps(overrides, {"B"})
    assert isinstance(projection, Projection)
    directions = torch.cat([rows.flatten(1) for rows in projection.directions.values()], dim=1)

    std = 1000 * 3 * 0.001 / config.train.batch_size / 2**0.5
    # Six standard errors of a standard deviation.
    assert update.std().item() == pytest.approx(std, rel=6 / (2 * len(update)) ** 0.5)
    # Noise in one direction is smaller with probability 8e-7; rounding errors of a map that removes it are.
    assert (directions @ update).norm() > 1e-6 * std


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        ([], {"B", "head"}),
        (["method=tangent"], {"A", "B", "head"}),
        (PRECONDITIONED, {"A", "head"}),
        (["method=fed_sb"], {"core", "head"}),
    ],
    ids=["projection", "tangent", "preconditioning", "core"],
)
def test_the_server_maps_the_mean_as_clients_would_map_their_sums(overrides: list[str], parts: set[Part]) -> None:
    losses.clear_caches()
    config = compose([*SHARED, *overrides])
    before = started(config)
    model, generator = load_model(config), torch.Generator().manual_seed(1)
    named = peft_model.named_parts(model)
    steps = {
        part: {name: torch.randn(tensor.shape, generator=generator) for name, tensor in before.part(part).items()}
        for part in sorted(parts)
    }
    sent = {part: {name: before.part(part)[name] - step for name, step in steps[part].items()} for part in steps}

    found = with_server_maps(Reply(0, 2, sent), before, config).parts

    trained = peft_model.set_trainable(model, parts)
    for part, tensors in steps.items():
        for name, step in tensors.items():
            named[part][name].grad = step.clone()
    map_noised_gradients(own_maps(overrides, parts), trained)
    is_changed = False
    for part, tensors in steps.items():
        for name, step in tensors.items():
            gradient = named[part][name].grad
            assert gradient is not None
            torch.testing.assert_close(
                found[part][name], before.part(part)[name].double() - gradient.double(), atol=1e-5, rtol=1e-5
            )
            is_changed |= not torch.allclose(gradient, step, atol=1e-3)
    assert is_changed


def test_a_mean_of_clients_that_map_their_own_sums_is_kept() -> None:
    reply = Reply(0, 2, {"B": {"s": torch.ones(1)}})
    for overrides in (OWN, ["privacy=client_level", "privacy.project_public_mean=false"]):
        config = compose([*SHARED, *overrides])
        assert with_server_maps(reply, Adapter({}, {"s": torch.zeros(1)}, {}, {}), config) is reply


def test_a_server_without_the_public_text_of_its_maps_refuses_the_run_at_the_start() -> None:
    missing = "model.public_text=/missing/public.txt"
    for overrides in ([], [*PRECONDITIONED, *OWN]):
        with pytest.raises(DataError, match=r"/missing/public\.txt"):
            check_server_maps(compose([*SHARED, *overrides, missing]))
    check_server_maps(compose([*SHARED, *OWN, missing]))
