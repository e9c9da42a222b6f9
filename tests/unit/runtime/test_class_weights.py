"""The weight of each class comes from public numbers, and multiplies the clients' losses."""

import re

import pytest
import torch

from fedsvd.config.compose import compose
from fedsvd.errors import ConfigError
from fedsvd.runtime.class_weights import class_weights, describe_class_weights
from fedsvd.runtime.data import load_client_data, load_test_batches
from fedsvd.runtime.losses import per_example_losses, run_objective
from fedsvd.runtime.model import load_model

SMOKE = ["experiment=smoke", "privacy=none"]
COUNTS = "train.class_weights=balanced train.label_counts="


@pytest.mark.parametrize(
    ("overrides", "weights", "source"),
    [
        ("train.class_weights=[1,3]", (1.0, 3.0), "train.class_weights"),
        ("train.class_weights={positive:3,negative:1}", (1.0, 3.0), "train.class_weights"),
        # 40 examples in 2 classes: 40 / (2 · 30) and 40 / (2 · 10).
        (f"{COUNTS}[30,10]", (2 / 3, 2.0), "train.label_counts"),
        (f"{COUNTS}{{positive:10,negative:30}}", (2 / 3, 2.0), "train.label_counts"),
        # 50 texts of each class are held out.
        ("train.class_weights=balanced", (1.0, 1.0), "the labels of the held-out texts"),
    ],
)
def test_weights_by_class(overrides: str, weights: tuple[float, ...], source: str) -> None:
    config = compose([*SMOKE, *overrides.split()])

    assert class_weights(config) == pytest.approx(weights)
    described = describe_class_weights(config)
    assert described is not None
    assert described == {"weights": {"negative": described["weights"]["negative"], "positive": weights[1]},
                         "source": source}  # fmt: skip


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("train.class_weights=[1,2,3]", "train.class_weights has 3 numbers: expected 2, one for each of negative, po"),
        ("train.class_weights={neg:1,positive:2}", "has the classes neg, positive: expected a number for each of neg"),
        (f"{COUNTS}[10]", "train.label_counts has 1 numbers"),
        ("train.class_weights=balanced data.max_test_examples=1", "no held-out text is of class"),
    ],
)
def test_weights_that_do_not_fit_the_classes_are_refused(overrides: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        class_weights(compose([*SMOKE, *overrides.split()]))


def test_the_losses_of_a_client_are_weighted() -> None:
    config, weighted = compose(SMOKE), compose([*SMOKE, "train.class_weights=[0.5,3]"])
    data, model = load_client_data(config, 0), load_model(config)
    positions = range(len(data.examples))

    with torch.no_grad():
        ratio = per_example_losses(data, weighted)(model, positions) / per_example_losses(data, config)(
            model, positions
        )

        # An evaluation is not weighted.
        batch = load_test_batches(config)[0]
        evaluated = [run_objective(item).outputs(model, batch).losses for item in (weighted, config)]

    torch.testing.assert_close(*evaluated, rtol=0, atol=0)
    labels = torch.tensor(data.examples["labels"])
    assert set(labels.tolist()) == {0, 1}
    torch.testing.assert_close(ratio, torch.tensor([0.5, 3.0])[labels])
