"""Tests of fixed-point encoding, masks and keys of secure aggregation."""

import contextlib

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fedsvd.errors import DivergedError, PayloadError
from fedsvd.secagg import keys, messages, vectors


@given(
    st.lists(st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=3), min_size=1, max_size=5),
    st.lists(st.integers(1, 10**6), min_size=5, max_size=5),
)
def test_sum_of_encoded_vectors_decodes_to_the_weighted_mean(rows: list[list[float]], weights: list[int]) -> None:
    values = np.array(rows)
    encoded = [vectors.encode(row, weight, len(rows)) for row, weight in zip(values, weights, strict=False)]

    mean, weight = vectors.decode(vectors.add(np.zeros(4, dtype=np.uint64), encoded))

    used_weights = np.array(weights[: len(rows)], dtype=float)
    assert weight == used_weights.sum()
    np.testing.assert_allclose(mean, (used_weights[:, None] * values).sum(0) / used_weights.sum(), rtol=0, atol=1e-7)


@pytest.mark.parametrize("value", [np.nan, np.inf, -1e12])
def test_values_that_could_overflow_are_rejected(value: float, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(DivergedError, match=r"supports finite values up to .* Lower train.learning_rate") as raised:
        vectors.encode(np.array([1.0, value]), 31337, 10)
    # The receiver must not learn the number of examples, also not by division.
    assert "31337" not in str(raised.value)
    assert f"{abs(value) * 31337:g}" not in str(raised.value)
    assert [f"times its weight 31337 is {abs(value) * 31337:g}" in entry.getMessage() for entry in caplog.records] == [
        True
    ]


def test_largest_values_of_all_clients_do_not_overflow() -> None:
    largest = 2.0 ** (62 - vectors.FRACTION_BITS) / 8
    encoded = [vectors.encode(np.array([-largest, largest]), 1, 8) for _ in range(8)]
    mean, _ = vectors.decode(vectors.add(np.zeros(3, dtype=np.uint64), encoded))
    np.testing.assert_allclose(mean, [-largest, largest], rtol=1e-12)


def test_limit_of_a_value_is_shared_by_the_clients() -> None:
    limit = 2.0 ** (62 - vectors.FRACTION_BITS) / 8
    with pytest.raises(DivergedError, match="8 clients supports finite values up to"):
        vectors.encode(np.array([limit * 1.01]), 1, 8)


def test_largest_total_weight_is_valid_and_a_larger_one_is_not() -> None:
    assert vectors.decode(np.array([0, 2**62], dtype=np.uint64))[1] == 2.0 ** (62 - vectors.FRACTION_BITS)
    with pytest.raises(PayloadError, match="did not cancel"):
        vectors.decode(np.array([0, 2**62 + 2**61], dtype=np.uint64))


def test_masks_that_did_not_cancel_are_detected() -> None:
    total = vectors.encode(np.ones(3), 5, 2) + vectors.mask(bytes(32), 4)
    with pytest.raises(PayloadError, match="did not cancel"):
        vectors.decode(total)


def test_masked_vector_is_uniform() -> None:
    masked = vectors.encode(np.full(20_000, 0.25), 1, 2) + vectors.mask(b"k" * 32, 20_001)
    assert stats.kstest(masked.astype(np.float64) / 2.0**64, "uniform").pvalue > 1e-3
    # All 64 bits of each number are uniform, including those that a value of this size does not use.
    bits = np.unpackbits(masked.view(np.uint8)).reshape(-1, 64).mean(0)
    assert np.abs(bits - 0.5).max() < 5 * 0.5 / np.sqrt(20_001)


def test_key_agreement_is_symmetric_and_separate_by_purpose() -> None:
    one, two, three = (keys.new_private_key() for _ in range(3))
    agreed = keys.shared_key(one, keys.public_key(two), "mask")
    assert agreed == keys.shared_key(two, keys.public_key(one), "mask")
    assert len({agreed, keys.shared_key(one, keys.public_key(two), "channel"),
                keys.shared_key(one, keys.public_key(three), "mask")}) == 3  # fmt: skip
    with pytest.raises(PayloadError, match="public key"):
        keys.shared_key(one, b"short", "mask")


@pytest.mark.parametrize(("num_clients", "threshold"), [(2, 2), (3, 2), (4, 3), (5, 3), (6, 4), (9, 5), (10, 6)])
def test_secret_needs_as_many_shares_as_the_threshold(num_clients: int, threshold: int) -> None:
    assert keys.reconstruction_threshold(num_clients, 2) == threshold
    channels = {node: bytes([node]) * 32 for node in range(1, num_clients + 1)}
    seed, mask_key = keys.new_seed(), keys.new_private_key()
    sent = keys.distribute_shares(1, seed, mask_key, channels, threshold)
    decrypted = [keys.decrypt_shares(sent[node], channels[node], 1, node) for node in channels]

    assert keys.reconstruct_secret([shares.self_mask for shares in decrypted[-threshold:]]) == seed
    assert keys.reconstruct_secret([shares.mask_key for shares in decrypted]) == mask_key
    with contextlib.suppress(PayloadError, IndexError):
        assert keys.reconstruct_secret([shares.self_mask for shares in decrypted[: threshold - 1]]) != seed
    with contextlib.suppress(PayloadError, IndexError):
        assert keys.reconstruct_secret([shares.mask_key for shares in decrypted[: threshold - 1]]) != mask_key


def test_seeds_differ() -> None:
    assert keys.new_seed() != keys.new_seed()


def test_swapped_or_changed_shares_are_rejected() -> None:
    channels = {1: b"a" * 32, 2: b"b" * 32, 3: b"c" * 32}
    sent = keys.distribute_shares(1, keys.new_seed(), keys.new_private_key(), channels, 2)
    with pytest.raises(PayloadError, match="cannot be decrypted"):
        keys.decrypt_shares(sent[2], channels[3], 1, 2)
    with pytest.raises(PayloadError, match="cannot be decrypted"):
        keys.decrypt_shares(sent[2][:-3] + b"xyz", channels[2], 1, 2)
    with pytest.raises(PayloadError, match="were received as shares from node 3"):
        keys.decrypt_shares(sent[2], channels[2], 3, 2)


def test_threshold_is_at_least_the_minimum_of_survivors() -> None:
    assert keys.reconstruction_threshold(10, 8) == 8


def test_messages_with_invalid_fields_are_detected() -> None:
    request = messages.request("unmask", "session", nodes=[1, 2], shares=[b"a"])
    with pytest.raises(PayloadError, match="lists of the same length"):
        messages.read_node_map(request, "nodes", "shares")


def test_masked_vector_of_another_type_or_size_is_detected() -> None:
    content = messages.masked_reply(np.arange(3, dtype=np.uint64), RecordDict())
    assert messages.masked_vector(content, 3).tolist() == [0, 1, 2]
    assert messages.masked_bytes(content) == len(content.array_records[messages.MASKED]["vector"].data) > 24
    assert messages.masked_bytes(RecordDict()) == 0
    damaged = Array("uint64", (3,), "numpy.ndarray", b"nothing")
    for record, message in (
        (ArrayRecord({"vector": Array(np.zeros(3))}), "no masked vector of 3 uint64"),
        (ArrayRecord({"vector": Array(np.zeros(4, dtype=np.uint64))}), "no masked vector of 3 uint64"),
        (ArrayRecord(), "no masked vector"),
        (None, "no masked vector"),
        (ArrayRecord({"vector": damaged}), "part vector cannot be decoded"),
    ):
        with pytest.raises(PayloadError, match=message):
            messages.masked_vector(RecordDict({messages.MASKED: record} if record is not None else {}), 3)
