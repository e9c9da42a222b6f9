"""Benchmarks that are made for large models or a GPU run at small shapes on the CPU, so that the scripts are tested."""

import json
from pathlib import Path
from types import SimpleNamespace

import bench_gpu
import bench_profile
import pytest
import torch
from bench_cli import main
from bench_traffic import FORMULAS
from torch.autograd import DeviceType

from fedsvd.methods import METHODS


def test_every_part_that_needs_no_process_of_its_own_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = tmp_path / "results.json"
    arguments = ["gpu", "--small", "--only", "server", "step", "--repeats", "1", "--json", str(results)]
    monkeypatch.setattr("sys.argv", ["bench", *arguments])

    main()

    rows = json.loads(results.read_text())["results"]
    assert [row["name"] for row in rows if row["shape"] == "small, bfloat16"] == list(bench_gpu.STEPS)
    assert [row["name"].partition(" (")[0] for row in rows if row["section"] == "server"] == [
        "server step",
        "copy of both factors",
        "full SVD of each site",
    ]
    assert all(row["median_s"] > 0 for row in rows)
    assert all((row["share_of_peak"] or 0) > 0 for row in rows if row["section"] == "step")
    # Two layers of 4 · 64² + 3 · 64 · 128 weights, and the output layer.
    assert bench_gpu.linear_weights(bench_gpu.SMALL_MODELS["small"]) == 2 * 40960 + 32000 * 64
    assert all(row["ratio"] == 1 for row in rows if row["name"] in ("server step", bench_gpu.PLAIN))


def test_profile_lists_the_operators_of_a_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = tmp_path / "results.json"
    overrides = ["experiment=smoke", "train.num_rounds=1", "train.head_rounds=0", "federation.num_clients=2"]
    monkeypatch.setattr("sys.argv", ["bench", "profile", *overrides, "--rows", "50", "--json", str(results)])

    main()

    operators = json.loads(results.read_text())["operators"]
    assert len(operators) == 50
    assert operators["aten::bmm"]["calls"] > 0
    assert 0.5 < sum(row["share"] for row in operators.values()) <= 1


def test_profile_counts_a_kernel_once(monkeypatch: pytest.MonkeyPatch) -> None:
    operator = SimpleNamespace(device_type=DeviceType.CPU, self_device_time_total=5.0, self_cpu_time_total=1.0)
    kernel = SimpleNamespace(device_type=DeviceType.CUDA, self_device_time_total=5.0, self_cpu_time_total=0.0)

    assert [bench_profile.own_time(event) for event in (operator, kernel)] == [1, 0]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [bench_profile.own_time(event) for event in (operator, kernel)] == [0, 5]


def test_traffic_is_measured_for_every_method() -> None:
    assert {name.split(",")[0] for name in FORMULAS} == set(METHODS)
