"""The last layer of a regression model, which ``data.label_range`` needs a bias of."""

from __future__ import annotations

from torch import nn

from fedsvd.errors import ModelError


def output_layer(model: nn.Module) -> str:
    """Return the name of a regression model's last layer: the linear layer with one output, except LoRA factors."""
    names: list[str] = [
        name for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and layer.out_features == 1
    ]
    return [name for name in names if ".lora_" not in name][-1]


def check_output_bias(model: nn.Module, source: str, label_range: tuple[float, float] | None) -> None:
    """Check that the head can be exported so that it predicts numbers of a range.

    Args:
        model: The base model, or an adapted one.
        source: ``model.source``.
        label_range: ``data.label_range``.

    Raises:
        ModelError: The range does not start at 0, and the head has no bias.
    """
    if label_range is None or not label_range[0]:
        return
    layer = model.get_submodule(output_layer(model))
    if getattr(layer, "bias", None) is None:
        raise ModelError(
            f"data.label_range = {list(label_range)} is not possible with the stock head of {source}: it has no bias, "
            "so the range must start at 0. Set model.pooling=mean or last, or leave data.label_range out."
        )
