"""Runs of Flower strategies on arrays that can be computed by hand."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from torch import Tensor

from fedsvd.launch.in_process import InProcessGrid

State = dict[str, Tensor]
# (partition id, received arrays, received config) -> arrays of the reply; client k has 2k + 1 examples.
Train = Callable[[int, State, ConfigRecord], Mapping[str, Tensor]]
A_KEY, B_KEY = "base_model.model.q.lora_A.weight", "base_model.model.q.lora_B.weight"
HEAD, STEPS, FROZEN = "base_model.model.head.weight", "base_model.model.norm.steps", "base_model.model.frozen"
INITIAL = {
    A_KEY: torch.tensor([[0.3, 0.4, 0.0]]),
    B_KEY: torch.zeros(2, 1),
    HEAD: torch.zeros(2, dtype=torch.float16),
    STEPS: torch.tensor(7),
    FROZEN: torch.ones(1),
}


def client_app(train: Train, **metrics: float) -> ClientApp:
    app = ClientApp()

    @app.train()
    def run(message: Message, context: Context) -> Message:
        k, (arrays,) = int(context.node_config["partition-id"]), message.content.array_records.values()
        reply = train(k, dict(arrays.to_torch_state_dict()), message.content.config_records["config"])
        report = MetricRecord({"num-examples": 2 * k + 1, "loss": float(k), **metrics})
        return Message(RecordDict({"arrays": ArrayRecord(dict(reply)), "metrics": report}), reply_to=message)

    return app


def run(strategy: FedAvg, train: Train, initial: State = INITIAL, rounds: int = 1, clients: int = 2) -> Any:
    grid = InProcessGrid(client_app(train), clients, {})
    return strategy.start(grid, ArrayRecord(initial), num_rounds=rounds)


def tensors(result: Any) -> State:
    return dict(result.arrays.to_torch_state_dict())
