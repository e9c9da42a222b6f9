"""Tests of randomness: correct distributions, independence of global seeds, and a known key stream."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.utils.uniform_sampler import UniformWithReplacementSampler
from scipy import stats

from fedsvd.privacy.randomness import Randomness, SecureRandomness, TorchRandomness, poisson_batches, secret_masks

Source = Callable[[int], Randomness]


def secure(seed: int) -> Randomness:
    return SecureRandomness(seed.to_bytes(32, "big"))


SOURCES = pytest.mark.parametrize("source", [secure, TorchRandomness], ids=["secure", "torch"])


@SOURCES
@pytest.mark.parametrize("std", [1.0, 3.5])
def test_noise_is_normal(source: Source, std: float) -> None:
    draws = source(1).normal(torch.empty(400, 500), std).double().numpy().ravel()

    assert stats.kstest(draws, "norm", args=(0, std)).pvalue > 1e-3
    assert abs(draws.mean()) < 4 * std / math.sqrt(draws.size)
    assert draws.std() == pytest.approx(std, rel=0.01)
    # The tails extend as far as expected for this many draws, and neighboring draws are uncorrelated.
    assert 3.8 * std < np.abs(draws).max() < 6 * std
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 4 / math.sqrt(draws.size)


@SOURCES
def test_noise_has_the_requested_shape_and_dtype(source: Source) -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        draws = source(1).normal(torch.empty(3, 0, 2, dtype=dtype), 1.0)
        assert draws.shape == (3, 0, 2)
        assert draws.dtype is dtype


@SOURCES
def test_draws_differ_within_and_between_sources(source: Source) -> None:
    like = torch.empty(8)
    one = source(1)
    first, second, other = one.normal(like, 1.0), one.normal(like, 1.0), source(2).normal(like, 1.0)

    assert torch.equal(first, source(1).normal(like, 1.0))
    assert not torch.equal(first, second)
    assert not torch.equal(first, other)


def test_devices_draw_independent_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    on_cpu, randn = torch.Generator, torch.randn
    # Stands in for two GPUs, whose generators draw the same numbers from the same seed.
    monkeypatch.setattr(torch, "Generator", lambda device="cpu": on_cpu())
    monkeypatch.setattr(torch, "randn", lambda *args, device, **options: randn(*args, **options))
    randomness = TorchRandomness(1)
    first, second = (randomness.normal(torch.empty(8, device=device), 1.0) for device in ("cpu", "meta"))

    assert not torch.equal(first, second)


@pytest.mark.parametrize("source", [SecureRandomness, TorchRandomness])
def test_global_seeds_do_not_affect_draws(source: Callable[[], Randomness]) -> None:
    outcomes = []
    for _ in range(2):
        torch.manual_seed(7)
        np.random.seed(7)
        randomness = source()
        outcomes.append((next(randomness.batches(200, 0.5, 1)), randomness.normal(torch.empty(8), 1.0)))

    assert outcomes[0][0] != outcomes[1][0]
    assert not torch.equal(outcomes[0][1], outcomes[1][1])


def test_uniform_numbers_are_the_top_bits_of_the_key_stream() -> None:
    stream = Cipher(ChaCha20(bytes(32), bytes(16)), mode=None).encryptor().update(bytes(8000))
    words = [int.from_bytes(stream[i : i + 8], "little") for i in range(0, 8000, 8)]

    found = SecureRandomness(bytes(32)).uniform(1000)

    assert found.tolist() == [((word >> 11) + 0.5) / 2**53 for word in words]
    # RFC 8439, A.1, test vector 1: the first words of the key stream for key, nonce and counter of zeros.
    assert stream[:8].hex() == "76b8e0ada0f13d90"


@SOURCES
@settings(max_examples=20)
@given(sample_rate=st.floats(0.01, 1.0), seed=st.integers(0, 1000))
def test_poisson_batches_have_the_expected_rate(source: Source, sample_rate: float, seed: int) -> None:
    batches = list(source(seed).batches(200, sample_rate, 50))

    count = sum(map(len, batches))
    spread = (200 * 50 * sample_rate * (1 - sample_rate)) ** 0.5
    assert len(batches) == 50
    assert abs(count - 200 * 50 * sample_rate) <= 6 * spread + 1
    assert all(len(set(batch)) == len(batch) for batch in batches)
    assert all(0 <= position < 200 for batch in batches for position in batch)


@SOURCES
def test_batches_vary_in_size_as_poisson_samples_do(source: Source) -> None:
    sizes = [len(batch) for batch in source(1).batches(200, 0.3, 500)]
    assert np.var(sizes) == pytest.approx(200 * 0.3 * 0.7, rel=0.25)


def test_secure_batches_are_the_examples_whose_number_is_below_the_rate() -> None:
    drawn = SecureRandomness(bytes(32)).uniform(150).reshape(3, 50)
    batches = list(SecureRandomness(bytes(32)).batches(50, 0.3, 3))
    assert batches == [np.flatnonzero(row < 0.3).tolist() for row in drawn]


def test_noise_does_not_follow_from_the_batches() -> None:
    randomness = TorchRandomness(5)
    generator_of_batches = torch.Generator().manual_seed(randomness._seed)
    noise = randomness.normal(torch.empty(200), 1.0)
    assert not torch.equal(noise, torch.randn(200, generator=generator_of_batches))


@SOURCES
def test_rate_one_takes_all_examples(source: Source) -> None:
    assert [sorted(batch) for batch in source(3).batches(5, 1.0, 2)] == [[0, 1, 2, 3, 4]] * 2


@given(
    num_examples=st.integers(1, 50), sample_rate=st.floats(0.01, 1.0), steps=st.integers(1, 5), seed=st.integers(0, 99)
)
def test_poisson_batches_are_those_of_opacus(num_examples: int, sample_rate: float, steps: int, seed: int) -> None:
    expected = UniformWithReplacementSampler(
        num_samples=num_examples, sample_rate=sample_rate, generator=torch.Generator().manual_seed(seed), steps=steps
    )
    batches = poisson_batches(num_examples, sample_rate, steps, torch.Generator().manual_seed(seed))
    assert list(batches) == list(expected)


def test_torch_noise_of_a_cpu_has_as_many_seeds_as_documented() -> None:
    like = torch.zeros(8)
    noise = [TorchRandomness(seed).normal(like, 1.0) for seed in (5, 5 + (7 << 32), 6)]
    assert torch.equal(noise[0], noise[1])
    assert not torch.equal(noise[0], noise[2])
    assert "2³²" in str(TorchRandomness.__doc__)


def test_masks_are_secret_whatever_the_state_of_torch() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        expected = torch.rand(4)
        masks = []
        for _ in range(2):
            torch.manual_seed(3)
            with secret_masks():
                # More than the bits of a seed are secret.
                of_its_seed = torch.rand(2000, generator=torch.Generator().manual_seed(torch.initial_seed()))
                masks.append(torch.rand(2000))
            assert not torch.equal(masks[-1], of_its_seed)
            assert torch.equal(torch.rand(4), expected)
        assert (masks[0] == masks[1]).float().mean() < 0.01
        assert all(abs(mask.mean() - 0.5) < 0.05 for mask in masks)
