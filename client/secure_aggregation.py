"""A client's half of a secure round: four stages, in order, once each."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from flwr.app import ConfigRecord, RecordDict

from fedsvd.config import Config
from fedsvd.errors import PayloadError
from fedsvd.privacy.noise_share import equal_weights
from fedsvd.secagg import keys, messages, vectors
from fedsvd.wire import train_messages

_STATE, _ROUNDS = "secure-round", "secure-rounds"


def answer_stage(
    content: RecordDict,
    state: RecordDict,
    node: int,
    config: Config,
    train: Callable[[], RecordDict],
) -> RecordDict:
    """Answer one stage of a secure round.

    Secrets live in ``state``, which Flower keeps in memory from message to message, for the length of one round. Every
    request is answered once: a stage that is asked for again, out of order, or for another session is refused, so that
    nobody is given two maskings of one update, or both kinds of share of one client.

    Args:
        content: The server's message.
        state: What this node keeps between messages.
        node: This node's number.
        config: The run's configuration; with its ``federation.min_survivors`` clients this one wants to hide.
        train: Does the local round and returns the reply that would go out unmasked.

    Raises:
        PayloadError: A request that is out of order, contradicts an earlier one, or would sum over too few.
    """
    stage = str(messages.read_field(content, "stage", str))
    session = str(messages.read_field(content, "session", str))
    if stage == "setup":
        return _set_up(state, session)
    kept = state.config_records.get(_STATE)
    if kept is None or (kept["session"], kept["next"]) != (session, stage):
        raise PayloadError(f"stage {stage!r} is out of order; every stage of a secure round is answered once.")
    # Whatever happens from here on, this stage is over.
    kept["next"] = {"share": "collect", "collect": "unmask"}.get(stage, "")
    if stage == "share":
        return _share(kept, content, node, config.federation.min_survivors)
    if stage == "collect":
        _check_round(state, content)
        return _collect(kept, content, node, config, train)
    del state[_STATE]
    return _unmask(kept, content, node)


def _set_up(state: RecordDict, session: str) -> RecordDict:
    channel, mask = keys.new_private_key(), keys.new_private_key()
    state[_STATE] = ConfigRecord({"session": session, "next": "share", "channel": channel, "mask": mask})
    return messages.answer(channel_key=keys.public_key(channel), mask_key=keys.public_key(mask))


def _check_round(state: RecordDict, content: RecordDict) -> None:
    """Give one masked vector a round: two sums that differ in one client would give that client away."""
    server_round = train_messages.read_train_request(content)[0].server_round
    last = int(state.config_records.get(_ROUNDS, {"last": 0})["last"])  # type: ignore[arg-type]
    if server_round <= last:
        raise PayloadError(f"round {server_round} has had its masked vector; the last was for round {last}.")
    state[_ROUNDS] = ConfigRecord({"last": server_round})


def _share(kept: ConfigRecord, content: RecordDict, node: int, min_survivors: int) -> RecordDict:
    channels = messages.read_node_map(content, "nodes", "channel-keys")
    masks = messages.read_node_map(content, "nodes", "mask-keys")
    own = keys.public_key(_secret(kept, "channel")), keys.public_key(_secret(kept, "mask"))
    if (channels.get(node), masks.get(node)) != own:
        raise PayloadError("the list of keys does not hold this client's own.")
    if len(set(channels.values())) < len(channels) or len(set(masks.values())) < len(masks):
        raise PayloadError("two clients are said to have one key.")
    needed = keys.threshold(len(channels), min_survivors)
    if len(channels) < needed:
        raise PayloadError(
            f"{len(channels)} clients take part; this client hides in no sum of fewer than {needed} "
            "(federation.min_survivors)."
        )
    seed = keys.new_seed()
    shared = {other: keys.shared_key(_secret(kept, "channel"), key, "channel") for other, key in channels.items()}
    sent = keys.distribute_shares(node, seed, _secret(kept, "mask"), shared, needed)
    nodes, mask_keys = messages.split_node_map(masks, masks)
    kept.update(
        {"seed": seed, "threshold": needed, "nodes": nodes, "mask-keys": mask_keys,
         "shared": [shared[other] for other in nodes]}
    )  # fmt: skip
    holders, ciphertexts = messages.split_node_map(sent, sent)
    return messages.answer(holders=holders, ciphertexts=ciphertexts)


def _collect(
    kept: ConfigRecord,
    content: RecordDict,
    node: int,
    config: Config,
    train: Callable[[], RecordDict],
) -> RecordDict:
    received = messages.read_node_map(content, "sources", "ciphertexts")
    mask_keys = _table(kept, "nodes", "mask-keys")
    if node not in received or not received.keys() <= mask_keys.keys() or len(received) < _threshold(kept):
        raise PayloadError(f"key shares of {len(received)} clients came; {_threshold(kept)} are needed, all known.")
    kept["sources"], kept["ciphertexts"] = messages.split_node_map(received, received)
    reply = train()
    if train_messages.declined_reason(reply) is not None:
        return reply
    report, factors = train_messages.read_train_reply(reply)
    values = np.concatenate([factors[part].numpy() for part in factors])
    weight = 1 if equal_weights(config) else report.num_examples or 1
    vector = vectors.encode(values, weight, len(mask_keys))
    vector += vectors.mask(_secret(kept, "seed"), len(vector))
    for other in received:
        if other != node:
            key = keys.shared_key(_secret(kept, "mask"), mask_keys[other], "mask")
            pairwise = vectors.mask(key, len(vector))
            # One of the two adds what the other subtracts.
            vector = vector + pairwise if node < other else vector - pairwise
    return messages.masked_reply(vector, train_messages.train_reply(train_messages.hide_counts(report), factors))


def _unmask(kept: ConfigRecord, content: RecordDict, node: int) -> RecordDict:
    alive, dead = messages.read_node_set(content, "alive"), messages.read_node_set(content, "dead")
    ciphertexts = _table(kept, "sources", "ciphertexts")
    if alive & dead or alive | dead != set(ciphertexts) or node not in alive or len(alive) < _threshold(kept):
        raise PayloadError(
            f"{len(alive)} clients are said to have survived of {len(ciphertexts)}; {_threshold(kept)} are needed, "
            "and each must be called either alive or dead."
        )
    shared = _table(kept, "nodes", "shared")
    nodes, shares = [], []
    for source in sorted(ciphertexts):
        opened = keys.decrypt_shares(ciphertexts[source], shared[source], source, node)
        nodes.append(source)
        shares.append(opened.self_mask if source in alive else opened.mask_key)
    return messages.answer(nodes=nodes, shares=shares)


def _table(kept: ConfigRecord, nodes: str, values: str) -> dict[int, bytes]:
    return dict(zip(kept[nodes], kept[values], strict=True))  # type: ignore[arg-type, misc]


def _secret(kept: ConfigRecord, name: str) -> bytes:
    value = kept[name]
    assert isinstance(value, bytes)  # noqa: S101 - written by this module alone
    return value


def _threshold(kept: ConfigRecord) -> int:
    return int(kept["threshold"])  # type: ignore[arg-type]
