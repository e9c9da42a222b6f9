"""Secure rounds with a client that never answers one stage: the others have time for the stages that follow."""

from collections.abc import Iterable
from types import SimpleNamespace

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message
from test_secure_grid import Clients, make_config, weighted_mean

from fedsvd.launch.in_process import InProcessGrid
from fedsvd.lora.adapter import Adapter
from fedsvd.methods import build_method
from fedsvd.secagg import messages
from server.secure_grid import SecureGrid
from server.strategy import FederatedLoRA

TIMEOUT = 100.0


class SlowNetwork(InProcessGrid):
    """A network on which an answer takes ``latency`` s of its own clock, and one client never answers one stage."""

    def __init__(self, clients: Clients, silent: tuple[int, str], latency: float) -> None:
        super().__init__(clients.app, clients.config.federation.num_clients, {})
        self.now, self.silent, self.latency = 1000.0, silent, latency
        self.expires: dict[str, float] = {}

    def send_and_receive(self, sent: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        assert timeout is not None
        answered, waits = [], self.latency
        for message in sent:
            stage = str(message.content.config_records.get(messages.RECORD, {"stage": ""})["stage"])
            self.expires[stage] = self.now + message.metadata.ttl
            number = self._contexts[message.metadata.dst_node_id].node_config["partition-id"]
            if (number, stage) == self.silent:
                waits = timeout
            else:
                answered.append(message)
        self.now += min(waits, timeout)
        return super().send_and_receive(answered, timeout=timeout) if self.latency <= timeout else []


@pytest.mark.parametrize("stage", ["setup", "share", "collect", "unmask"])
def test_silent_client_leaves_time_for_the_stages_that_follow(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    clients = Clients(make_config(f"federation.round_timeout_s={TIMEOUT}"), {})
    network = SlowNetwork(clients, (1, stage), latency=5.0)
    monkeypatch.setattr("server.secure_grid.time", SimpleNamespace(monotonic=lambda: network.now))
    adapter = Adapter(A={"s": torch.eye(2, 3)}, B={"s": torch.zeros(4, 2)}, head={}, scale={"s": 1.0})
    grid = SecureGrid(network, clients.config.federation.min_survivors)
    strategy = FederatedLoRA(build_method(clients.config.method), clients.config, adapter, 0, None, grid)
    sent = strategy.configure_train(1, ArrayRecord(), ConfigRecord(), network)
    started = network.now = 2000.0

    strategy.aggregate_train(1, grid.send_and_receive(sent, timeout=TIMEOUT))

    contributors = [k for k in range(5) if k != 1 or stage == "unmask"]
    assert grid.outcome is not None, grid.reason
    assert strategy.adapter.B["s"].numpy() == pytest.approx(weighted_mean(contributors), abs=1e-6)
    assert network.now <= started + TIMEOUT
    # A client that receives the request to train after its stage's end does not spend.
    assert network.expires["collect"] <= started + 90
