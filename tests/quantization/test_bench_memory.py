"""The benchmark of memory at 7B shapes, at a small shape."""

import pytest

pytest.importorskip("bitsandbytes", reason="needs bitsandbytes: scripts/test_quantized")

from bench_gpu import PLAIN
from bench_llama import Shape
from bench_memory import PRIVATE, measure


def test_memory_of_both_steps_is_measured() -> None:
    for step in (PLAIN, PRIVATE):
        result = measure(Shape(layers=1, width=256, heads=2, inner=688, batch=1, length=64), step)
        assert result["loaded_mib"] > 100
        assert result["peak_mib"] > 0
