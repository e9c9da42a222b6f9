"""Arrays of Flower messages as adapters, and the checks of what clients reply."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from flwr.app import Array, ArrayRecord, Message
from torch import Tensor

from fedsvd.errors import DivergedUpdateError, PayloadError
from fedsvd.lora.adapter import Adapter, Factor, Part
from fedsvd.lora.state_dict import factor_key, from_state_dict, to_state_dict

_FACTORS: tuple[Factor, ...] = ("A", "B")


@dataclass(frozen=True)
class SentArrays:
    """The arrays that the clients of a round start from.

    Attributes:
        state: The tensors by key.
        adapter: The same tensors as an adapter, in whose head integers are float64.
    """

    state: Mapping[str, Tensor]
    adapter: Adapter

    @classmethod
    def from_record(cls, record: ArrayRecord) -> SentArrays:
        """Read the arrays of a message.

        Raises:
            ModelError: They are no state dict of a PEFT model with LoRA layers.
            PayloadError: An array cannot be read.
        """
        state = read_state_dict(record)
        adapter = from_state_dict(state)
        return cls(state, adapter.with_parts({"head": {key: _as_float(t) for key, t in adapter.head.items()}}))

    def to_record(self, adapter: Adapter) -> ArrayRecord:
        """Return an adapter as arrays with the keys, shapes and dtypes of these; integers are rounded."""
        head = {
            key: tensor if self.state[key].is_floating_point() else tensor.round().to(self.state[key].dtype)
            for key, tensor in adapter.head.items()
        }
        state = to_state_dict(adapter.with_parts({"head": head}), self.state)
        return ArrayRecord({key: Array(tensor.detach().cpu().numpy()) for key, tensor in state.items()})


def read_state_dict(record: ArrayRecord) -> dict[str, Tensor]:
    """Return the tensors of a message.

    Raises:
        PayloadError: An array is damaged, or of a dtype that torch does not have.
    """
    state = {}
    for key, array in record.items():
        try:
            state[key] = torch.from_numpy(array.numpy())
        except (ValueError, TypeError, OSError, EOFError) as error:
            raise PayloadError(f"the array {key} cannot be read: {' '.join(str(error).split())}.") from error
    return state


def read_parts(message: Message, sent: SentArrays, factors: Collection[Factor]) -> Mapping[Part, Mapping[str, Tensor]]:
    """Check the arrays of a client's reply, and return those that are averaged.

    Args:
        message: The reply.
        sent: The arrays that the client has received.
        factors: The factors that this round averages: those that the client has trained.

    Returns:
        Each of the factors, by site, and the other tensors of the reply, by key, as the head.

    Raises:
        PayloadError: An array is unknown, damaged or of another shape; one of the factors is missing; or another
            factor is not the one that was sent.
        DivergedUpdateError: An array has a non-finite value.
    """
    state: dict[str, Tensor] = {}
    for record in message.content.array_records.values():
        state |= read_state_dict(record)
    _check_tensors(state, sent)
    parts: dict[Part, dict[str, Tensor]] = {}
    for factor in _FACTORS:
        before = sent.adapter.part(factor)
        keys = {site: factor_key(site, factor) for site in before}
        if factor not in factors:
            _check_unchanged(factor, state, sent.state, keys.values())
            continue
        missing = [key for key in keys.values() if key not in state]
        if missing:
            raise PayloadError(
                f"{missing[0]} is missing: clients train factor {factor} in this round and must send it for all "
                f"{len(keys)} LoRA layers. Reply with peft.get_peft_model_state_dict(model)."
            )
        parts[factor] = {site: _as_sent(state[key], before[site]) for site, key in keys.items()}
    parts["head"] = {key: _as_float(state[key]) for key in sent.adapter.head if key in state}
    return parts


def _check_tensors(state: Mapping[str, Tensor], sent: SentArrays) -> None:
    known = {factor_key(site, factor) for factor in _FACTORS for site in sent.adapter.A} | sent.adapter.head.keys()
    for key, tensor in state.items():
        if key not in known:
            raise PayloadError(
                f"{key} is unknown: expected some of the {len(known)} arrays that were sent, such as {min(known)}. "
                "Reply with peft.get_peft_model_state_dict(model), and put all trained tensors into initial_arrays."
            )
        if tensor.shape != sent.state[key].shape:
            raise PayloadError(
                f"{key} has shape {tuple(tensor.shape)}: expected {tuple(sent.state[key].shape)}, as sent. Use one "
                "model and rank in the ServerApp and in all ClientApps."
            )
        if not bool(tensor.isfinite().all()):
            raise DivergedUpdateError(
                f"{key} has {int((~tensor.isfinite()).sum())} values that are NaN or infinite: training diverged. "
                "Lower the learning rate."
            )


def _check_unchanged(
    factor: Factor, state: Mapping[str, Tensor], sent: Mapping[str, Tensor], keys: Collection[str]
) -> None:
    for key in keys:
        if key in state and not _is_same(state[key], sent[key]):
            raise PayloadError(
                f"{key} differs from what was sent, and this round does not average factor {factor}: the client has "
                "trained it. Freeze it before training, with fedsvd.flower.train_factors(model, "
                'message.content["config"]["lora-factors"]), or use a strategy that averages both factors (FlexLoRA, '
                "FedExLoRA)."
            )


def _is_same(received: Tensor, sent: Tensor) -> bool:
    """Return whether a factor is the one that was sent, perhaps rounded to the client's precision."""
    values = sent.to(received.dtype)
    return any(
        torch.equal(received, values.to(dtype).to(received)) for dtype in (sent.dtype, torch.bfloat16, torch.half)
    )


def _as_sent(tensor: Tensor, before: Tensor) -> Tensor:
    """Return a factor in the shape of the sent one, and in its precision if that is higher."""
    return tensor.reshape(before.shape).to(torch.promote_types(tensor.dtype, before.dtype))


def _as_float(tensor: Tensor) -> Tensor:
    return tensor if tensor.is_floating_point() else tensor.double()
