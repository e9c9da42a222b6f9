"""The first round of a client, in this process."""

from pathlib import Path

import torch
from flwr.app import RecordDict

from client.identity import ClientIdentity
from client.local_round import run_local_round
from fedsvd.config import Config
from fedsvd.lora.adapter import Part
from fedsvd.methods import build_method
from fedsvd.runtime.model import initial_adapter
from fedsvd.wire import payload, train_messages

B: frozenset[Part] = frozenset({"B"})


def run_first_round(config: Config, folder: Path) -> RecordDict:
    """Return the first client's reply, which is charged to a ledger in a folder."""
    start = initial_adapter(config, build_method(config.method))
    identity = ClientIdentity(0, 7, folder / "ledger.sqlite")
    task, factors = train_messages.TrainTask(1, B, B, account="a run"), payload.pack(start, B)
    return run_local_round(config, identity, task, factors, "message")


def uplink_b(config: Config, content: RecordDict) -> torch.Tensor:
    """Return the entries of B in a reply."""
    start = initial_adapter(config, build_method(config.method))
    parts = payload.unpack(train_messages.read_train_reply(content)[1], B, start, torch.device("cpu"))
    return torch.cat([tensor.reshape(-1) for tensor in parts["B"].values()])
