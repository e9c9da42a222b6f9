"""Keys of a node configuration that no part of fedsvd reads are refused, since their owner relies on them."""

import pytest
from flwr.app import Context, Message, RecordDict
from node_messages import SMOKE

from client.app import app
from client.node_limits import read_limits
from fedsvd.compat.flower import set_task_identity
from fedsvd.errors import LimitError
from fedsvd.wire import train_messages


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        *[(key, "ledger") for key in ("legder", "ledger-path", "ledger-file", "ledger_file", "ledger-dir", "Ledger")],
        *[(key, "max-epsilon") for key in ("max-epsilo", "max_epsilon", "epsilon")],
        ("noise-multiplier", "min-noise-multiplier"), ("ledger_policy", "ledger-policy"), ("delta", "max-delta"),
        ("policy", "ledger-policy"), ("steps", "max-steps"), ("privacy", "require-privacy"), ("data_path", "data-path"),
        ("trainer-idle", "trainer-idle-s"), ("site", None), ("target-epsilon", None), ("privacy-ledger", None),
    ],
)  # fmt: skip
def test_unknown_keys_are_refused_without_their_values(key: str, meant: str | None) -> None:
    with pytest.raises(LimitError) as raised:
        read_limits({"partition-id": 1, "num-partitions": 2, key: "/private/path"})
    message = str(raised.value)
    assert message.startswith(f"node configuration: {key} is not a known key")
    assert meant is None or f"(did you mean {meant}?)" in message
    assert ": expected one of max-epsilon, max-delta, " in message
    assert "/private" not in message


def test_an_invalid_node_configuration_is_an_answer_to_the_query() -> None:
    set_task_identity(1, 7, 2)
    context = Context(7, 2, {"partition-id": 3, "ledger-path": "x"}, RecordDict(), {"overrides": " ".join(SMOKE)})
    content = app(Message(RecordDict(), 2, train_messages.PARTITION_QUERY), context).content
    assert "ledger-path is not a known key (did you mean ledger?)" in str(train_messages.declined_reason(content))
    assert content.metric_records[train_messages.METRICS]["partition-id"] == 3
