"""Rounds without enough replies: the next round trains what the skipped one would have trained."""

import numpy as np
import pytest
import torch
from answering_app import answering_app
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from orthonormality import is_orthonormal
from strategy_runs import INITIAL

from fedsvd.config import Config
from fedsvd.config.compose import compose
from fedsvd.flower import FedSVD
from fedsvd.launch.in_process import InProcessGrid
from fedsvd.lora.adapter import Adapter
from fedsvd.methods import build_method, build_run_method
from fedsvd.wire import train_messages
from fedsvd.wire.train_messages import ClientReport, TrainTask
from server.polling_grid import PollingGrid
from server.strategy import FederatedLoRA

ROWS, COLUMNS = 4, 3
SHAPES = {"A": (2, COLUMNS), "B": (ROWS, 2)}


def make_config(*overrides: str) -> Config:
    return compose(["experiment=smoke", "train.head=frozen", "privacy=none", "federation.num_clients=3", *overrides])


class Run:
    """A strategy, run round by round; clients add random numbers to the factor that they train."""

    def __init__(self, config: Config) -> None:
        adapter = Adapter(A={"s": torch.eye(2, COLUMNS)}, B={"s": torch.zeros(ROWS, 2)}, head={}, scale={"s": 1.0})
        self.config, self.strategy = config, FederatedLoRA(build_run_method(config), config, adapter)
        self.declines, self.trained = False, ""
        self._random = np.random.default_rng(0)

    def round(self, number: int, declines: bool = False) -> str:
        """Run a round, in which all clients may decline; return the factors that they were asked to train."""
        self.declines, self.trained = declines, ""
        grid = PollingGrid(InProcessGrid(answering_app(self._reply), 3, {}), lambda reply: None)
        sent = self.strategy.configure_train(number - self.strategy.first_round, ArrayRecord(), ConfigRecord(), grid)
        replies = grid.send_and_receive(sent, timeout=5)
        self.strategy.aggregate_train(number - self.strategy.first_round, replies)
        assert self.strategy.round.skipped is declines
        return self.trained

    def resumed(self, first_round: int) -> "Run":
        """Return the run as another process resumes it after ``first_round`` rounds."""
        run, old = Run(self.config), self.strategy
        method, state = build_run_method(self.config), old.state
        run.strategy = FederatedLoRA(method, self.config, old.adapter, first_round, state=state)
        return run

    def _reply(self, partition_id: int, task: TrainTask, factors: ArrayRecord) -> RecordDict:
        self.trained = "".join(sorted(task.trains))
        if self.declines:
            return train_messages.declined_reply("not now")
        adapter = self.strategy.adapter
        size = {part: int(np.prod(SHAPES[part])) for part in task.trains}
        start = {part: adapter.part(part)["s"].numpy().ravel() for part in task.trains}
        values = {part: Array((start[part] + self._random.normal(size=size[part])).astype(np.float32)) for part in size}
        report = ClientReport(partition_id, 10, 0.1, server_round=task.server_round)
        return train_messages.train_reply(report, ArrayRecord(values))


@pytest.mark.parametrize("skipped", [1, 3])
def test_pivot_continues_where_it_was(skipped: int) -> None:
    run = Run(make_config("method.pivot=BAAA", "train.num_rounds=8", "model.rank=2"))
    trained = [run.round(number, declines=number == skipped) for number in range(1, 7)]

    expected = list("BAAAB")
    expected.insert(skipped, expected[skipped - 1])
    assert trained == expected
    # Whoever trains A next does so against orthonormal columns of B.
    assert run.round(7) == "A"
    assert is_orthonormal(run.strategy.adapter.B["s"].mT)


def test_resumed_run_continues_where_it_was() -> None:
    run = Run(make_config("method.pivot=BA", "train.num_rounds=8", "model.rank=2"))
    assert [run.round(1), run.round(2, declines=True)] == ["B", "A"]

    resumed = run.resumed(2)

    assert [resumed.round(number) for number in (3, 4, 5)] == ["A", "B", "A"]


def test_rolora_continues_with_the_skipped_factor() -> None:
    run = Run(make_config("method=rolora", "train.num_rounds=8", "model.rank=2"))
    assert [run.round(1, declines=True), run.round(2), run.round(3)] == ["B", "B", "A"]


def test_flower_strategy_continues_with_the_skipped_factor() -> None:
    trained, app = [], ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        config = message.content.config_records["config"]
        trained.append(str(config["lora-factors"]))
        if config["server-round"] == 1:
            raise RuntimeError("not now")
        metrics = MetricRecord({"num-examples": 1})
        return Message(RecordDict({"a": message.content["arrays"], "m": metrics}), reply_to=message)

    strategy = FedSVD(pivot="BA", fraction_evaluate=0.0, min_available_nodes=1, min_train_nodes=1)
    for _ in range(2):
        strategy.start(InProcessGrid(app, 1, {}), ArrayRecord(INITIAL), num_rounds=3)
        # Each start begins with its own round 1.
        assert trained == ["B", "B", "A"]
        trained.clear()


def test_resent_message_lives_no_longer_than_its_round(monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config("method=ffa_lora", "federation.round_timeout_s=100", "model.rank=2")
    run = Run(config)
    assert build_method(config.method) == run.strategy.method
    grid = InProcessGrid(answering_app(run._reply), 3, {})
    now = 1000.0
    monkeypatch.setattr("server.strategy.time.perf_counter", lambda: now)
    [first, *_] = run.strategy.configure_train(1, ArrayRecord(), ConfigRecord(), grid)
    now += 70
    resent = run.strategy.full_request(first)
    now += 70
    late = run.strategy.full_request(first)

    assert [message.metadata.ttl for message in (first, resent, late)] == pytest.approx([100, 30, 0.1])
