"""What a training step reads from its device; on a GPU, each read waits for all that has been started there."""

from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from other_device import META, reads_from_meta
from prefix_models import LARGE, adapted, batch
from torch import Tensor, nn

from fedsvd.privacy.dp_sgd import DPSGD, train_dp_sgd
from fedsvd.privacy.physical_batches import BatchLimit
from fedsvd.privacy.randomness import SecureRandomness
from fedsvd.training.loop import Batch, train_plain
from fedsvd.training.per_example_gradients import fused_gradients
from fedsvd.training.prefix_cache import PrefixCache
from fedsvd.training.state_store import MemoryBudget, StateStore

STEPS = 3


def losses(module: nn.Module, positions: Sequence[int]) -> Tensor:
    labels = torch.tensor([i % 2 for i in positions]).to(META)
    return nn.functional.cross_entropy(module(**on_device(batch(positions))).logits, labels, reduction="none")


def on_device(on_cpu: Batch) -> Batch:
    return {name: tensor.to(META) for name, tensor in on_cpu.items()}


@pytest.mark.parametrize("statistics", [False, True])
@pytest.mark.parametrize("physical_batch_size", [6, 1])
def test_a_private_step_reads_its_device_once_however_it_is_split(statistics: bool, physical_batch_size: int) -> None:
    model = adapted().to(META)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    head = [p for name, p in model.named_parameters() if p.requires_grad and "modules_to_save" in name]
    mechanism = DPSGD(1.0, 1.0, 1.0, STEPS, physical_batch_size, statistics=statistics, head_clipping_share=0.5)

    with reads_from_meta() as found:
        train_dp_sgd(
            model, torch.optim.SGD(trained, 0.1), losses, 6, mechanism, SecureRandomness(), fused_gradients, head=head
        )  # fmt: skip

    # transformers reads whether a batch has padding.
    found.pop("masking_utils.py", None)
    expected = Counter({"fedsvd/privacy/noisy_optimizer.py": STEPS})
    assert found == expected + Counter({"fedsvd/privacy/clipping_statistics.py": STEPS * statistics})


@pytest.mark.parametrize("physical_batch_size", [6, 1])
def test_a_plain_step_reads_its_device_once_however_it_is_split(physical_batch_size: int) -> None:
    model = adapted().to(META)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with reads_from_meta() as found:
        train_plain(
            model, torch.optim.AdamW(trained), losses, STEPS * [list(range(6))], limit=BatchLimit(physical_batch_size)
        )

    found.pop("masking_utils.py", None)
    assert found == Counter({"fedsvd/training/loop.py": STEPS})


def test_cached_states_are_gathered_without_reading_the_device() -> None:
    # Of one length: which positions are tokens is not known on the meta device.
    model, on_cpu = adapted().to(META), batch([1, 3])
    cache = PrefixCache(model, StateStore(MemoryBudget(LARGE)))
    # The first use compares logits: they differ by more than the tolerance, False.
    with reads_from_meta(truth=False), cache.reuse_states(model, on_device(on_cpu), on_cpu):
        model(**on_device(on_cpu))
    with reads_from_meta(truth=False) as found, cache.reuse_states(model, on_device(on_cpu), on_cpu):
        pass

    assert len(cache) == 2
    assert not found
