"""Messages of the server to the real ClientApp."""

from collections.abc import Mapping
from typing import Any

from flwr.app import Context, Message, MessageType, RecordDict

from client.app import app
from fedsvd.compat.flower import set_message_id, set_task_identity
from fedsvd.config.compose import compose
from fedsvd.lora.adapter import Part
from fedsvd.methods import build_method
from fedsvd.runtime.model import initial_adapter
from fedsvd.wire import payload, train_messages
from fedsvd.wire.train_messages import TrainTask

B: frozenset[Part] = frozenset({"B"})
SMOKE = ["experiment=smoke"]


def decline_reason(
    node_config: Mapping[str, Any],
    overrides: list[str],
    message_id: str = "message",
    server_round: int = 1,
    run_id: int = 7,
) -> str | None:
    """Request one round of the real ClientApp; return why it declined, or None."""
    run_overrides = [*SMOKE, *overrides]
    config = compose(run_overrides)
    factors = payload.pack(initial_adapter(config, build_method(config.method)), B)
    set_task_identity(1, run_id, 2)
    message = Message(train_messages.train_request(TrainTask(server_round, B, B), factors), 2, MessageType.TRAIN)
    set_message_id(message, message_id)
    node = {"partition-id": 0, "num-partitions": 2, **node_config}
    context = Context(run_id, 2, node, RecordDict(), {"overrides": " ".join(run_overrides)})
    return train_messages.declined_reason(app(message, context).content)
