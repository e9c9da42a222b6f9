"""A thousand fuzzed replies: each is dropped with a reason, and model and server are unaffected."""

import copy
import random

import numpy as np
import pytest
import torch
from answering_app import answering_app
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from fuzzes import CLIENTS, FUZZES, RANK, ROUNDS, ROWS, SIZE

from fedsvd.compat.flower import set_message_id
from fedsvd.config import Config
from fedsvd.config.compose import compose
from fedsvd.errors import RunError
from fedsvd.launch.in_process import InProcessGrid
from fedsvd.lora.adapter import Adapter
from fedsvd.methods import build_method
from fedsvd.wire import train_messages
from fedsvd.wire.train_messages import ClientReport, TrainTask
from server.polling_grid import PollingGrid
from server.retry_grid import RetryGrid
from server.strategy import FederatedLoRA

BAD_CLIENTS = 10


def make_config(*overrides: str) -> Config:
    base = [
        "experiment=smoke",
        "method=ffa_lora",
        "train.head=frozen",
        "privacy=none",
        f"train.num_rounds={ROUNDS + 1}",
    ]
    return compose([*base, f"federation.num_clients={CLIENTS}", *overrides])


def honest_reply(partition_id: int, task: TrainTask, received: ArrayRecord) -> RecordDict:
    values = np.full(SIZE, 0.01 * partition_id, dtype=np.float32)
    report = ClientReport(partition_id, 10 + partition_id, 0.1, server_round=task.server_round)
    return train_messages.train_reply(report, ArrayRecord({"B": Array(values)}))


class FuzzedGrid(InProcessGrid):
    """Grid in which clients below BAD_CLIENTS send a random invalid reply in each round but the first."""

    def __init__(self) -> None:
        super().__init__(answering_app(honest_reply), CLIENTS, {})
        self.rng = random.Random(20)
        self.kinds: list[str] = []
        self.earlier: list[Message] = []
        self.sent = 0

    def pull_messages(self, message_ids: object) -> list[Message]:  # type: ignore[override]
        replies: list[Message] = []
        for reply in super().pull_messages(message_ids):  # type: ignore[arg-type]
            bad = reply.metadata.src_node_id - 2 < BAD_CLIENTS and reply.metadata.group_id not in ("0", "1")
            replies += self.fuzz(reply) if bad else [reply]
        return replies

    def fuzz(self, reply: Message) -> list[Message]:
        self.sent += 1
        kind = self.rng.choice([*FUZZES, "replayed", "from another node", "of another round", "an error", "twice"])
        self.kinds.append(kind)
        self.earlier.append(copy.deepcopy(reply))
        if kind == "replayed":
            # Send the content of an earlier round in reply to this request, in addition to the earlier message itself.
            earlier = self.rng.choice(self.earlier)
            if earlier.content.metric_records[train_messages.METRICS]["server-round"] == int(reply.metadata.group_id):
                return [self.with_content(reply, RecordDict())]
            return [copy.deepcopy(earlier), self.with_content(reply, earlier.content)]
        if kind == "from another node":
            reply.metadata.__dict__["_src_node_id"] = self.rng.choice([0, 1, 2 + CLIENTS, 2**63, CLIENTS + 1])
            return [reply]
        if kind == "of another round":
            reply.metadata.__dict__["_group_id"] = self.rng.choice(["", "0", "999", "x"])
            return [reply]
        if kind == "an error":
            error = Error(self.rng.choice([1, 2, 6, 7, 99]), "\x1b[31m" * 10**4)
            return [Message(error, reply_to=self.request_of(reply))]
        if kind == "twice":
            return [self.with_content(reply, RecordDict()), copy.deepcopy(reply)]
        return [self.with_content(reply, FUZZES[kind](self.rng, copy.deepcopy(reply.content)))]

    def with_content(self, reply: Message, content: RecordDict) -> Message:
        reply.content = content
        return reply

    def request_of(self, reply: Message) -> Message:
        request = Message(RecordDict(), reply.metadata.src_node_id, "train", group_id=reply.metadata.group_id)
        set_message_id(request, reply.metadata.reply_to_message_id)
        return request


def test_thousand_fuzzed_replies_do_not_affect_model_and_server(caplog: pytest.LogCaptureFixture) -> None:
    config = make_config("federation.retries=0")
    adapter = Adapter(A={"s": torch.eye(RANK, 3)}, B={"s": torch.zeros(ROWS, RANK)}, head={}, scale={"s": 1.0})
    strategy = FederatedLoRA(build_method(config.method), config, adapter)
    fuzzed_grid = FuzzedGrid()
    grid = RetryGrid(PollingGrid(fuzzed_grid), strategy.full_request)
    # The mean of the two honest clients: (20 · 0.10 + 21 · 0.11) / 41.
    expected = torch.full((ROWS, RANK), (20 * 0.10 + 21 * 0.11) / 41)
    for server_round in range(1, ROUNDS + 2):
        messages = strategy.configure_train(server_round, ArrayRecord(), ConfigRecord(), grid)
        strategy.aggregate_train(server_round, grid.send_and_receive(messages, timeout=30))
        if server_round == 1:
            # All clients are still honest.
            assert not strategy.round.refused
            continue

        assert [report.partition_id for report in strategy.round.reports] == [10, 11]
        assert set(strategy.round.refused) == set(range(BAD_CLIENTS))
        assert strategy.round.dropped == BAD_CLIENTS
        torch.testing.assert_close(strategy.adapter.B["s"], expected)
        assert torch.equal(strategy.adapter.A["s"], adapter.A["s"])
    assert fuzzed_grid.sent >= 1000
    assert set(fuzzed_grid.kinds) == {*FUZZES, "replayed", "from another node", "of another round", "an error", "twice"}
    reasons = [record.getMessage() for record in caplog.records if "dropped the reply of" in record.getMessage()]
    assert len(reasons) == ROUNDS * BAD_CLIENTS
    assert all(reason.isprintable() and len(reason) < 600 for reason in reasons)


@pytest.mark.parametrize("privacy", ["none", "dp_sgd"])
def test_too_large_updates_are_dropped_and_end_the_run_if_there_are_no_others(privacy: str) -> None:
    config = make_config(f"privacy={privacy}", "privacy.accountant=rdp", "privacy.noise_multiplier=1")
    start = Adapter(A={"s": torch.eye(RANK, 3)}, B={"s": torch.zeros(ROWS, RANK)}, head={}, scale={"s": 1.0})
    strategy = FederatedLoRA(build_method(config.method), config, start)
    grid = PollingGrid(InProcessGrid(constant_app(100.0, config), CLIENTS, {}))
    messages = strategy.configure_train(1, ArrayRecord(), ConfigRecord(), grid)
    replies = grid.send_and_receive(messages, timeout=30)

    if privacy == "none":
        strategy.aggregate_train(1, replies)
        assert not strategy.round.refused
    else:
        with pytest.raises(RunError, match="too large for the settings"):
            strategy.aggregate_train(1, replies)
        assert len(strategy.round.refused) == CLIENTS
        assert all("update norm" in reason for reason in strategy.round.refused.values())


def constant_app(value: float, config: Config) -> ClientApp:
    def train(partition_id: int, task: TrainTask, received: ArrayRecord) -> RecordDict:
        report = ClientReport(partition_id, 160, 0.1, 1.0, 1.0, config.train.batch_size / 160, 2, server_round=1)
        values = np.full(SIZE, value, dtype=np.float32)
        return train_messages.train_reply(report, ArrayRecord({"B": Array(values)}))

    return answering_app(train)
