"""What a client refuses in the stages of a secure round, before it trains."""

import pytest
from flwr.app import ArrayRecord, RecordDict

from client.secure_aggregation import answer_stage
from fedsvd.config.compose import compose
from fedsvd.errors import PayloadError
from fedsvd.lora.adapter import Part
from fedsvd.secagg import keys, messages
from fedsvd.secagg.messages import Stage
from fedsvd.wire import train_messages
from fedsvd.wire.train_messages import TrainTask

NODES = [1, 2, 3]
B: frozenset[Part] = frozenset({"B"})


class Client:
    """Node 1 of three, which fails if it trains."""

    def __init__(self) -> None:
        self.config = compose(["experiment=smoke", "privacy=none", "federation.secure_aggregation=true"])
        self.state = RecordDict()
        answered = self.send("setup")
        self.channel_key, self.mask_key = (messages.read_key(answered, name) for name in ("channel-key", "mask-key"))

    def send(self, stage: Stage, content: RecordDict | None = None, **fields: object) -> RecordDict:
        request = messages.request(stage, "session", content, **fields)
        return answer_stage(request, self.state, NODES[0], self.config, self.train)

    def train(self) -> RecordDict:
        raise AssertionError("this client has trained")


def public_keys(count: int) -> list[bytes]:
    return [keys.public_key(keys.new_private_key()) for _ in range(count)]


@pytest.mark.parametrize("kind", ["channel_keys", "mask_keys"])
def test_keys_that_two_clients_share_are_refused(kind: str) -> None:
    client = Client()
    listed = {
        "channel_keys": [client.channel_key, *public_keys(2)],
        "mask_keys": [client.mask_key, *public_keys(2)],
    }
    listed[kind][2] = listed[kind][1]
    with pytest.raises(PayloadError, match="two clients have the same public key"):
        client.send("share", nodes=NODES, **listed)


@pytest.mark.parametrize("sources", [[1], [2, 3], [1, 2, 4]])
def test_shares_of_too_few_or_of_unknown_clients_are_refused(sources: list[int]) -> None:
    client = Client()
    shared = client.send(
        "share",
        nodes=NODES,
        channel_keys=[client.channel_key, *public_keys(2)],
        mask_keys=[client.mask_key, *public_keys(2)],
    )
    assert messages.read_field(shared, "holders", list) == NODES
    ciphertexts = [b"shares"] * len(sources)
    task = train_messages.train_request(TrainTask(1, B, B), ArrayRecord())
    with pytest.raises(PayloadError, match=f"received key shares of {len(sources)} clients: expected at least 2"):
        client.send("collect", task, sources=sources, ciphertexts=ciphertexts)
