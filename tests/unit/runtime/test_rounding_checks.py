"""Settings whose noise or clipping norm is too small for the resolution of a secure sum are refused."""

from pathlib import Path

import pytest
import torch
from client_rounds import run_first_round

from fedsvd.cli import main
from fedsvd.config.compose import compose
from fedsvd.errors import ConfigError
from fedsvd.lora.adapter import Adapter
from fedsvd.runtime.rounding import check_rounding, clipping_norm

SECURE = ["experiment=smoke", "federation.secure_aggregation=true"]
SHARED = [*SECURE, "privacy.noise_share=true", "privacy.noise_multiplier=4", "train.local_steps=1",
          "train.head=private", "train.batch_size=8", "federation.min_survivors=4", "federation.num_clients=4",
          "train.num_rounds=10"]  # fmt: skip
CLIENTS = ["privacy=client_level", "federation.clients_per_round=null"]


def adapter(largest: float = 0.0) -> Adapter:
    values = torch.full((4, 2), largest)
    return Adapter({"s": torch.ones(2, 3)}, {"s": values}, {"w": torch.zeros(3)}, {"s": 1.0})


# One client's share of the noise is rate · 4 · 1 / (2 · 8) in DP-SGD, and norm · 4 / 2 with client-level privacy. The
# resolution is 6e-8: the smallest share is 1.8e-7.
@pytest.mark.parametrize(
    ("overrides", "largest", "part"),
    [
        (["train.learning_rate=6e-7"], 0.0, "B"),
        (["train.learning_rate=1", "train.head_learning_rate=6e-7"], 0.0, "head"),
        # The last of ten rounds has 0.1 and 0.024 of the rate.
        (["train.learning_rate=6e-6", "train.lr_scheduler_type=linear"], 0.0, "B"),
        (["train.learning_rate=2e-5", "train.lr_scheduler_type=cosine"], 0.0, "B"),
        # The spacing of float32 numbers near 100 is 7.6e-6.
        (["train.learning_rate=1e-4"], 100.0, "B"),
        ([*CLIENTS, "privacy.max_update_norm=8e-8"], 0.0, "B"),
    ],
    ids=["factors", "head", "linear", "cosine", "large parameters", "clients"],
)
def test_a_share_of_the_noise_below_the_resolution_is_refused(overrides: list[str], largest: float, part: str) -> None:
    with pytest.raises(ConfigError, match=rf"standard deviation of \S+ in the values of {part} that it sends"):
        check_rounding(compose([*SHARED, *overrides]), adapter(largest), 1)


@pytest.mark.parametrize(
    "overrides",
    [
        ["train.learning_rate=8e-7"],
        ["train.learning_rate=8e-6", "train.lr_scheduler_type=linear"],
        [*CLIENTS, "privacy.max_update_norm=1e-7"],
        # Each client adds all of its noise, and rounds it afterwards.
        ["train.learning_rate=6e-9", "privacy.noise_share=false"],
        ["train.learning_rate=6e-9", "privacy.noise_share=false", "privacy=none"],
        ["train.trains=none", "train.learning_rate=1"],
    ],
)
def test_other_settings_are_accepted(overrides: list[str]) -> None:
    check_rounding(compose([*SHARED, *overrides]), adapter(), 1)


def test_early_rounds_are_not_checked_again() -> None:
    config = compose([*SHARED, "train.learning_rate=2e-6", "train.warmup_rounds=4"])
    with pytest.raises(ConfigError, match=r"costs no privacy only above 3 times that\. Raise train\.learning_rate"):
        check_rounding(config, adapter(), 1)
    check_rounding(config, adapter(), 5)


def test_a_client_refuses_before_its_ledger_is_charged(tmp_path: Path) -> None:
    config = compose([*SHARED, "train.head=frozen", "train.learning_rate=6e-7"])
    with pytest.raises(ConfigError, match=r"share of the noise has a standard deviation of 1\.5e-07"):
        run_first_round(config, tmp_path)
    assert not (tmp_path / "ledger.sqlite").exists()


def test_no_round_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = [*SHARED, "train.learning_rate=6e-7", "plots=false"]
    assert main(["train", *overrides, f"hydra.run.dir={tmp_path}"]) == 2
    assert "privacy.noise_share = True is not possible: one client's share" in capsys.readouterr().err
    assert not (tmp_path / "clients").exists()


def test_a_clipping_norm_that_rounding_would_exceed_is_refused() -> None:
    # 1e-6 and eight values: rounding adds up to 0.5 · 2⁻²⁴ · √8 = 8.4e-8, and more for larger parameters.
    config = compose([*SECURE, *CLIENTS, "privacy.max_update_norm=1e-6"])
    check_rounding(config, adapter(), 1)
    assert clipping_norm(config, adapter(), {"B"}) == pytest.approx(1e-6 - 8.44e-8, rel=1e-3)
    for overrides, largest in (["privacy.max_update_norm=8e-7"], 0.0), ([], 0.3):
        with pytest.raises(ConfigError, match=r"of 8 changed values, which the server cannot clip again\. Raise it to"):
            check_rounding(
                compose([*SECURE, *CLIENTS, "privacy.max_update_norm=1e-6", *overrides]), adapter(largest), 1
            )
    for overrides in (["privacy.noise_share=true"], ["federation.secure_aggregation=false"]):
        assert clipping_norm(compose([*SECURE, *CLIENTS, *overrides]), adapter(), {"B"}) == 1.0
