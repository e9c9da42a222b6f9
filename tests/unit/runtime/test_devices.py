"""The devices that a run, and commands with ``--device``, accept."""

import pytest
import torch

from fedsvd.errors import ConfigError
from fedsvd.runtime.model import resolve_device


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mps", "device = 'mps' is not supported: torch has no float64 there"),
        ("mps:0", "device = 'mps:0' is not supported: .*: set device=cpu"),
        ("meta", "device = 'meta' is invalid: expected auto, cpu, cuda or cuda:N"),
        ("cuda:9", "device = 'cuda:9' is not available: torch finds only 2 CUDA devices"),
    ],
)
def test_what_is_not_usable_is_refused(name: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match=message):
        resolve_device(name)


def test_auto_is_the_cpu_on_a_mac(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == torch.device("cpu")
