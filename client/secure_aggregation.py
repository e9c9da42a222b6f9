"""The client side of secure aggregation: four stages per round, answered in order and once each."""

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

    Secrets are stored in ``state``, which Flower keeps in memory between messages, for the duration of one round. Each
    request is answered once. A stage that is repeated, out of order, or of another session is refused, so that nobody
    receives two masked versions of one update, or both kinds of key share of one client.

    Args:
        content: The server's message.
        state: The state that Flower stores for this node between messages.
        node: This node's ID.
        config: The run's configuration; ``federation.min_survivors`` is the minimum number of clients in a sum that
            this client contributes to.
        train: Runs the local round and returns the reply that would be sent without secure aggregation.

    Raises:
        PayloadError: If a request is out of order, contradicts an earlier one, or is for a sum over too few clients.
    """
    stage = str(messages.read_field(content, "stage", str))
    session = str(messages.read_field(content, "session", str))
    if stage == "setup":
        return _set_up(state, session)
    round_state = state.config_records.get(_STATE)
    if round_state is None or (round_state["session"], round_state["next"]) != (session, stage):
        raise PayloadError(f"stage {stage!r} is out of order: each stage of a secure round is answered once.")
    # Advance first: even if answering fails, this stage must not be answered again.
    round_state["next"] = {"share": "collect", "collect": "unmask"}.get(stage, "")
    if stage == "share":
        return _share(round_state, content, node, config.federation.min_survivors)
    if stage == "collect":
        _check_round(state, content)
        return _collect(round_state, content, node, config, train)
    del state[_STATE]
    return _unmask(round_state, content, node)


def _set_up(state: RecordDict, session: str) -> RecordDict:
    channel, mask = keys.new_private_key(), keys.new_private_key()
    state[_STATE] = ConfigRecord({"session": session, "next": "share", "channel": channel, "mask": mask})
    return messages.answer(channel_key=keys.public_key(channel), mask_key=keys.public_key(mask))


def _check_round(state: RecordDict, content: RecordDict) -> None:
    """Allow one masked vector per round: two sums that differ in one client would disclose that client's update."""
    server_round = train_messages.read_train_request(content)[0].server_round
    last = int(state.config_records.get(_ROUNDS, {"last": 0})["last"])  # type: ignore[arg-type]
    if server_round <= last:
        raise PayloadError(
            f"round {server_round} is refused: a masked vector was already sent for round {last}; expected a later one."
        )
    state[_ROUNDS] = ConfigRecord({"last": server_round})


def _share(round_state: ConfigRecord, content: RecordDict, node: int, min_survivors: int) -> RecordDict:
    channels = messages.read_node_map(content, "nodes", "channel-keys")
    masks = messages.read_node_map(content, "nodes", "mask-keys")
    own_keys = keys.public_key(_secret(round_state, "channel")), keys.public_key(_secret(round_state, "mask"))
    if (channels.get(node), masks.get(node)) != own_keys:
        raise PayloadError("the list of public keys does not contain this client's own keys.")
    if len(set(channels.values())) < len(channels) or len(set(masks.values())) < len(masks):
        raise PayloadError("two clients have the same public key: expected distinct keys.")
    needed = keys.reconstruction_threshold(len(channels), min_survivors)
    if len(channels) < needed:
        raise PayloadError(
            f"{len(channels)} clients take part: this client contributes to no sum of fewer than {needed} "
            "(federation.min_survivors)."
        )
    seed = keys.new_seed()
    shared = {
        other: keys.shared_key(_secret(round_state, "channel"), key, "channel") for other, key in channels.items()
    }
    sent = keys.distribute_shares(node, seed, _secret(round_state, "mask"), shared, needed)
    nodes, mask_keys = messages.split_node_map(masks, masks)
    round_state.update(
        {"seed": seed, "threshold": needed, "nodes": nodes, "mask-keys": mask_keys,
         "shared": [shared[other] for other in nodes]}
    )  # fmt: skip
    holders, ciphertexts = messages.split_node_map(sent, sent)
    return messages.answer(holders=holders, ciphertexts=ciphertexts)


def _collect(
    round_state: ConfigRecord,
    content: RecordDict,
    node: int,
    config: Config,
    train: Callable[[], RecordDict],
) -> RecordDict:
    received = messages.read_node_map(content, "sources", "ciphertexts")
    mask_keys = _table(round_state, "nodes", "mask-keys")
    if node not in received or not received.keys() <= mask_keys.keys() or len(received) < _threshold(round_state):
        raise PayloadError(
            f"received key shares of {len(received)} clients: expected at least {_threshold(round_state)}, all of them "
            "clients of this session and one of them this client."
        )
    round_state["sources"], round_state["ciphertexts"] = messages.split_node_map(received, received)
    reply = train()
    if train_messages.declined_reason(reply) is not None:
        return reply
    report, factors = train_messages.read_train_reply(reply)
    values = np.concatenate([factors[part].numpy() for part in factors])
    weight = 1 if equal_weights(config) else report.num_examples or 1
    vector = vectors.encode(values, weight, len(mask_keys))
    vector += vectors.mask(_secret(round_state, "seed"), len(vector))
    for other in received:
        if other != node:
            key = keys.shared_key(_secret(round_state, "mask"), mask_keys[other], "mask")
            pairwise = vectors.mask(key, len(vector))
            # Of each pair, one client adds the mask that the other subtracts.
            vector = vector + pairwise if node < other else vector - pairwise
    return messages.masked_reply(vector, train_messages.train_reply(train_messages.hide_counts(report), factors))


def _unmask(round_state: ConfigRecord, content: RecordDict, node: int) -> RecordDict:
    alive, dead = messages.read_node_set(content, "alive"), messages.read_node_set(content, "dead")
    ciphertexts = _table(round_state, "sources", "ciphertexts")
    if alive & dead or alive | dead != set(ciphertexts) or node not in alive or len(alive) < _threshold(round_state):
        raise PayloadError(
            f"{len(alive)} of {len(ciphertexts)} clients are listed as alive: expected at least "
            f"{_threshold(round_state)}, and each client to be listed as either alive or dead."
        )
    shared = _table(round_state, "nodes", "shared")
    nodes, shares = [], []
    for source in sorted(ciphertexts):
        opened = keys.decrypt_shares(ciphertexts[source], shared[source], source, node)
        nodes.append(source)
        shares.append(opened.self_mask if source in alive else opened.mask_key)
    return messages.answer(nodes=nodes, shares=shares)


def _table(round_state: ConfigRecord, nodes: str, values: str) -> dict[int, bytes]:
    return dict(zip(round_state[nodes], round_state[values], strict=True))  # type: ignore[arg-type, misc]


def _secret(round_state: ConfigRecord, name: str) -> bytes:
    value = round_state[name]
    assert isinstance(value, bytes)  # noqa: S101 - only this module writes it
    return value


def _threshold(round_state: ConfigRecord) -> int:
    return int(round_state["threshold"])  # type: ignore[arg-type]
