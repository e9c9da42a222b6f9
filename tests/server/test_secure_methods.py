"""Every method that secure aggregation supports: a secure run gives the adapter of a plain one.

Whole runs with real models, also on real nodes, are in tests/integration.
"""

from collections.abc import Callable

import pytest
import torch
from answering_app import answering_app
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client.secure_aggregation import answer_stage
from fedsvd.config import Config
from fedsvd.config.compose import compose
from fedsvd.launch.in_process import InProcessGrid
from fedsvd.lora.adapter import PARTS, Adapter
from fedsvd.methods import METHODS, build_run_method
from fedsvd.wire import payload, train_messages
from fedsvd.wire.train_messages import ClientReport, TrainTask
from server.polling_grid import PollingGrid
from server.secure_grid import SecureGrid
from server.strategy import FederatedLoRA

CLIENTS, ROUNDS = 3, 4
SUPPORTED = [name for name, build in METHODS.items() if build().traits.linear]


class Run:
    """Rounds of one strategy, whose clients of different sizes add random numbers to what they send."""

    def __init__(self, method: str, *overrides: str) -> None:
        base = ["experiment=smoke", "privacy=none", "train.head=private", "train.local_steps=1", "model.rank=2"]
        self.config: Config = compose(
            [*base, f"federation.num_clients={CLIENTS}", *f"method={method}".split(), *overrides]
        )
        generator = torch.Generator().manual_seed(0)
        A = torch.linalg.qr(torch.randn(5, 2, generator=generator)).Q.mT
        core = {"s": torch.zeros(2, 2)} if build_run_method(self.config).traits.core else {}
        B = torch.linalg.qr(torch.randn(4, 2, generator=generator)).Q if core else torch.zeros(4, 2)
        adapter = Adapter({"s": A}, {"s": B}, {"w": torch.zeros(3)}, {"s": 1.0}, core=core)
        is_secure = self.config.federation.secure_aggregation
        inner = InProcessGrid(self._secure_app() if is_secure else answering_app(self._reply), CLIENTS, {})
        self.grid = SecureGrid(inner, 2) if is_secure else PollingGrid(inner, lambda reply: None)
        secure = self.grid if isinstance(self.grid, SecureGrid) else None
        self.strategy = FederatedLoRA(build_run_method(self.config), self.config, adapter, secure=secure)

    def adapter(self) -> Adapter:
        for number in range(1, ROUNDS + 1):
            sent = self.strategy.configure_train(number, ArrayRecord(), ConfigRecord(), self.grid)
            self.strategy.aggregate_train(number, self.grid.send_and_receive(sent, timeout=30))
            assert not self.strategy.round.skipped
            assert len(self.strategy.round.reports) == CLIENTS
        return self.strategy.adapter

    def _reply(self, number: int, task: TrainTask, factors: ArrayRecord) -> RecordDict:
        generator = torch.Generator().manual_seed(100 * task.server_round + number)
        start = self.strategy.adapter
        sent = {
            part: {n: t + torch.randn(t.shape, generator=generator) for n, t in sorted(start.part(part).items())}
            for part in PARTS
            if part in task.uplink
        }
        report = ClientReport(number, 10 + number, 0.1, server_round=task.server_round)
        return train_messages.train_reply(report, payload.pack(start.with_parts(sent), task.uplink))

    def _secure_app(self) -> ClientApp:
        plain, app = answering_app(self._reply), ClientApp()

        @app.query("partition")
        def partition(message: Message, context: Context) -> Message:
            return plain(message, context)

        @app.train()
        def train(message: Message, context: Context) -> Message:
            local_round: Callable[[], RecordDict] = lambda: plain(message, context).content  # noqa: E731
            content = answer_stage(message.content, context.state, context.node_id, self.config, local_round)
            return Message(content, reply_to=message)

        return app


@pytest.mark.parametrize("method", [*SUPPORTED, "fedsvd method.pivot=BA"])
def test_secure_mean_gives_the_adapter_of_a_plain_run(method: str) -> None:
    secure, plain = (Run(method, *overrides).adapter() for overrides in (["federation.secure_aggregation=true"], []))
    for part in PARTS:
        assert secure.part(part).keys() == plain.part(part).keys()
        for name, tensor in plain.part(part).items():
            # Signs of singular vectors could differ; the sums differ too little for that.
            torch.testing.assert_close(secure.part(part)[name], tensor, atol=1e-5, rtol=1e-5)
    assert any(plain.head["w"])
