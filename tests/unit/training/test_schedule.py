"""Learning rates over rounds."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from train_configs import train_config
from transformers import get_scheduler

from fedsvd.errors import ConfigError
from fedsvd.training.schedule import learning_rate, schedule_factor

SCHEDULES = ("constant", "linear", "cosine")


def test_schedules_of_four_rounds_without_and_with_warm_up() -> None:
    def rates(**changes: object) -> list[float]:
        return [learning_rate(train_config(**changes), server_round) for server_round in (1, 2, 3, 4)]

    assert rates() == [0.5, 0.5, 0.5, 0.5]
    assert rates(lr_scheduler_type="linear") == [0.5, 0.375, 0.25, 0.125]
    assert rates(lr_scheduler_type="linear", warmup_rounds=1) == pytest.approx([0.25, 0.5, 0.5 * 2 / 3, 0.5 / 3])
    assert rates(lr_scheduler_type="cosine", warmup_rounds=2) == pytest.approx([0.5 / 3, 1 / 3, 0.5, 0.25])
    assert rates(warmup_rounds=3) == pytest.approx([0.125, 0.25, 0.375, 0.5])


def test_the_head_follows_the_schedule_with_its_own_rate() -> None:
    cosine = train_config(lr_scheduler_type="cosine", warmup_rounds=1, head_learning_rate=2.0, head="private")
    rounds = range(1, 5)

    factors, head = ([learning_rate(cosine, t, of_head=of_head) for t in rounds] for of_head in (False, True))
    assert head == pytest.approx([4 * rate for rate in factors])
    assert max(head) == 2.0


@given(st.sampled_from(SCHEDULES), st.integers(1, 60), st.data())
def test_no_round_has_a_rate_of_zero_and_the_full_rate_follows_the_warm_up(
    name: str, num_rounds: int, data: st.DataObject
) -> None:
    warmup = data.draw(st.integers(0, num_rounds - 1))
    train = train_config(lr_scheduler_type=name, num_rounds=num_rounds, warmup_rounds=warmup)

    factors = [schedule_factor(train, t) for t in range(1, num_rounds + 1)]
    assert all(0 < factor <= 1 for factor in factors)
    assert factors[warmup] == 1
    assert factors[: warmup + 1] == sorted(factors[: warmup + 1])
    assert factors[warmup:] == sorted(factors[warmup:], reverse=True)


@pytest.mark.parametrize("name", SCHEDULES)
def test_after_the_warm_up_rates_are_those_of_transformers(name: str) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.5)
    arguments = {} if name == "constant" else {"num_warmup_steps": 3, "num_training_steps": 10}
    scheduler, theirs = get_scheduler(name, optimizer, **arguments), []
    for _ in range(10):
        theirs.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()

    ours = [
        learning_rate(train_config(lr_scheduler_type=name, num_rounds=10, warmup_rounds=3), t) for t in range(1, 11)
    ]
    assert ours[3:] == pytest.approx(theirs[3:])


def test_a_warm_up_that_does_not_end_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"warmup_rounds = 4 is invalid with train\.num_rounds = 4.* 3 or less"):
        train_config(warmup_rounds=4)
