"""With client-level privacy, clients that the run leaves out from the start are recorded with their reasons."""

from pathlib import Path

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message
from flwr.clientapp import ClientApp

from fedsvd.config.compose import compose
from fedsvd.launch.in_process import InProcessGrid
from fedsvd.lora.adapter import Adapter
from fedsvd.methods import build_method
from fedsvd.wire.train_messages import partition_reply
from server.client_level import ClientLevelServer
from server.strategy import FederatedLoRA

REASON = "BudgetExceededError: this client allows 6."


def app_without(left_out: int) -> ClientApp:
    app = ClientApp()

    @app.query("partition")
    def partition(message: Message, context: Context) -> Message:
        number = int(context.node_config["partition-id"])
        return Message(partition_reply(number, REASON if number == left_out else ""), reply_to=message)

    return app


@pytest.mark.parametrize("participants", [3, 2])
def test_a_client_that_declines_the_query_is_in_every_row_and_printed_once(
    participants: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # The last node has a number above those of a run of two clients.
    lines = ["experiment=smoke", "method=ffa_lora", "privacy=client_level", "federation.clients_per_round=1"]
    config = compose([*lines, "privacy.accountant=rdp", f"federation.num_clients={participants}"])
    adapter = Adapter(A={"s": torch.eye(2, 3)}, B={"s": torch.zeros(4, 2)}, head={}, scale={"s": 1.0})
    level = ClientLevelServer(config, tmp_path / "ledger.sqlite")
    strategy = FederatedLoRA(build_method(config.method), config, adapter, client_level=level)
    grid = InProcessGrid(app_without(2), 3, {})

    for server_round in (1, 2):
        strategy.configure_train(server_round, ArrayRecord(), ConfigRecord(), grid)
        expected = {2: f"cannot take part: {REASON}"} if participants == 3 else {}
        assert strategy.round.refused == expected
    printed = [entry.getMessage() for entry in caplog.records if "cannot take part" in entry.getMessage()]
    assert [REASON in line for line in printed] == [True]
