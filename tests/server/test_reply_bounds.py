"""What an honest client can send under DP-SGD: the real mechanism stays below the bound, and not far below."""

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
WORDS = [
    "experiment=smoke", "privacy.accountant=rdp", f"privacy.noise_multiplier={SIGMA}", f"train.batch_size={BATCH}",
    f"train.local_steps={STEPS}", f"privacy.max_grad_norm={CLIP}", "train.learning_rate=0.3",
]  # fmt: skip


def report(**changes: float) -> ClientReport:
    values = {"num_examples": N, "noise_multiplier": SIGMA, "sample_rate": BATCH / N, **changes}
    return ClientReport(0, seconds=0.1, **values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "words",
    [[], ["train.momentum=0.9"], ["train.weight_decay=0.1"], ["train=adamw", "train.learning_rate=0.01"]],
    ids=str,
)
@pytest.mark.parametrize("out", [1, 40])
def test_an_honest_update_is_within_the_bound_and_the_bound_is_no_idle_one(words: list[str], out: int) -> None:
    config = compose([*WORDS, *words])
    torch.manual_seed(0)
    data, ratios = torch.randn(N, 30) * 100, []
    for seed in range(5):
        model = torch.nn.Linear(30, out, bias=False)
        start = model.weight.detach().clone()
        plan = DPSGD(SIGMA, CLIP, BATCH / N, STEPS, 64, None, True)
        # A gradient in one direction, far beyond the clipping norm: as long an update as there is.
        optimizer = make_optimizer([model.weight], config.train, 1)
        train_dp_sgd(model, optimizer, lambda m, at: m(data[at].abs()).sum(1), N, plan, TorchRandomness(seed))
        norm = float((model.weight.detach() - start).norm())
        ratios.append(norm / max_update_norm(report(), config, 1, start.numel(), float(start.norm())))
    assert max(ratios) < 1
    assert min(ratios) > 0.05


def test_what_is_longer_is_named_with_what_is_allowed() -> None:
    config = compose(WORDS)
    before = Adapter(A={"s": torch.eye(2, 3)}, B={"s": torch.zeros(4, 2)}, head={}, scale={"s": 1.0})
    allowed = max_update_norm(report(), config, 1, 8, 0.0)
    within, beyond = allowed / math.sqrt(8) * 0.999, allowed / math.sqrt(8) * 1.001

    check_update_norm({"B": {"s": torch.full((4, 2), within)}}, before, report(), config, 1)
    with pytest.raises(PayloadError, match=r"its update has norm .*; this round's settings allow"):
        check_update_norm({"B": {"s": torch.full((4, 2), beyond)}}, before, report(), config, 1)


@pytest.mark.parametrize(
    ("changes", "earlier", "why"),
    [
        ({}, N + 1, "it was 401 before"),
        ({"num_examples": 10**8}, None, "more than federation.max_num_examples"),
        ({"sample_rate": 0.5}, None, "with 400 examples it is 0.25"),
        ({"noise_multiplier": 2 * SIGMA}, None, "needs at most 0.8"),
    ],
)
def test_numbers_that_do_not_fit_the_run_are_refused(changes: dict[str, float], earlier: int | None, why: str) -> None:
    check_report(report(), compose(WORDS), N)
    with pytest.raises(PayloadError, match=why):
        check_report(report(**changes), compose(WORDS), earlier)


def test_no_client_needs_more_noise_than_one_whose_batches_are_its_data() -> None:
    config = compose(["experiment=smoke", "privacy.accountant=rdp"])
    largest = max_noise_multiplier(config)
    assert 0.5 < largest < 100
    assert max_noise_multiplier(compose([*WORDS])) == pytest.approx(SIGMA, rel=1e-5)
