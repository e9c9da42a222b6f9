"""Simulated rounds without a network, with the clients' real private training and the method's real server step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from fedsvd.config import Config
from fedsvd.lora import peft_model
from fedsvd.lora.adapter import Adapter
from fedsvd.methods import State, build_run_method
from fedsvd.methods.aggregate import Reply, flatten_parts
from fedsvd.privacy.canaries import Canaries
from fedsvd.privacy.dp_sgd import DPSGD
from fedsvd.privacy.grad_sample_modes import LossFunction
from fedsvd.runtime.model import initial_adapter, load_model, resolve_device
from fedsvd.runtime.private_round import prepare_round, train_privately
from fedsvd.runtime.round_parts import trained_parts

# Called with the round number and the change of the attacked client's trained parameters in that round.
Observer = Callable[[int, Sequence[Tensor]], None]


@dataclass(frozen=True)
class Participant:
    """A client that takes part in every round.

    Attributes:
        partition_id: Index of the client's partition.
        losses: See `fedsvd.privacy.dp_sgd.train_dp_sgd`.
        num_examples: Number of the client's examples.
        mechanism: DP-SGD mechanism of each round.
        canaries: Canaries in the client's data, if it is attacked.
        observer: Called with each update that a server would receive from this client.
        widths: See `fedsvd.privacy.dp_sgd.train_dp_sgd`.
    """

    partition_id: int
    losses: LossFunction
    num_examples: int
    mechanism: DPSGD
    canaries: Canaries | None = None
    observer: Observer | None = None
    widths: Sequence[int] = ()


def simulate_rounds(config: Config, participants: Sequence[Participant]) -> Adapter:
    """Run all rounds and return the final adapter.

    No ledger is charged, since nothing leaves the process.

    Args:
        config: The configuration of the run.
        participants: The clients, at least one; all take part in every round.

    Raises:
        PrivacyError: See `fedsvd.runtime.private_round`.
    """
    method = build_run_method(config)
    adapter = initial_adapter(config, method).to(resolve_device(config.device))
    model = load_model(config)
    state: State = {}
    for server_round in range(1, config.train.num_rounds + 1):
        parts = trained_parts(method, config, server_round)
        replies = []
        for client in participants:
            peft_model.write(model, adapter)
            prepared = prepare_round(config, server_round, parts)
            plan = client.num_examples, client.mechanism, client.canaries, client.widths
            train_privately(config, prepared, client.losses, *plan)
            after = peft_model.read(model)
            if client.observer:
                pairs = zip(flatten_parts(after, parts), flatten_parts(adapter, parts), strict=True)
                client.observer(server_round, [new - old for new, old in pairs])
            weight = 1 if config.federation.weighting == "uniform" else client.num_examples
            replies.append(Reply(client.partition_id, weight, {part: after.part(part) for part in parts}))
        step = method.server_step(adapter, replies, server_round, state)
        adapter, state = step.adapter, step.state
    return adapter
