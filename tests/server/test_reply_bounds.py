"""Bounds on replies under DP-SGD: updates of the real mechanism are below the bound, but not far below."""

import math

import pytest
import torch

from fedsvd.config.compose import compose
from fedsvd.errors import PayloadError
from fedsvd.lora.adapter import Adapter
from fedsvd.privacy.dp_sgd import DPSGD, train_dp_sgd
from fedsvd.privacy.randomness import TorchRandomness
from fedsvd.training.loop import make_optimizer
from fedsvd.wire.train_messages import ClientReport
from server.reply_bounds import check_report, check_update_norm, max_noise_multiplier, max_update_norm

N, BATCH, SIGMA, STEPS, CLIP = 400, 100, 0.8, 3, 2.0
OVERRIDES = [
    "experiment=smoke", "privacy.accountant=rdp", f"privacy.noise_multiplier={SIGMA}", f"train.batch_size={BATCH}",
    f"train.local_steps={STEPS}", f"privacy.max_grad_norm={CLIP}", "train.learning_rate=0.3",
]  # fmt: skip


def report(**changes: float) -> ClientReport:
    values = {"num_examples": N, "noise_multiplier": SIGMA, "sample_rate": BATCH / N, **changes}
    return ClientReport(0, seconds=0.1, **values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "overrides",
    [[], ["train.momentum=0.9"], ["train.weight_decay=0.1"], ["train=adamw", "train.learning_rate=0.01"]],
    ids=str,
)
@pytest.mark.parametrize("out", [1, 40])
def test_honest_update_is_within_the_bound_and_the_bound_is_not_loose(overrides: list[str], out: int) -> None:
    config = compose([*OVERRIDES, *overrides])
    torch.manual_seed(0)
    data, ratios = torch.randn(N, 30) * 100, []
    for seed in range(5):
        model = torch.nn.Linear(30, out, bias=False)
        start = model.weight.detach().clone()
        plan = DPSGD(SIGMA, CLIP, BATCH / N, STEPS, 64, None, True)
        # All gradients point in one direction and far exceed the clipping norm, which gives the largest update.
        optimizer = make_optimizer([model.weight], config.train, 1)
        train_dp_sgd(model, optimizer, lambda m, at: m(data[at].abs()).sum(1), N, plan, TorchRandomness(seed))
        norm = float((model.weight.detach() - start).norm())
        ratios.append(norm / max_update_norm(report(), config, 1, start.numel(), float(start.norm())))
    assert max(ratios) < 1
    assert min(ratios) > 0.05


def test_too_large_update_raises_with_the_bound() -> None:
    config = compose(OVERRIDES)
    before = Adapter(A={"s": torch.eye(2, 3)}, B={"s": torch.zeros(4, 2)}, head={}, scale={"s": 1.0})
    allowed = max_update_norm(report(), config, 1, 8, 0.0)
    within, beyond = allowed / math.sqrt(8) * 0.999, allowed / math.sqrt(8) * 1.001

    check_update_norm({"B": {"s": torch.full((4, 2), within)}}, before, report(), config, 1)
    with pytest.raises(PayloadError, match=r"update norm .* is too large: the settings of this round allow"):
        check_update_norm({"B": {"s": torch.full((4, 2), beyond)}}, before, report(), config, 1)


@pytest.mark.parametrize(
    ("changes", "earlier", "message"),
    [
        ({}, N + 1, "differs from the earlier 401"),
        ({"num_examples": 10**8}, None, "exceeds federation.max_num_examples"),
        ({"sample_rate": 0.5}, None, "expected 0.25 for 400 examples"),
        ({"noise_multiplier": 2 * SIGMA}, None, "expected at most 0.8"),
    ],
)
def test_numbers_that_do_not_fit_the_run_raise(changes: dict[str, float], earlier: int | None, message: str) -> None:
    check_report(report(), compose(OVERRIDES), N)
    with pytest.raises(PayloadError, match=message):
        check_report(report(**changes), compose(OVERRIDES), earlier)


def test_max_noise_multiplier() -> None:
    config = compose(["experiment=smoke", "privacy.accountant=rdp"])
    largest = max_noise_multiplier(config)
    assert 0.5 < largest < 100
    assert max_noise_multiplier(compose([*OVERRIDES])) == pytest.approx(SIGMA, rel=1e-5)
