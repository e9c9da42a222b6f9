"""Tests of noise shares: their sum, and the settings in which they are rejected."""

from pathlib import Path

import pytest
import torch
from client_rounds import run_first_round, uplink_b

from fedsvd.config import Config
from fedsvd.config.compose import compose
from fedsvd.errors import ConfigError
from fedsvd.privacy.client_level import run_spend
from fedsvd.privacy.noise_share import client_noise_multiplier, equal_weights

SECURE = ["experiment=smoke", "federation.secure_aggregation=true", "privacy.noise_share=true"]
EXAMPLE = ["privacy=dp_sgd", "privacy.noise_multiplier=3", "train.local_steps=1", "train.lr_scheduler_type=constant"]


def sent_update(config: Config, folder: Path) -> torch.Tensor:
    return uplink_b(config, run_first_round(config, folder))


@pytest.mark.parametrize("survivors", [2, 4])
def test_example_level_shares_add_up_to_the_full_noise(survivors: int, tmp_path: Path) -> None:
    overrides = [*SECURE, *EXAMPLE, "federation.num_clients=4", f"federation.min_survivors={survivors}",
             "privacy.max_grad_norm=0.5", "train.batch_size=10", "train.learning_rate=0.1"]  # fmt: skip
    update = sent_update(compose(overrides), tmp_path)

    # Gradients of a new model are far smaller than this noise of η σ C / (b √n_min).
    expected = 0.1 * 3 * 0.5 / 10 / survivors**0.5
    assert update.std().item() == pytest.approx(expected, rel=0.1)
    # The noise of n_min such clients adds up to η σ C / b, which one client alone would add.
    assert (survivors * update.var()).sqrt().item() == pytest.approx(0.1 * 3 * 0.5 / 10, rel=0.1)


def test_client_level_shares_add_up_to_the_full_noise(tmp_path: Path) -> None:
    overrides = [*SECURE, "privacy=client_level", "federation.num_clients=4", "federation.min_survivors=3",
             "privacy.max_update_norm=1e-6"]  # fmt: skip
    config = compose(overrides)
    sigma = run_spend(config.privacy, config.train, config.federation).noise_multiplier

    update = sent_update(config, tmp_path)

    assert (3 * update.var()).sqrt().item() == pytest.approx(sigma * 1e-6, rel=0.1)


@pytest.mark.parametrize("is_secure", ["true", "false"])
def test_client_level_shares_do_not_follow_from_the_seed(is_secure: str, tmp_path: Path) -> None:
    overrides = ["privacy=client_level", "privacy.max_update_norm=1e-6", f"privacy.secure_random={is_secure}"]
    config = compose([*SECURE, *overrides])

    first, second = (sent_update(config, tmp_path / name) for name in ("first", "second"))

    assert (first - second).std().item() == pytest.approx(2**0.5 * first.std().item(), rel=0.1)


def test_small_client_uses_the_common_divisor(tmp_path: Path) -> None:
    overrides = [*SECURE, *EXAMPLE, "data.max_train_examples=24", "train.batch_size=1000", "train.learning_rate=1000",
             "privacy.max_grad_norm=1"]  # fmt: skip
    # With at most 24 examples, dividing by the client's own batch size would make the noise about 40 times larger.
    expected = 1000 * 3 / 1000 / 2**0.5
    assert sent_update(compose(overrides), tmp_path).std().item() == pytest.approx(expected, rel=0.15)


def test_without_shares_each_client_adds_the_full_noise() -> None:
    config = compose(["experiment=smoke"])
    assert client_noise_multiplier(2.0, config) == 2.0
    assert not equal_weights(config)
    assert equal_weights(compose(["experiment=smoke", "privacy=client_level"]))
    assert equal_weights(compose([*SECURE, *EXAMPLE]))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["privacy=none"], "adds no noise that could be shared"),
        (["federation.secure_aggregation=false"], "with only that client's share of the noise"),
        (["train.local_steps=2"], "with train.local_steps = 2, the later steps of a client"),
        (["train=adamw", "train.local_steps=1"], "only under plain SGD"),
        (["train.weight_decay=0.1"], "only under plain SGD"),
        (["privacy.noise_multiplier=null"], "set privacy.noise_multiplier"),
        (["federation.num_clients=3", "federation.min_survivors=4"], "no secure sum could be computed"),
        (["federation.min_survivors=1"], "≥ 2"),
        (["privacy=client_level", "federation.clients_per_round=2"], "reveal who was sampled"),
    ],
)
def test_settings_without_a_valid_analysis_are_rejected(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose([*SECURE, *EXAMPLE, *overrides])
