"""Tests of a round's mechanism: that the settings of the configuration reach it."""

from fedsvd.config.compose import compose
from fedsvd.privacy.accounting import Spend
from fedsvd.privacy.dp_sgd import DPSGD
from fedsvd.privacy.physical_batches import BatchLimit
from fedsvd.runtime.private_round import round_mechanism

RUN = [
    "experiment=smoke", "privacy.max_grad_norm=3", "train.batch_size=20", "train.physical_batch_size=7",
    "train.local_steps=1",
]  # fmt: skip
SHARED = ["federation.secure_aggregation=true", "privacy.noise_share=true", "federation.min_survivors=4",
          "federation.num_clients=4"]  # fmt: skip


def test_the_mechanism_has_the_settings_of_the_run() -> None:
    spend = Spend(2.0, 0.25, 5)
    config = compose(
        [*RUN, "train.head=private", "privacy.head_clipping_share=0.5", "privacy.clipping_statistics=true"]
    )
    found = round_mechanism(config, spend)
    assert found == DPSGD(2.0, 3.0, 0.25, 5, found.physical_batch_size, None, True, 0.5)
    assert isinstance(found.physical_batch_size, BatchLimit)
    assert found.physical_batch_size.size == 7


def test_the_mechanism_of_shared_noise_has_a_common_divisor_and_no_statistics() -> None:
    config = compose([*RUN, *SHARED, "privacy.noise_multiplier=2", "privacy.clipping_statistics=true"])
    found = round_mechanism(config, Spend(2.0, 0.25, 1))
    assert found == DPSGD(1.0, 3.0, 0.25, 1, found.physical_batch_size, 20.0, False, None)
