"""Bounds on replies under DP-SGD: updates of the real mechanism are below the bound, but not far below."""

import math

import pytest
import torch

from fedsvd.config.compose import compose
from fedsvd.errors import PayloadError
from fedsvd.lora.adapter import Adapter
from fedsvd.privacy.accounting import calibrate
from fedsvd.privacy.clipping_statistics import GRADIENT_NOISE_FACTOR
from fedsvd.privacy.dp_sgd import DPSGD, train_dp_sgd
from fedsvd.privacy.gradient_maps import Preconditioning
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


def test_all_parts_of_an_update_and_their_start_count() -> None:
    config = compose([*OVERRIDES, "train.head=private", "train.head_learning_rate=0.6", "train.weight_decay=0.25"])
    start = {"B": torch.full((2, 2), 3.0), "head": torch.full((3,), -2.0)}
    before = Adapter(A={"s": torch.eye(2, 3)}, B={"s": start["B"]}, head={"h": start["head"]}, scale={"s": 1.0})
    # ‖start‖² = 4 · 9 + 3 · 4, and ‖update‖² = 7 x².
    allowed = max_update_norm(report(), config, 1, 7, math.sqrt(48), frozenset({"B", "head"}))
    for factor in (0.999, 1.001):
        x = allowed / math.sqrt(7) * factor
        update = {"B": {"s": start["B"] + x}, "head": {"h": start["head"] - x}}
        if factor < 1:
            check_update_norm(update, before, report(), config, 1)  # type: ignore[arg-type]
        else:
            with pytest.raises(PayloadError, match="too large"):
                check_update_norm(update, before, report(), config, 1)  # type: ignore[arg-type]


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
    check_report(report(noise_multiplier=max_noise_multiplier(compose(OVERRIDES))), compose(OVERRIDES), N)
    with pytest.raises(PayloadError, match=message):
        check_report(report(**changes), compose(OVERRIDES), earlier)


def test_max_noise_multiplier() -> None:
    config = compose(["experiment=smoke", "privacy.accountant=rdp"])
    largest = max_noise_multiplier(config)
    assert 0.5 < largest < 100
    assert max_noise_multiplier(compose([*OVERRIDES])) == pytest.approx(SIGMA, rel=1e-5)
    # Of the clients' accountants, RDP gives the largest noise multiplier, and so does the largest sample rate.
    target = config.privacy.target_epsilon, config.privacy.target_delta
    steps = config.train.num_rounds * config.train.local_steps
    assert max_noise_multiplier(compose(["experiment=smoke", "privacy.accountant=prv"])) == largest
    assert largest == calibrate(*target, 1.0, steps, "rdp")
    assert calibrate(*target, 0.3, steps, "rdp") == max_noise_multiplier(
        compose(["experiment=smoke", "train.sample_rate=0.3"])
    )


ROOT_OF_SIZE, START = 5.0, 7.0


def bound_by_hand(examples: float, batch: float, rate: float = 0.3) -> float:
    """η C (N + σ √T (√size + 8)) / L / (1 − μ), then the weight decay of T steps, with the margins for rounding."""
    noise = SIGMA * GRADIENT_NOISE_FACTOR * math.sqrt(STEPS) * (ROOT_OF_SIZE + 8)
    update = rate * CLIP * (examples + noise) / batch / (1 - 0.5)
    decay = rate * 0.25 * STEPS / (1 - 0.5)
    return (update + decay * (START + update)) * 1.001 + 1e-6 * START * STEPS


@pytest.mark.parametrize(
    ("overrides", "changes", "expected"),
    [
        # 3 batches of 100 examples, by Bernstein's bound at most 300 + 8 √300 + 64.
        ([], {}, bound_by_hand(300 + 8 * math.sqrt(300) + 64, 100)),
        # Without a count, batches of one example on average, although 100 are expected.
        ([], {"num_examples": None}, bound_by_hand(300 + 8 * math.sqrt(300) + 64, 1)),
        ([], {"sample_rate": None}, bound_by_hand(300 + 8 * math.sqrt(300) + 64, 1)),
        ([], {"noise_multiplier": None}, bound_by_hand(300 + 8 * math.sqrt(300) + 64, 100)),
        # Without a count, one example, which is in each of the 3 batches.
        (["train.sample_rate=0.2"], {"num_examples": None}, bound_by_hand(3, 0.2)),
    ],
)
def test_bound_by_hand(overrides: list[str], changes: dict[str, float], expected: float) -> None:
    base = [item for item in OVERRIDES if not overrides or not item.startswith("train.batch_size")]
    config = compose([*base, "train.momentum=0.5", "train.weight_decay=0.25", *overrides])
    size = int(ROOT_OF_SIZE**2)
    assert max_update_norm(report(**changes), config, 1, size, START) == pytest.approx(expected, rel=1e-5)


def test_bound_has_the_largest_learning_rate_of_the_trained_parts() -> None:
    config = compose([*OVERRIDES, "train.head=private", "train.head_learning_rate=0.6"])

    def bound(*parts: str) -> float:
        return max_update_norm(report(), config, 1, 25, 0.0, frozenset(parts))  # type: ignore[arg-type]

    assert bound("B", "head") == bound("head") == pytest.approx(2 * bound("B"))


def test_maps_of_the_noise_stretch_the_bound_by_their_norm() -> None:
    config, matrix = compose(OVERRIDES), torch.diag(torch.tensor([40.0, *[1.0] * 29]))
    model = torch.nn.Linear(30, 4, bias=False)
    start, size = model.weight.detach().clone(), model.weight.numel()
    plan = DPSGD(SIGMA, CLIP, BATCH / N, STEPS, 64, None, True)
    data, maps = torch.zeros(N, 30), [Preconditioning({id(model.weight): matrix})]
    data[:, 0] = 1000
    optimizer = make_optimizer([model.weight], config.train, 1)
    train_dp_sgd(model, optimizer, lambda m, at: m(data[at]).sum(1), N, plan, TorchRandomness(0), maps=maps)
    norm = float((model.weight.detach() - start).norm())

    def bound(stretch: float, *overrides: str) -> float:
        return max_update_norm(report(), compose([*OVERRIDES, *overrides]), 1, size, 0.0, {"A"}, stretch)

    assert bound(1.0) < norm < bound(40.0) == pytest.approx(40 * bound(1.0))
    # AdamW moves each coordinate by at most a multiple of the learning rate, whatever the gradient is.
    assert bound(40.0, "train=adamw") == bound(1.0, "train=adamw")
