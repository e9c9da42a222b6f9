"""The gradient of an example under DP-SGD depends on the example and the model, and on no other example."""

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsvd.config import Config
from fedsvd.config.compose import compose
from fedsvd.data import padded_width
from fedsvd.lora import peft_model
from fedsvd.privacy.accounting import Spend
from fedsvd.runtime.data import load_client_data, load_tokenizer
from fedsvd.runtime.losses import clear_caches, example_lengths, padded_widths, per_example_losses
from fedsvd.runtime.model import load_model
from fedsvd.runtime.private_round import prepare_round, round_mechanism, train_privately

# Sixteen tokens: no padding where all are as short.
SHORT = [f"{word} {'good ' * 13}" for word in ("so", "not", "very", "the")] * 10
LONG = "the film was long and slow and in the end it was not so good as the one that we saw in the year before it"
BASE = ["model=tiny", "data=node", "data.labels=[no,yes]", "train.head=private", "train.head_init=random",
        "train.sample_rate=1.0", "train.local_steps=1", "train.num_rounds=2", "train.physical_batch_size=1000",
        "train.learning_rate=1.0", "train.lr_scheduler_type=constant", "privacy.max_grad_norm=1.0",
        "privacy.clipping_statistics=false", "federation.weighting=uniform"]  # fmt: skip


@given(st.integers(1, 3000), st.integers(1, 2048))
def test_the_padded_width_has_few_values_and_little_padding(length: int, max_length: int) -> None:
    width = padded_width(length, max_length)
    assert length <= width <= max(length, max_length)
    assert width < length + max(16, length / 2)
    assert padded_width(width, max_length) == width
    assert len({padded_width(n, 512) for n in range(1, 513)}) == 10


def config_of(texts: Sequence[str], path: Path, *overrides: str) -> Config:
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([["text", "label"], *([text, "yes"] for text in texts)])
    config = compose([*BASE, *overrides])
    return replace(config, data=replace(config.data, path=str(path)))


def clipped_sum(config: Config) -> torch.Tensor:
    """Return the sum of the clipped gradients of a client's examples, nearly without noise, in units of the norm."""
    data, model = load_client_data(config, 0), load_model(config)
    before = peft_model.read(model)
    prepared = prepare_round(config, 2, frozenset({"head", "B"}))
    mechanism = round_mechanism(config, Spend(1e-6, 1.0, 1))
    losses, widths = per_example_losses(data, config), padded_widths(data, config.model.max_length)
    train_privately(config, prepared, losses, len(data.examples), mechanism, widths=widths)
    after = peft_model.read(model)
    peft_model.write(model, before)
    changed = [(after.part(part), before.part(part)) for part in ("head", "B")]
    updates = [(new[name] - old[name]).flatten() for new, old in changed for name in new]
    return torch.cat(updates) * len(data.examples)


@pytest.mark.parametrize("cache", ["train.prefix_cache_mib=0", "train.prefix_cache_mib=64"])
def test_a_long_text_changes_the_sum_by_one_gradient_whatever_the_model(cache: str, tmp_path: Path) -> None:
    clear_caches()
    without = config_of(SHORT, tmp_path / "without.csv", cache)
    with_long = config_of([*SHORT, LONG], tmp_path / "with.csv", cache)
    lengths = [example_lengths(load_client_data(config, 0)) for config in (without, with_long)]
    assert ({*lengths[0]}, max(lengths[1])) == ({16}, 28)
    assert (clipped_sum(with_long) - clipped_sum(without)).norm() <= 1.01

    # A model whose states overflow at padding, and there alone.
    embeddings = load_model(without).get_input_embeddings().weight
    embeddings.data[load_tokenizer(without).pad_token_id] = torch.inf
    assert (clipped_sum(with_long) - clipped_sum(without)).norm() <= 1.01
    clear_caches()


def test_masks_of_dropout_do_not_follow_from_torch_seeds(tmp_path: Path) -> None:
    clear_caches()
    config = config_of(SHORT, tmp_path / "short.csv", "model.lora_dropout=0.5", "train.trains=factors")
    sums = []
    for _ in range(3):
        torch.manual_seed(0)
        sums.append(clipped_sum(config))
    clear_caches()
    # The noise is smaller. The first time, checks of the model draw masks, too.
    assert (sums[1] - sums[2]).norm() > 1e-3
