"""Initial A from public inputs, on inputs whose principal components are known."""

import pytest
import torch

from fedsvd.errors import ModelError
from fedsvd.lora.public_pca import InputMoments, leading_directions

# Content along e₀ (variance 9, and the mean), e₁ (variance 4) and e₂ (variance 1); [CLS] is always 5 e₁.
CONTENT = torch.tensor(
    [[13.0, 0, 0, 0], [7.0, 0, 0, 0], [10, 2.0, 0, 0], [10, -2.0, 0, 0], [10, 0, 1.0, 0], [10, 0, -1.0, 0]]
)
CLS = torch.tensor([[0, 5.0, 0, 0], [0, 5.0, 0, 0]])


def moments(with_cls: bool) -> InputMoments:
    result = InputMoments(4)
    for chunk in CONTENT.split(4):
        result.add(chunk, {})
    result.add(CONTENT[:0], {7: CLS} if with_cls else {})
    return result


def test_directions_are_the_principal_components_without_what_all_texts_share() -> None:
    # The mean is 10 e₀, so the largest remaining variance is that along e₁, and without [CLS] that along e₂.
    torch.testing.assert_close(leading_directions(moments(False), 2, "s"), torch.eye(4, dtype=torch.float64)[1:3])
    torch.testing.assert_close(leading_directions(moments(True), 1, "s"), torch.eye(4, dtype=torch.float64)[2:3])


def test_rare_tokens_are_removed_as_frequent_ones_are() -> None:
    rare = InputMoments(4)
    rare.add(CONTENT * 1e8, {7: CLS * 1e-2})
    torch.testing.assert_close(leading_directions(rare, 1, "s"), torch.eye(4, dtype=torch.float64)[2:3])


def test_more_rows_than_remaining_directions_raise() -> None:
    assert leading_directions(moments(True), 2, "s").shape == (2, 4)
    with pytest.raises(ModelError, match=r"model\.rank = 3: 4 inputs less 2 shared directions leave 2"):
        leading_directions(moments(True), 3, "query")


def test_the_largest_entry_of_each_direction_is_positive() -> None:
    generator = torch.Generator().manual_seed(1)
    mixed = InputMoments(5)
    mixed.add(torch.randn(40, 5, generator=generator) * torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0]), {})
    rows = leading_directions(mixed, 4, "s")
    torch.testing.assert_close(rows @ rows.mT, torch.eye(4, dtype=torch.float64))
    assert (rows.gather(1, rows.abs().argmax(1, keepdim=True)) > 0).all()
